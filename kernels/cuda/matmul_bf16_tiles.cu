// Products with a weight `W [N, K]` in bf16 on tensor cores, as the loss and the backward of training ask for them: by tiles,
// whatever M is.
//
// Logits:   `y [M, N] = x [M, K] · Wᵀ` in f32.
// Backward: `dx [M, K] += dy [M, N] · W`.
// `x, dy, dx` bf16, sums f32; any N and K, in whole 16-byte pieces where they are multiples of 8.
//
// Invariant: a row's sum is one chain over the contraction in steps of 16: it does not depend on M. (It is another chain
// than that of `matmul_bf16.cu`, which generation's logits come from.)
//
// Blocks, warps and fragments are those of `matmul_nf4_tiles.cu`, with W itself in the place of codes and scales: a stage
// holds 128 rows of x or dy by 64 of the contraction, and as much of W as the block's columns need.
#include "tiles.cuh"

#define TILE_N 32 // rows of W that a forward warp takes
#define FORWARD_N 128
#define FORWARD_DEPTH 3 // stages of 32 KB: 96 KB of the 99 that an L4 gives a block

struct ForwardStage {
    uint4 rows[BLOCK_M][STEP_PIECES];
    uint4 weight[FORWARD_N][STEP_PIECES];
};
static_assert(FORWARD_DEPTH * sizeof(ForwardStage) == 98304, "what the launch asks for");

// Where piece `piece` of row `row` of W lies: lanes g, t and g + 1, t take the same of rows 4 apart.
DEVICE int weight_slot(int row, int piece) { return piece ^ (row / 4 % 2 * 4); }

KERNEL(THREADS) logits_bf16_128(float *y, const bf16 *x, const bf16 *w, int m, int n, int k) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int2 block = place<BLOCK_M>(m, (n + FORWARD_N - 1) / FORWARD_N);
    int m0 = block.x * BLOCK_M, n0 = block.y * FORWARD_N, row0 = warp / 4 * 64, column0 = warp % 4 * TILE_N;
    auto nothing = [](ForwardStage &, int) {};
    float sum[2][8][4] = {};
    pipeline<FORWARD_DEPTH, false, ForwardStage>(
        (k + STEP - 1) / STEP,
        [&](ForwardStage &stage, int step) {
            copy_rows<true>(stage.rows, row_slot, x, m0, m, step * STEP, k);
            copy_rows<true>(stage.weight, weight_slot, w, n0, n, step * STEP, k);
        },
        nothing, nothing,
        [&](const ForwardStage &stage) {
            multiply_tile(
                sum,
                [&](int half) {
                    const uint4(*rows)[STEP_PIECES] = stage.weight + column0 + 4 * g;
                    int slot = weight_slot(4 * g, 4 * half + t);
                    return [rows, slot](int r) { return rows[r][slot]; };
                },
                [&](int j, int half) { return stage.rows[row0 + 8 * j + g][row_slot(g, 4 * half + t)]; });
        });
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = m0 + row0 + 8 * j + 2 * t + e;
            Values<4> values = {sum[0][j][e], sum[0][j][2 + e], sum[1][j][e], sum[1][j][2 + e]};
            if (row < m)
                put_row(y + (u64)row * n, values, n0 + column0 + 4 * g, n);
        }
}

#define BACKWARD_K 256
#define BACKWARD_DEPTH 2 // stages of 48 KB
#define BACKWARD_PIECES (BACKWARD_K / VECTOR)

struct BackwardStage {
    uint4 rows[BLOCK_M][STEP_PIECES];
    uint4 weight[STEP][BACKWARD_PIECES];
};
static_assert(BACKWARD_DEPTH * sizeof(BackwardStage) == 98304, "what the launch asks for");

// The same for halves of the pieces that lanes g, t take of rows 8t..: two lanes of half a warp meet in a bank.
DEVICE int column_slot(int row, int piece) { return piece ^ (row / 8 % 4 * 2); }

// A warp's part of one step: all rows by half (0 or 1) of each piece of tile `tile` of 64 columns.
DEVICE void backward_step(float (&sum)[2][16][4], const BackwardStage &stage, int tile, int part) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 left[2][2][4];
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint2 rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int row = 32 * half + 8 * t + 4 * step + r;
                rows[r] = ((const uint2 *)&stage.weight[row][column_slot(row, 8 * tile + g)])[part];
            }
#pragma unroll
            for (int f = 0; f < 2; f++) {
                u32 row0 = f ? rows[0].y : rows[0].x, row1 = f ? rows[1].y : rows[1].x;
                u32 row2 = f ? rows[2].y : rows[2].x, row3 = f ? rows[3].y : rows[3].x;
                left[step][f][0] = __byte_perm(row0, row1, 0x5410);
                left[step][f][1] = __byte_perm(row0, row1, 0x7632);
                left[step][f][2] = __byte_perm(row2, row3, 0x5410);
                left[step][f][3] = __byte_perm(row2, row3, 0x7632);
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

KERNEL(THREADS) matmul_bf16_backward(bf16 *dx, const bf16 *dy, const bf16 *w, int m, int n, int k) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int2 block = place<BLOCK_M>(m, (k + BACKWARD_K - 1) / BACKWARD_K);
    int m0 = block.x * BLOCK_M, k0 = block.y * BACKWARD_K, tile = warp / 2, part = warp % 2;
    auto nothing = [](BackwardStage &, int) {};
    float sum[2][16][4] = {};
    pipeline<BACKWARD_DEPTH, false, BackwardStage>(
        (n + STEP - 1) / STEP,
        [&](BackwardStage &stage, int step) {
            copy_rows<true>(stage.rows, row_slot, dy, m0, m, step * STEP, n);
            copy_rows<true>(stage.weight, column_slot, w, step * STEP, n, k0, k);
        },
        nothing, nothing,
        [&](const BackwardStage &stage) { backward_step(sum, stage, tile, part); });
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = m0 + 8 * j + 2 * t + e, column = k0 + 64 * tile + 8 * g + 4 * part;
            if (row < m)
                add_to_row(dx + (u64)row * k,
                           Values<4>{sum[0][j][e], sum[0][j][2 + e], sum[1][j][e], sum[1][j][2 + e]}, column, k);
        }
}
