// The backward product with an NF4 weight `W [N, K]` on Hopper's tensor cores.
//
// `dx [M, K] += dy [M, N] · W`, `dx, dy` bf16, sums f32, rounded once. The packed form is in `nf4.cuh`, the loop in
// `hopper.cuh`.
//
// Invariant: a row's result does not depend on M. W is that of the kernel for every card: codes in bf16 times their scale as
// two bf16, rounded.
//
// A warpgroup has a tile's 64 columns of W, and a warp two of each unit's 8: column 8g + 2w + f of the tile is row g + 8f of
// the fragments of warp w. The contraction runs over rows of W, 64 a step, which are two tiles. So a lane takes one byte of
// two words, of rows 2t and 2t + 1, for a register of each of its columns. The sums of a row of dx are brought together in
// shared memory, to be added in pieces of 16 bytes.
#include "hopper.cuh"

#define TILES_ACROSS (HOPPER_N / TILE_K)

// Four codes, of two columns and two rows: the first column's two values, then the second's.
DEVICE uint2 decode_across(u32 codes) {
    uint2 rows = decode_half(codes);
    return uint2{__byte_perm(rows.x, rows.y, 0x5410), __byte_perm(rows.x, rows.y, 0x7632)};
}

// What a thread copies and decodes of 128 columns of W.
struct Weight {
    int n, n_steps;
    const bf16 *dy;
    int m0, m;
    RowCopier rows;
    const uint4 *units; // its unit, in the next step
    u32 units_apart;    // from a step to the next
    int unit_row;       // of W, in the next step; n where the block has no such tile
    int unit_slot;
    Scales scales; // those of rows 2r and 2r + 1 make a word
    int scale_tile, n_tiles, n_padded;

    __device__ __forceinline__ Weight(const bf16 *dy, const uint4 *all_units, const Scales &scales, int m0, int m,
                                      int first_tile, int n, int k)
        : n(n), n_steps((n + STEP - 1) / STEP), dy(dy), m0(m0), m(m), rows(dy, m0, m, n), scales(scales),
          n_tiles(k / TILE_K), n_padded((n + TILE_N - 1) / TILE_N * TILE_N) {
        int below = threadIdx.x / (TILES_ACROSS * TILE_UNITS), across = threadIdx.x / TILE_UNITS % TILES_ACROSS;
        int row = threadIdx.x % TILE_UNITS / 8, column = threadIdx.x % 8;
        bool is_tile = first_tile + across < n_tiles;
        u64 tile = is_tile && TILE_N * below < n ? (u64)below * n_tiles + first_tile + across : 0;
        units = all_units + tile * TILE_UNITS + threadIdx.x % TILE_UNITS;
        units_apart = STEP / TILE_N * n_tiles * TILE_UNITS;
        unit_row = is_tile ? TILE_N * below : n;
        unit_slot = ((below * TILES_ACROSS + across) * 8 + row) * 8 + row_slot(row, column);
        scale_tile = first_tile + threadIdx.x / STEP;
    }

    // Rows of a width that is no multiple of 8 are not aligned, and copied at once.
    __device__ __forceinline__ void copy_rows(Stage &stage, int step) {
        int column = step * STEP + threadIdx.x % STEP_PIECES * VECTOR;
        if (n % VECTOR == 0) {
            rows.copy(stage, column < n);
            return;
        }
        int first_row = m0 + threadIdx.x / STEP_PIECES;
#pragma unroll 1 // it is rare: registers matter more
        for (int i = 0; i < ROW_COPIES; i++)
            *(stage.rows[i * ROWS_APART] + rows.slot) = row_piece(dy, first_row + i * ROWS_APART, m, column, n);
    }

    __device__ __forceinline__ void copy_units(Stage &stage, int) {
        bool there = unit_row < n;
        copy_async(stage.units[0][0] + unit_slot, units, there);
        unit_row += STEP;
        units += unit_row < n ? units_apart : 0;
    }

    __device__ __forceinline__ void copy_scales(Stage &stage, int step) {
        int row = step * STEP + threadIdx.x % STEP;
        bool is_tile = scale_tile < n_tiles;
        if (threadIdx.x < N_SCALES)
            stage.raw_scales[threadIdx.x].copy(scales, is_tile ? row : n_padded, is_tile ? scale_tile : 0, n_padded,
                                               n_tiles);
    }

    __device__ __forceinline__ void make_scales(Stage &stage) const {
        if (threadIdx.x < N_SCALES) {
            float scale = stage.raw_scales[threadIdx.x].scale(scales, threadIdx.x);
            Split both = split(scale, 0.0f), &pair = stage.scales[threadIdx.x / 2];
            ((bf16 *)&pair.high)[threadIdx.x % 2] = (bf16)both.high;
            ((bf16 *)&pair.low)[threadIdx.x % 2] = (bf16)both.low;
        }
    }

    __device__ __forceinline__ void decode(LeftOperand &left, const Stage &stage) const {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, across = warp / 4;
        u32 byte_of_both = 0x40 + 0x11 * (warp % 4);
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = step % 2 * 4 + half * 2 + t / 2; // of units
                const uint4 *unit = &stage.units[step / 2 * TILES_ACROSS + across][row][row_slot(row, g)];
                uint2 words = ((const uint2 *)unit)[t % 2];
                uint2 columns = decode_across(__byte_perm(words.x, words.y, byte_of_both));
                const Split &by = stage.scales[across * STEP / 2 + 8 * step + 4 * half + t];
                left[step][2 * half] = scaled(columns.x, by);
                left[step][2 * half + 1] = scaled(columns.y, by);
            }
    }
};

// The block's sums on their way to memory, in pairs of columns. Those that lanes of a warp put down at once are in different
// banks, two lanes in each.
struct Sums256 {
    float2 at[HOPPER_M][HOPPER_N / 2];

    __device__ __forceinline__ float2 &pair(int row, int column) { return at[row][column / 2 ^ row / 2 % 4]; }
};
static_assert(sizeof(Sums256) <= DEPTH * sizeof(Stage), "it takes the ring's place");

KERNEL(THREADS) matmul_nf4_hopper_backward(bf16 *dx, const bf16 *dy, const uint4 *units, const float *scales,
                                           const u8 *codes, float offset, int m, int n, int k) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int2 block = place<HOPPER_M>(m, (k + HOPPER_N - 1) / HOPPER_N);
    int m0 = block.x * HOPPER_M, k0 = block.y * HOPPER_N;
    Weight weight(dy, units, Scales{scales, codes, offset}, m0, m, k0 / TILE_K, n, k);
    float sum[128] = {};
    multiply(sum, weight, weight.n_steps);
    Sums256 &sums = *(Sums256 *)ring;
    __syncthreads(); // nobody reads the ring any more
#pragma unroll
    for (int j = 0; j < HOPPER_M / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            sums.pair(8 * j + 2 * t + e, warp / 4 * TILE_K + 8 * g + 2 * (warp % 4)) =
                float2{sum[4 * j + e], sum[4 * j + 2 + e]};
    __syncthreads();
    int column = threadIdx.x % (HOPPER_N / VECTOR) * VECTOR;
    for (int row = threadIdx.x / (HOPPER_N / VECTOR); row < HOPPER_M; row += THREADS * VECTOR / HOPPER_N) {
        Values<VECTOR> values;
#pragma unroll
        for (int i = 0; i < VECTOR; i += 2) {
            float2 pair = sums.pair(row, column + i);
            values.at[i] = pair.x, values.at[i + 1] = pair.y;
        }
        if (m0 + row < m && k0 + column < k)
            add_to(dx + (u64)(m0 + row) * k + k0 + column, values);
    }
}
