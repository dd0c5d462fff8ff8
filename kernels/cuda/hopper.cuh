// Products of many rows with an NF4 weight on Hopper's tensor cores: the loop that both directions share.
//
// Invariant: a sum is one chain over the contraction in steps of 16. What a step multiplies was copied whole and is seen by
// the tensor cores; a stage is written again only after the products of both warpgroups have read it.
//
// A block of two warpgroups makes 256 rows of the output by 128 columns, turned: W gives the left operand, 64 of its rows or
// columns to a warpgroup, and the 256 rows of activations are the right one. W goes from its codes straight into the
// registers of the left operand and never through shared memory, whose rate is what limits a product of two operands that
// lie there. The activations lie in a ring of stages, which asynchronous copies fill some steps of 64 ahead.
//
// While the tensor cores are at one step, each warp decodes the next into registers of its own, and the products of the
// next are issued before those of the last are waited for: the tensor cores go from one to the other. A step past the end
// multiplies zeros, so that steps come in pairs, each with registers of its own.
#pragma once
#include "nf4.cuh"
#include "tiles.cuh"
#include "wgmma.cuh"

#define HOPPER_M 256
#define HOPPER_N 128
// Stages of 38 KB: products of one step may be under way, another is decoded, and copies fill the other three.
#define DEPTH 5
#define AHEAD (DEPTH - 2)
#define ROW_COPIES (HOPPER_M * STEP_PIECES / THREADS)
#define ROWS_APART (THREADS / STEP_PIECES) // of the rows of which a thread copies a piece
#define N_TILES (HOPPER_N / TILE_N)        // of a step, in either direction: two by two in the backward
#define N_SCALES HOPPER_N

struct Stage {
    uint4 rows[HOPPER_M][STEP_PIECES];
    uint4 units[N_TILES][8][8];
    Split scales[N_SCALES];
    RawScale raw_scales[N_SCALES];
};
static_assert(DEPTH * sizeof(Stage) == 194560, "what the launch asks for");

extern __shared__ __align__(1024) Stage ring[];

// The registers of a step's left operand.
using LeftOperand = u32[4][4];

DEVICE int after(int stage) { return stage + 1 == DEPTH ? 0 : stage + 1; }

// Where piece `piece` of row `row` lies, as `right_operand` has it.
DEVICE int swizzled(int row, int piece) { return piece ^ row % 8; }

// The pieces of activations that a thread copies, step by step.
struct RowCopier {
    const bf16 *next;        // its piece of the block's first row, in the next step
    u32 offsets[ROW_COPIES]; // from there to its piece of each of its rows, the last of the matrix for those behind it
    int slot;

    __device__ __forceinline__ RowCopier(const bf16 *matrix, int row0, int n_rows, int width) {
        int first_row = threadIdx.x / STEP_PIECES, piece = threadIdx.x % STEP_PIECES;
        next = matrix + (u64)row0 * width + VECTOR * piece;
#pragma unroll
        for (int i = 0; i < ROW_COPIES; i++)
            offsets[i] = min(first_row + i * ROWS_APART, n_rows - 1 - row0) * width;
        slot = first_row * STEP_PIECES + swizzled(first_row, piece);
    }

    // Zeros where not `there`.
    __device__ __forceinline__ void copy(Stage &stage, bool there) {
#pragma unroll
        for (int i = 0; i < ROW_COPIES; i++)
            copy_async(stage.rows[i * ROWS_APART] + slot, next + offsets[i], there);
        next += there ? STEP : 0;
    }
};

// Begins a group of copies: the rows of a step, units of the step after it and scales of the one after that, as they are
// needed.
template <typename Weight> DEVICE void begin(Weight &weight, int step, int stage) {
    weight.copy_rows(ring[stage], step);
    weight.copy_units(ring[after(stage)], step + 1);
    weight.copy_scales(ring[after(after(stage))], step + 2);
    copies_commit();
}

// Begins the products of a step, whose stage `stage` is, and prepares the next in `next`.
template <typename Weight>
DEVICE void advance(float (&sum)[128], const LeftOperand &left, LeftOperand &next, Weight &weight, int step, int stage) {
    copies_wait<AHEAD - 1>();
    fence_for_products();
    __syncthreads(); // the step's rows are there, and the products of two steps ago are done in either warpgroup
    u64 right = right_operand(ring[stage].rows);
    products_begin();
#pragma unroll
    for (int i = 0; i < 4; i++)
        multiply_add_async(sum, left[i], right + RIGHT_STEP * i);
    products_commit();
    products_wait<1>();
    int second = after(stage), third = after(second), fourth = after(third);
    begin(weight, step + AHEAD, fourth);
    weight.make_scales(ring[third]);
    weight.decode(next, ring[second]);
}

// All sums of a block. `weight` copies what a step needs (`copy_rows`, `copy_units`, `copy_scales`: zeros past the end),
// makes scales of what it has copied itself, and decodes a step's left operand. Nothing is under way afterwards, but the
// other warps may still read the ring.
template <typename Weight> DEVICE void multiply(float (&sum)[128], Weight &weight, int n_steps) {
    weight.copy_units(ring[0], 0);
    weight.copy_scales(ring[0], 0);
    weight.copy_scales(ring[1], 1);
#pragma unroll
    for (int step = 0; step < AHEAD; step++)
        begin(weight, step, step);
    copies_wait<AHEAD - 1>();
    weight.make_scales(ring[0]);
    weight.make_scales(ring[1]);
    __syncthreads();
    LeftOperand even, odd;
    weight.decode(even, ring[0]);
    for (int step = 0, stage = 0; step < n_steps; step += 2) {
        advance(sum, even, odd, weight, step, stage);
        stage = after(stage);
        advance(sum, odd, even, weight, step + 1, stage);
        stage = after(stage);
    }
    products_wait<0>();
    copies_wait<0>();
}
