// Quantizes rows of a weight `W [N, K]` to NF4 (Dettmers et al. 2023), into the packed form of `matmul_nf4.cu`.
//
// For each block of 64 neighbours in a row: `scale = max |w|`, and of each element the code whose value is nearest to
// `w / scale`, the lower one when two are equally near. Codes and scales are the CPU's bit for bit: the same operations
// in f32, none of them contracted, and a NaN is the largest there is.
//
// `w` holds whole rows of bf16 or f32 from row `32 * first_tile` on. One block a tile of 32 rows by 64 columns, one thread
// a unit of 4 rows by 8 columns; 8 neighbouring lanes share the scales of a row.
#include "common.cuh"

#define TILE_N 32
#define TILE_K 64

__device__ const float CODE_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Reciprocals of what is not larger are infinite, or not exact.
#define SMALLEST_NORMAL 1.17549435e-38f

DEVICE Values<VECTOR> load_values(const bf16 *from) { return load<VECTOR>(from); }

DEVICE Values<VECTOR> load_values(const float *from) {
    float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

// How many neighbours in the table are such that the upper one is strictly nearer.
DEVICE u32 nearest(float x) {
    u32 code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++)
        code += fabsf(__fsub_rn(x, CODE_VALUES[i])) > fabsf(__fsub_rn(x, CODE_VALUES[i + 1]));
    return code;
}

template <typename In>
DEVICE void quantize(uint4 *units, float *scales, const In *w, int first_tile, int n, int k) {
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    int tile = blockIdx.x, column = threadIdx.x % 8 * VECTOR, row_in_tile = threadIdx.x / 8 * 4;
    int tile_row = first_tile + blockIdx.y;
    u32 words[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int row = tile_row * TILE_N + row_in_tile + r;
        Values<VECTOR> values = {};
        if (row < n)
            values = load_values(w + (u64)(row - first_tile * TILE_N) * k + tile * TILE_K + column);
        // Bits of magnitudes are ordered as the magnitudes are, a NaN above all.
        u32 largest = 0;
#pragma unroll
        for (int c = 0; c < VECTOR; c++)
            largest = max(largest, __float_as_uint(fabsf(values.at[c])));
#pragma unroll
        for (int distance = 4; distance > 0; distance /= 2)
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        float scale = __uint_as_float(largest);
        float inverse = scale > SMALLEST_NORMAL ? __fdiv_rn(1.0f, scale) : 0.0f;
        u32 codes = 0;
#pragma unroll
        for (int c = 0; c < VECTOR; c++)
            codes |= nearest(__fmul_rn(values.at[c], inverse)) << (4 * c);
        words[r] = row < n ? codes : 0; // rows that only fill a tile hold zeros
        if (threadIdx.x % 8 == 0)
            scales[(u64)tile * n_padded + row] = scale;
    }
    units[((u64)tile_row * n_tiles + tile) * 64 + threadIdx.x] = make_uint4(words[0], words[1], words[2], words[3]);
}

KERNEL(64) quantize_nf4_bf16(uint4 *units, float *scales, const bf16 *w, int first_tile, int n, int k) {
    quantize(units, scales, w, first_tile, n, k);
}

KERNEL(64) quantize_nf4_f32(uint4 *units, float *scales, const float *w, int first_tile, int n, int k) {
    quantize(units, scales, w, first_tile, n, k);
}
