// Products with a weight `W [N, K]` in bf16 on tensor cores: the head, and linears that are not quantized. The logits of the
// loss, and the backward, are in `matmul_bf16_tiles.cu`.
//
// `y [M, N] = x [M, K] · Wᵀ`, in bf16, with LoRA `+ scale * h [M, R] · Bᵀ` (see `Pair`); or in f32 as logits.
// `x` bf16, sums f32; any N and K, in whole 16-byte pieces where they are multiples of 8.
//
// The orders of contractions and of output columns are free, so a lane (g = lane / 4, t = lane % 4) takes whole pieces of
// rows: contraction k = 8t.. of a chunk of 32; column c of n-fragment j is row n = 4c + j of W.
// One block makes 16·MI rows by 32 columns; its 4 warps share the contraction and their sums are added in a fixed order, so
// that a row's result does not depend on M. Blocks that follow one another have the same columns: where there are many
// rows, W is read from memory once.
#include "product.cuh"

#define CHUNK 32     // of the contraction
#define FORWARD_N 32 // columns of a forward block

template <int MI, typename Out>
DEVICE void forward(Out *y, const bf16 *x, const bf16 *w, int m, int n, int k, const Pair &pair) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.x * 16 * MI, n0 = blockIdx.y * FORWARD_N;
    float sum[MI][4][4] = {};
    for (int k0 = warp * CHUNK; k0 < k; k0 += N_WARPS * CHUNK) {
        Left<MI> left;
        left.take(m0, [&](int row) { return row_piece(x, row, m, k0 + 8 * t, k); });
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint4 right = row_piece(w, n0 + 4 * g + j, n, k0 + 8 * t, k);
#pragma unroll
            for (int step = 0; step < 2; step++)
                left.multiply(sum, j, step, word(right, 2 * step), word(right, 2 * step + 1));
        }
    }
    add_pair(sum, pair, m0, m, n0, n);
    write_sums(y, sum, m0, m, n0, n);
}

KERNEL(128) matmul_bf16_16(bf16 *y, const bf16 *x, const bf16 *w, int m, int n, int k, const float *h, const float *b,
                           float scale, int rank, const PairAt *pairs, const u32 *of_row) {
    forward<1>(y, x, w, m, n, k, Pair{h, b, scale, rank, {pairs, of_row}});
}

KERNEL(128) matmul_bf16_32(bf16 *y, const bf16 *x, const bf16 *w, int m, int n, int k, const float *h, const float *b,
                           float scale, int rank, const PairAt *pairs, const u32 *of_row) {
    forward<2>(y, x, w, m, n, k, Pair{h, b, scale, rank, {pairs, of_row}});
}

KERNEL(128) logits_16(float *y, const bf16 *x, const bf16 *w, int m, int n, int k) {
    forward<1>(y, x, w, m, n, k, Pair{});
}

KERNEL(128) logits_32(float *y, const bf16 *x, const bf16 *w, int m, int n, int k) {
    forward<2>(y, x, w, m, n, k, Pair{});
}
