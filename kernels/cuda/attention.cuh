// What attention's kernels over a step's own rows share: their sizes, their tiles of rows, and how tiles reach shared memory
// and fragments.
//
// Invariant: the 16-byte pieces of a row in shared memory are permuted by the row's number, so that the eight rows that
// `ldmatrix` reads lie in different banks; only `Tile` knows how.
#pragma once
#include "product.cuh"

#define PIECE 8 // elements of 16 bytes

// What a block makes: rows `[x, y)` of the document whose rows are `[z, w)`.
typedef uint4 RowTile;

struct AttentionSizes {
    float scale;
    float scale_log2; // scale * log2(e): exponentials are taken to the base 2
    int n_heads;
    int n_kv_heads;
    int window; // 0: none
};

DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory past the registers; `n_read` 0 fills with zeros.
DEVICE void copy_piece(bf16 *to, const bf16 *from, int n_read) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(n_read)
                 : "memory");
}

DEVICE void copies_done() {
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// Four 8 by 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 (&to)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

DEVICE void load_transposed(u32 (&to)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

// `N` rows of `D` elements in shared memory.
template <int N, int D> struct Tile {
    bf16 at[N * D];

    // Rows of a multiple of 64 elements all begin at the same bank, rows of 96 at one of two.
    __device__ __forceinline__ bf16 *piece(int row, int index) {
        int permuted = D % 64 == 0 ? index ^ row % 8 : index ^ row / 2 % 4;
        return at + row * D + permuted * PIECE;
    }

    // Begins to bring rows `[first, first + N)` of one head; zeros from `end` on.
    __device__ __forceinline__ void bring(const bf16 *from, int first, int end, int row_stride) {
        for (int i = threadIdx.x; i < N * (D / PIECE); i += blockDim.x) {
            int row = i / (D / PIECE), index = i % (D / PIECE);
            bool there = first + row < end;
            // An address that is not read is still one that exists.
            const bf16 *source = from + (u64)(there ? first + row : first) * row_stride + index * PIECE;
            copy_piece(piece(row, index), source, there ? 16 : 0);
        }
    }
};

// `s += own · othersᵀ`: the 16 rows of `own` from `row0` on.
template <int D, int ROWS, int OTHERS>
DEVICE void add_scores(float (&s)[OTHERS / 8][4], Tile<ROWS, D> &own, int row0, Tile<OTHERS, D> &others) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        u32 a[4];
        load_matrices(a, own.piece(row0 + lane % 16, 2 * d + lane / 16));
#pragma unroll
        for (int n = 0; n < OTHERS / 16; n++) {
            u32 b[4];
            load_matrices(b, others.piece(16 * n + lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
            multiply_add(s[2 * n], a, b[0], b[1]);
            multiply_add(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// `sums += weights · others`, the columns from 16 `chunk0` on. The weights are where this product wants them: sums of one
// product are the left operand of the next.
template <int COLUMNS, int OTHERS, int D>
DEVICE void add_weighted(float (&sums)[COLUMNS / 8][4], const float (&weights)[OTHERS / 8][4], Tile<OTHERS, D> &others,
                         int chunk0) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < OTHERS / 16; n++) {
        u32 a[4] = {to_bf16x2(weights[2 * n][0], weights[2 * n][1]), to_bf16x2(weights[2 * n][2], weights[2 * n][3]),
                    to_bf16x2(weights[2 * n + 1][0], weights[2 * n + 1][1]),
                    to_bf16x2(weights[2 * n + 1][2], weights[2 * n + 1][3])};
#pragma unroll
        for (int d = 0; d < COLUMNS / 16; d++) {
            u32 b[4];
            load_transposed(b, others.piece(16 * n + lane % 16, 2 * (chunk0 + d) + lane / 16));
            multiply_add(sums[2 * d], a, b[0], b[1]);
            multiply_add(sums[2 * d + 1], a, b[2], b[3]);
        }
    }
}
