// Products with an NF4 weight `W [N, K]` (Dettmers et al. 2023) on tensor cores, from one packed form for both directions.
//
// Forward:  `y [M, N] = x [M, K] · Wᵀ`, with a LoRA pair `+ scale * h [M, R] · Bᵀ`, rounded once; or in f32 as logits.
// Backward: `dx [M, K] += dy [M, N] · W`.   `x, y, dx, dy` bf16, `h, B` and sums f32.
// `dequantize` writes W itself, `[N, K]` bf16.
//
// Packed form. A unit of 16 bytes holds 4 rows (n) by 8 columns (k): word r is row r, its nibble c column c. 8 by 8
// units make a tile of 32 rows by 64 columns, 1 KB, as wide as a scale's block:
// `units[((n / 32) * (K / 64) + k / 64) * 64 + (n / 4 % 8) * 8 + k / 8 % 8]`, `scales [K / 64, N]` f32. N is padded to
// 32 with zero scales; K is a multiple of 64.
//
// Fragments. The order of a contraction is free if both operands share it, and so is the order of output columns. So a
// lane (g = lane / 4, t = lane % 4) takes whole units and whole 16-byte pieces of rows, and nothing is shuffled:
//   forward: contraction k = 8t.. of a half tile; column c of n-fragment j is row n = 4c + j of W.
//   backward: contraction n = 8t.. of a tile; column c of n-fragment j is column k = 8c + j of W.
//
// One block makes 16·MI rows by one tile of columns; its 4 warps share the contraction and their sums are added in a
// fixed order. MI only changes how many rows a block makes, never the order of a row's additions: a row's result does
// not depend on M. Blocks that follow one another have the same columns: where there are many rows, W is read
// from memory once.
#include "product.cuh"

#define TILE_N 32
#define TILE_K 64

__device__ const float CODE_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

template <int MI, typename Out>
DEVICE void forward(Out *y, const bf16 *x, const uint4 *units, const float *scales, int m, int n, int k,
                    const Pair &pair) {
    __shared__ u32 pairs[256]; // two codes to two values, the lower nibble in the lower half
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        pairs[i] = to_bf16x2(CODE_VALUES[i % 16], CODE_VALUES[i / 16]);
    __syncthreads();
    int m0 = blockIdx.x * 16 * MI, n0 = blockIdx.y * TILE_N;
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    float sum[MI][4][4] = {};
    for (int tile = warp; tile < n_tiles; tile += N_WARPS) {
        float part[MI][4][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 unit = units[((u64)blockIdx.y * n_tiles + tile) * 64 + g * 8 + half * 4 + t];
            int column = tile * TILE_K + half * 32 + 8 * t;
            Left<MI> left;
            left.take(m0, [&](int row) { return inner_piece(x, row, m, column, k); });
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    u32 codes = word(unit, j) >> (16 * step);
                    left.multiply(part, j, step, pairs[codes & 255], pairs[codes >> 8 & 255]);
                }
        }
        // The scale of a row of W is the same for the whole tile: it is applied to the sum, exactly once.
        const float4 *scale = (const float4 *)(scales + (u64)tile * n_padded + n0 + 8 * t);
        float4 first = scale[0], second = scale[1];
        float by[2][4] = {{first.x, first.y, first.z, first.w}, {second.x, second.y, second.z, second.w}};
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum[i][j][e] += part[i][j][e] * by[e % 2][j];
    }
    add_pair(sum, pair, m0, m, n0, n);
    write_sums(y, sum, m0, m, n0, n);
}

template <int MI>
DEVICE void backward(bf16 *dx, const bf16 *dy, const uint4 *units, const float *scales, int m, int n, int k) {
    __shared__ float values_of[16];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    if (threadIdx.x < 16)
        values_of[threadIdx.x] = CODE_VALUES[threadIdx.x];
    __syncthreads();
    int m0 = blockIdx.x * 16 * MI, tile = blockIdx.y, n_tiles = k / TILE_K;
    int n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    float sum[MI][8][4] = {};
    for (int n0 = warp * TILE_N; n0 < n_padded; n0 += N_WARPS * TILE_N) {
        Left<MI> left;
        left.take(m0, [&](int row) { return row_piece(dy, row, m, n0 + 8 * t, n); });
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint4 unit = units[((u64)(n0 / TILE_N) * n_tiles + tile) * 64 + (2 * t + step) * 8 + g];
            float4 by = *(const float4 *)(scales + (u64)tile * n_padded + n0 + 8 * t + 4 * step);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float w0 = values_of[unit.x >> (4 * j) & 15] * by.x, w1 = values_of[unit.y >> (4 * j) & 15] * by.y;
                float w2 = values_of[unit.z >> (4 * j) & 15] * by.z, w3 = values_of[unit.w >> (4 * j) & 15] * by.w;
                left.multiply(sum, j, step, to_bf16x2(w0, w1), to_bf16x2(w2, w3));
            }
        }
    }
    for_each_sum(sum, m0, tile * TILE_K, [&](int row, int column, const Values<VECTOR> &values) {
        if (row < m)
            add_to(dx + (u64)row * k + column, values); // k is a multiple of the tile: whole pieces
    });
}

KERNEL(128) matmul_nf4_16(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, int m, int n, int k,
                          const float *h, const float *b, float scale, int rank) {
    forward<1>(y, x, units, scales, m, n, k, Pair{h, b, scale, rank});
}

KERNEL(128) matmul_nf4_32(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, int m, int n, int k,
                          const float *h, const float *b, float scale, int rank) {
    forward<2>(y, x, units, scales, m, n, k, Pair{h, b, scale, rank});
}

KERNEL(128) logits_nf4_16(float *y, const bf16 *x, const uint4 *units, const float *scales, int m, int n, int k) {
    forward<1>(y, x, units, scales, m, n, k, Pair{});
}

KERNEL(128) logits_nf4_32(float *y, const bf16 *x, const uint4 *units, const float *scales, int m, int n, int k) {
    forward<2>(y, x, units, scales, m, n, k, Pair{});
}

KERNEL(128) matmul_nf4_backward_16(bf16 *dx, const bf16 *dy, const uint4 *units, const float *scales, int m, int n,
                                   int k) {
    backward<1>(dx, dy, units, scales, m, n, k);
}

KERNEL(128) matmul_nf4_backward_32(bf16 *dx, const bf16 *dy, const uint4 *units, const float *scales, int m, int n,
                                   int k) {
    backward<2>(dx, dy, units, scales, m, n, k);
}

// One block a tile, one thread a unit.
KERNEL(64) dequantize_nf4(bf16 *w, const uint4 *units, const float *scales, int n, int k) {
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    int tile = blockIdx.x, n0 = blockIdx.y * TILE_N + threadIdx.x / 8 * 4, k0 = tile * TILE_K + threadIdx.x % 8 * 8;
    uint4 unit = units[((u64)blockIdx.y * n_tiles + tile) * 64 + threadIdx.x];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if (n0 + r >= n)
            return;
        float scale = scales[(u64)tile * n_padded + n0 + r];
        Values<VECTOR> values;
#pragma unroll
        for (int c = 0; c < VECTOR; c++)
            values.at[c] = CODE_VALUES[word(unit, r) >> (4 * c) & 15] * scale;
        store(w + (u64)(n0 + r) * k + k0, values);
    }
}
