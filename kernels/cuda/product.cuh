// What products on tensor cores share: fragments, pieces of rows, and the sums of a block's warps.
//
// Invariant: the sums of warps are added in their order. A product's block has `N_WARPS` warps.
#pragma once
#include "common.cuh"

#define N_WARPS 4

DEVICE u32 word(const uint4 &unit, int index) {
    return index == 0 ? unit.x : index == 1 ? unit.y : index == 2 ? unit.z : unit.w;
}

// `c += a · b`: 16 by 16 times 16 by 8.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 8 neighbours from `column` of row `row`, which is all within the row and aligned; zeros where there is no such row.
DEVICE uint4 inner_piece(const bf16 *matrix, int row, int n_rows, int column, int width) {
    if (row >= n_rows)
        return uint4{0, 0, 0, 0};
    return *(const uint4 *)(matrix + (u64)row * width + column);
}

// The same for any width: zeros behind the end of the row. Rows of a width that is no multiple of 8 are not aligned.
DEVICE uint4 row_piece(const bf16 *matrix, int row, int n_rows, int column, int width) {
    uint4 piece = {0, 0, 0, 0};
    if (row >= n_rows || column >= width)
        return piece;
    if (width % VECTOR == 0)
        return inner_piece(matrix, row, n_rows, column, width);
    const bf16 *from = matrix + (u64)row * width + column;
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (column + i < width)
            words[i / 2] |= (u32)from[i] << (16 * (i % 2));
    piece.x = words[0], piece.y = words[1], piece.z = words[2], piece.w = words[3];
    return piece;
}

// Where the warps' sums meet: groups of 8 output columns that a lane writes in one piece.
template <int GROUPS> struct Sums {
    float at[N_WARPS][GROUPS][VECTOR][32];
};

// The sum of all warps, always in the order of the warps.
template <int GROUPS> DEVICE Values<VECTOR> total(const Sums<GROUPS> &sums, int group, int lane) {
    Values<VECTOR> values;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        float sum = sums.at[0][group][i][lane];
#pragma unroll
        for (int warp = 1; warp < N_WARPS; warp++)
            sum += sums.at[warp][group][i][lane];
        values.at[i] = sum;
    }
    return values;
}
