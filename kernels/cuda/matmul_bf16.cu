// Products with a weight `W [N, K]` in bf16 on tensor cores: the head, and linears that are not quantized.
//
// Forward:  `y [M, N] = x [M, K] · Wᵀ`, in bf16, with a LoRA pair `+ scale * h [M, R] · Bᵀ`; or in f32 as logits.
// Backward: `dx [M, K] += dy [M, N] · W`.
// `x, dy, dx` bf16, sums f32; any N and K, in whole 16-byte pieces where they are multiples of 8.
//
// As in `matmul_nf4.cu`: the orders of contractions and of output columns are free, so a lane (g = lane / 4, t = lane % 4)
// takes whole pieces of rows.
//   forward: contraction k = 8t.. of a chunk of 32; column c of n-fragment j is row n = 4c + j of W.
//   backward: contraction n = 8t.. of a chunk of 32; column c of n-fragment j is column k = 8c + j of W.
// One block makes 16·MI rows by one tile of columns (forward 32, backward 64); its 4 warps share the contraction and
// their sums are added in a fixed order, so that a row's result does not depend on M. Blocks that follow one another have
// the same columns: where there are many rows, W is read from memory once.
#include "product.cuh"

#define CHUNK 32     // of the contraction
#define FORWARD_N 32 // columns of a forward block
#define BACKWARD_K 64

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

template <int MI> DEVICE void backward(bf16 *dx, const bf16 *dy, const bf16 *w, int m, int n, int k) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.x * 16 * MI, k0 = blockIdx.y * BACKWARD_K;
    float sum[MI][8][4] = {};
    for (int n0 = warp * CHUNK; n0 < n; n0 += N_WARPS * CHUNK) {
        Left<MI> left;
        left.take(m0, [&](int row) { return row_piece(dy, row, m, n0 + 8 * t, n); });
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint4 rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++)
                rows[r] = row_piece(w, n0 + 8 * t + 4 * step + r, n, k0 + 8 * g, k);
#pragma unroll
            for (int j = 0; j < 8; j++)
                left.multiply(sum, j, step, across(rows[0], rows[1], j), across(rows[2], rows[3], j));
        }
    }
    for_each_sum(sum, m0, k0, [&](int row, int column, const Values<VECTOR> &values) {
        if (row < m)
            add_to_row(dx + (u64)row * k, values, column, k);
    });
}

KERNEL(128) matmul_bf16_16(bf16 *y, const bf16 *x, const bf16 *w, int m, int n, int k, const float *h, const float *b,
                           float scale, int rank) {
    forward<1>(y, x, w, m, n, k, Pair{h, b, scale, rank});
}

KERNEL(128) matmul_bf16_32(bf16 *y, const bf16 *x, const bf16 *w, int m, int n, int k, const float *h, const float *b,
                           float scale, int rank) {
    forward<2>(y, x, w, m, n, k, Pair{h, b, scale, rank});
}

KERNEL(128) logits_16(float *y, const bf16 *x, const bf16 *w, int m, int n, int k) {
    forward<1>(y, x, w, m, n, k, Pair{});
}

KERNEL(128) logits_32(float *y, const bf16 *x, const bf16 *w, int m, int n, int k) {
    forward<2>(y, x, w, m, n, k, Pair{});
}

KERNEL(128) matmul_bf16_backward_16(bf16 *dx, const bf16 *dy, const bf16 *w, int m, int n, int k) {
    backward<1>(dx, dy, w, m, n, k);
}

KERNEL(128) matmul_bf16_backward_32(bf16 *dx, const bf16 *dy, const bf16 *w, int m, int n, int k) {
    backward<2>(dx, dy, w, m, n, k);
}
