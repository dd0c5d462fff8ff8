// Products with an NF4 weight `W [N, K]` on tensor cores, for many rows: what training does, where multiplying is the cost.
//
// Forward:  `y [M, N] = x [M, K] · Wᵀ`, with LoRA `+ scale * h [M, R] · Bᵀ` (see `Pair`), rounded once; or in f32 as logits.
// Backward: `dx [M, K] += dy [M, N] · W`, whatever M is.
// `x, y, dx, dy` bf16, `h, B` and sums f32. The packed form, the same for both directions, is in `nf4.cuh`.
//
// Invariant: a row's result does not depend on M. The forward adds in the order of `matmul_nf4.cu`, whose head says it;
// the backward has one kernel, and a row's sum there is one chain over n in steps of 16.
//
// A block of 8 warps makes a tile of 128 rows. In steps of 64 of the contraction it copies rows and packed units to a ring
// of stages in shared memory, some steps ahead of the tensor cores; codes become bf16 in registers. A step's scales are
// copied one step before the rest of it, and one thread makes each of them while the step before is multiplied.
//   forward: 128 columns, a warp 64 rows by 32 columns; a step's sums in accumulators of their own, times their scale added
//   to those of the product. Fragments as `multiply_tile` has them.
//   backward: 256 columns, a warp all 128 rows by half of a tile's columns (those of nibbles 0 to 3, or 4 to 7), so that
//   each code is decoded by one warp only. A scale is that of a row of W, along the contraction: it goes onto the value in
//   bf16, as the sum of two bf16 that hold it to 2^-18, so that W is rounded as code and as value and nowhere else.
//   `sum[f][j]` is of columns 8g + 2f and 8g + 2f + 1 of the half, and rows 8j + 2t and 8j + 2t + 1 of dy; the contraction
//   is n = 8t.. of a tile.
// Pieces of 16 bytes lie in shared memory where a quarter of a warp finds no two of them in the same banks.
#include "nf4.cuh"
#include "tiles.cuh"

template <int N_TILES, int N_SCALES> struct Stage {
    uint4 rows[BLOCK_M][STEP_PIECES];
    uint4 units[N_TILES][8][8];
    float scales[N_SCALES];
    RawScale raw_scales[N_SCALES];
};

#define FORWARD_N 128
#define FORWARD_DEPTH 4 // stages of 21.5 KB: 86 KB of the 99 that an L4 gives a block
using ForwardStage = Stage<FORWARD_N / TILE_N, FORWARD_N>;
static_assert(FORWARD_DEPTH * sizeof(ForwardStage) == 88064, "what the launch asks for");

// One step of a warp's 64 rows from `row0` by the 32 columns of `tile`.
DEVICE void forward_step(float (&sum)[2][8][4], const ForwardStage &stage, int row0, int tile) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float part[2][8][4] = {};
    multiply_tile(
        part, [&](int half) { return Unit{stage.units[tile][g][row_slot(g, 4 * half + t)]}; },
        [&](int j, int half) { return stage.rows[row0 + 8 * j + g][row_slot(g, 4 * half + t)]; });
    float4 by = *(const float4 *)(stage.scales + TILE_N * tile + 4 * g);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        add_scaled(sum[0][j], float4{part[0][j][0], part[0][j][1], part[0][j][2], part[0][j][3]}, by.x, by.y);
        add_scaled(sum[1][j], float4{part[1][j][0], part[1][j][1], part[1][j][2], part[1][j][3]}, by.z, by.w);
    }
}

template <typename Out>
DEVICE void forward(Out *y, const bf16 *x, const uint4 *units, const Scales &scales, int m, int n, int k,
                    const Pair &pair) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int n_steps = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    int2 block = place<BLOCK_M>(m, (n + FORWARD_N - 1) / FORWARD_N);
    int m0 = block.x * BLOCK_M, n0 = block.y * FORWARD_N, row0 = warp / 4 * 64, tile = warp % 4;
    int unit_tile = threadIdx.x / TILE_UNITS, unit = threadIdx.x % TILE_UNITS;
    bool is_tile = n0 + TILE_N * unit_tile < n;
    const uint4 *from = units + (u64)(is_tile ? n0 / TILE_N + unit_tile : 0) * n_steps * TILE_UNITS + unit;
    float sum[2][8][4] = {};
    pipeline<FORWARD_DEPTH, true, ForwardStage>(
        n_steps,
        [&](ForwardStage &stage, int step) {
            copy_rows<false>(stage.rows, row_slot, x, m0, m, step * STEP, k);
            copy_async(&stage.units[unit_tile][unit / 8][row_slot(unit / 8, unit % 8)], from + step * TILE_UNITS, is_tile);
        },
        [&](ForwardStage &stage, int step) {
            if (threadIdx.x < FORWARD_N)
                stage.raw_scales[threadIdx.x].copy(scales, n0 + threadIdx.x, step, n_padded, n_steps);
        },
        [&](ForwardStage &stage, int) {
            if (threadIdx.x < FORWARD_N)
                stage.scales[threadIdx.x] = stage.raw_scales[threadIdx.x].scale(scales, n0 + threadIdx.x);
        },
        [&](const ForwardStage &stage) { forward_step(sum, stage, row0, tile); });
    add_turned_pair(sum, pair, m0 + row0, m, n0 + TILE_N * tile, n);
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = m0 + row0 + 8 * j + 2 * t + e;
            Values<4> values = {sum[0][j][e], sum[0][j][2 + e], sum[1][j][e], sum[1][j][2 + e]};
            if (row < m)
                put_row(y + (u64)row * n, values, n0 + TILE_N * tile + 4 * g, n);
        }
}

#define BACKWARD_K 256
#define BACKWARD_TILES (BACKWARD_K / TILE_K)
#define BACKWARD_DEPTH 3 // stages of 27 KB
// Tile and scales are those of `n / 32` and `k / 64` within the step and the block: two by four.
using BackwardStage = Stage<STEP / TILE_N * BACKWARD_TILES, STEP * BACKWARD_TILES>;
static_assert(BACKWARD_DEPTH * sizeof(BackwardStage) == 82944, "what the launch asks for");

// Where column unit `g` of row unit `row` of a tile lies: the units that lanes g, t of a quarter of a warp take at once,
// of rows 2t or 2t + 1, are 8 different ones.
DEVICE int unit_slot(int row, int g) { return g ^ (row / 2 * 2); }

// A warp's part of one step: all rows by columns of `nibbles` (0: the lower four of a word, 16: the upper) of tile `tile`.
DEVICE void backward_step(float (&sum)[2][16][4], const BackwardStage &stage, int tile, int nibbles) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < STEP / TILE_N; half++) {
        u32 left[2][2][4];
#pragma unroll
        for (int step = 0; step < 2; step++) {
            int row = 2 * t + step, at = half * BACKWARD_TILES + tile;
            uint4 unit = stage.units[at][row][unit_slot(row, g)];
            float4 by = *(const float4 *)(stage.scales + at * TILE_N + 4 * row);
            Split first = split(by.x, by.y), second = split(by.z, by.w);
            uint2 rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++)
                rows[r] = decode_half(word(unit, r) >> nibbles);
#pragma unroll
            for (int f = 0; f < 2; f++) {
                u32 row0 = f ? rows[0].y : rows[0].x, row1 = f ? rows[1].y : rows[1].x;
                u32 row2 = f ? rows[2].y : rows[2].x, row3 = f ? rows[3].y : rows[3].x;
                left[step][f][0] = scaled(__byte_perm(row0, row1, 0x5410), first);
                left[step][f][1] = scaled(__byte_perm(row0, row1, 0x7632), first);
                left[step][f][2] = scaled(__byte_perm(row2, row3, 0x5410), second);
                left[step][f][3] = scaled(__byte_perm(row2, row3, 0x7632), second);
            }
        }
#pragma unroll
        for (int j = 0; j < 16; j++) {
            uint4 right = stage.rows[8 * j + g][row_slot(g, 4 * half + t)];
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int f = 0; f < 2; f++)
                    multiply_add(sum[f][j], left[step][f], word(right, 2 * step), word(right, 2 * step + 1));
        }
    }
}

DEVICE void backward(bf16 *dx, const bf16 *dy, const uint4 *units, const Scales &scales, int m, int n, int k) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    int2 block = place<BLOCK_M>(m, (k + BACKWARD_K - 1) / BACKWARD_K);
    int m0 = block.x * BLOCK_M, first_tile = block.y * BACKWARD_TILES, tile = warp / 2, nibbles = warp % 2 * 16;
    float sum[2][16][4] = {};
    pipeline<BACKWARD_DEPTH, true, BackwardStage>(
        (n + STEP - 1) / STEP,
        [&](BackwardStage &stage, int step) {
            copy_rows<true>(stage.rows, row_slot, dy, m0, m, step * STEP, n);
            int unit_tile = threadIdx.x / TILE_UNITS, unit = threadIdx.x % TILE_UNITS;
#pragma unroll
            for (int half = 0; half < STEP / TILE_N; half++) {
                int row_tile = step * (STEP / TILE_N) + half;
                bool there = first_tile + unit_tile < n_tiles && row_tile * TILE_N < n;
                u64 from = there ? (u64)row_tile * n_tiles + first_tile + unit_tile : 0;
                copy_async(&stage.units[half * BACKWARD_TILES + unit_tile][unit / 8][unit_slot(unit / 8, unit % 8)],
                           units + from * TILE_UNITS + unit, there);
            }
        },
        [&](BackwardStage &stage, int step) {
            int column_tile = first_tile + threadIdx.x / TILE_N % BACKWARD_TILES;
            int row = step * STEP + threadIdx.x / (TILE_N * BACKWARD_TILES) * TILE_N + threadIdx.x % TILE_N;
            stage.raw_scales[threadIdx.x].copy(scales, column_tile < n_tiles ? row : n_padded,
                                               column_tile < n_tiles ? column_tile : 0, n_padded, n_tiles);
        },
        [&](BackwardStage &stage, int) {
            int row = threadIdx.x % TILE_N; // of a tile
            stage.scales[threadIdx.x] = stage.raw_scales[threadIdx.x].scale(scales, row);
        },
        [&](const BackwardStage &stage) { backward_step(sum, stage, tile, nibbles); });
    if (first_tile + tile >= n_tiles)
        return;
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = m0 + 8 * j + 2 * t + e, column = (first_tile + tile) * TILE_K + 8 * g + nibbles / 4;
            if (row < m)
                add_to(dx + (u64)row * k + column,
                         Values<4>{sum[0][j][e], sum[0][j][2 + e], sum[1][j][e], sum[1][j][2 + e]});
        }
}

KERNEL(THREADS) matmul_nf4_128(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes,
                               float offset, int m, int n, int k, const float *h, const float *b, float scale, int rank,
                               const PairAt *pairs, const u32 *of_row) {
    forward(y, x, units, Scales{scales, codes, offset}, m, n, k, Pair{h, b, scale, rank, {pairs, of_row}});
}

KERNEL(THREADS) logits_nf4_128(float *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes,
                               float offset, int m, int n, int k) {
    forward(y, x, units, Scales{scales, codes, offset}, m, n, k, Pair{});
}

KERNEL(THREADS) matmul_nf4_backward(bf16 *dx, const bf16 *dy, const uint4 *units, const float *scales, const u8 *codes,
                                    float offset, int m, int n, int k) {
    backward(dx, dy, units, Scales{scales, codes, offset}, m, n, k);
}
