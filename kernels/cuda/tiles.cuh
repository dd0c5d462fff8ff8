// Products of many rows in tiles: which block makes which tile, and the loop that copies some steps of the contraction ahead
// of the tensor cores.
//
// Invariant: what a step multiplies was copied whole; a stage is written again only after all warps have read it. A block
// has THREADS threads, and its output 128 rows.
#pragma once
#include "pipeline.cuh"
#include "product.cuh"

#define BLOCK_M 128
#define THREADS 256
#define STEP 64 // of the contraction
#define STEP_PIECES (STEP / VECTOR)
#define BAND 16 // rows of blocks, see `place`

extern __shared__ __align__(16) unsigned char stage_bytes[];

// Which block makes which tile: those that follow one another, and so run together, make bands of BAND rows of tiles, so
// that both operands are read again while they are still in the L2 cache. A tile has `ROWS` rows.
template <int ROWS> DEVICE int2 place(int m, int n_column_blocks) {
    int n_row_blocks = (m + ROWS - 1) / ROWS, band = blockIdx.x / (BAND * n_column_blocks);
    int height = min(BAND, n_row_blocks - band * BAND), within = blockIdx.x - band * BAND * n_column_blocks;
    return int2{band * BAND + within % height, within / height};
}

// Where piece `piece` of row `row` lies: those that lanes g, t and g + 1, t take at once are at 8 different places.
DEVICE int row_slot(int row, int piece) { return piece ^ (row % 2 * 4); }

// Begins to copy rows row0.. of a matrix, of each 8·PIECES columns; zeros where there are none. Piece p of row r goes to
// `slot(r, p)` of its row. A width that is no multiple of 8 leaves rows that are not aligned, which are copied at once.
template <bool ANY_WIDTH, int ROWS, int PIECES, typename Slot>
DEVICE void copy_rows(uint4 (&to)[ROWS][PIECES], const Slot &slot, const bf16 *matrix, int row0, int n_rows, int column0,
                      int width) {
    int first_row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES, column = column0 + VECTOR * piece;
    if (ANY_WIDTH && width % VECTOR != 0) {
#pragma unroll 1 // it is rare: registers matter more
        for (int row = first_row; row < ROWS; row += THREADS / PIECES)
            to[row][slot(row, piece)] = row_piece(matrix, row0 + row, n_rows, column, width);
        return;
    }
#pragma unroll
    for (int row = first_row; row < first_row + ROWS; row += THREADS / PIECES) {
        bool there = row0 + row < n_rows && (!ANY_WIDTH || column < width);
        copy_async(&to[row][slot(row, piece)], there ? matrix + (u64)(row0 + row) * width + column : matrix, there);
    }
}

// The loop over the contraction. `copy(stage, step)` begins the copies of a step, `multiply(stage)` is for when all threads'
// copies are there. With AHEAD, `copy_ahead` begins what is copied one step before the rest, and each thread makes of its
// own with `make` what the others read in the step after.
template <int DEPTH, bool AHEAD, typename Stage, typename Copy, typename CopyAhead, typename Make, typename Multiply>
DEVICE void pipeline(int n_steps, const Copy &copy, const CopyAhead &copy_ahead, const Make &make,
                     const Multiply &multiply) {
    Stage *stages = (Stage *)stage_bytes;
    // One group for each step; that of step s holds what is ahead of s + 1.
    auto begin = [&](int step) {
        if (step < n_steps)
            copy(stages[step % DEPTH], step);
        if (AHEAD && step + 1 < n_steps)
            copy_ahead(stages[(step + 1) % DEPTH], step + 1);
        copies_commit();
    };
    if (AHEAD && 0 < n_steps)
        copy_ahead(stages[0], 0);
#pragma unroll
    for (int step = 0; step < DEPTH - 1; step++)
        begin(step);
    if (AHEAD) {
        copies_wait<DEPTH - 2>();
        if (0 < n_steps)
            make(stages[0], 0);
    }
    for (int step = 0; step < n_steps; step++) {
        copies_wait<DEPTH - 2>();
        __syncthreads();
        begin(step + DEPTH - 1);
        if (AHEAD && step + 1 < n_steps)
            make(stages[(step + 1) % DEPTH], step + 1);
        multiply(stages[step % DEPTH]);
    }
}
