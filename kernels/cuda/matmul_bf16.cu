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
// their sums are added in a fixed order, so that a row's result does not depend on M.
#include "product.cuh"

#define CHUNK 32     // of the contraction
#define FORWARD_N 32 // columns of a forward block
#define BACKWARD_K 64

template <int MI, typename Out>
DEVICE void forward(Out *y, const bf16 *x, const bf16 *w, int m, int n, int k, const Pair &pair) {
    __shared__ Sums<2 * MI> sums;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.y * 16 * MI, n0 = blockIdx.x * FORWARD_N;
    float sum[MI][4][4] = {};
    for (int k0 = warp * CHUNK; k0 < k; k0 += N_WARPS * CHUNK) {
        uint4 upper[MI], lower[MI];
#pragma unroll
        for (int i = 0; i < MI; i++) {
            upper[i] = row_piece(x, m0 + 16 * i + g, m, k0 + 8 * t, k);
            lower[i] = row_piece(x, m0 + 16 * i + g + 8, m, k0 + 8 * t, k);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint4 right = row_piece(w, n0 + 4 * g + j, n, k0 + 8 * t, k);
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
                for (int i = 0; i < MI; i++) {
                    u32 a[4] = {word(upper[i], 2 * step), word(lower[i], 2 * step), word(upper[i], 2 * step + 1),
                                word(lower[i], 2 * step + 1)};
                    multiply_add(sum[i][j], a, word(right, 2 * step), word(right, 2 * step + 1));
                }
        }
    }
    add_pair(sum, pair, m0, m, n0, n);
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums.at[warp][2 * i + e / 2][4 * (e % 2) + j][lane] = sum[i][j][e];
    __syncthreads();
    for (int group = warp; group < 2 * MI; group += N_WARPS) {
        int row = m0 + 16 * (group / 2) + g + 8 * (group % 2), column = n0 + 8 * t;
        Values<VECTOR> values = total(sums, group, lane);
        if (row >= m)
            continue;
        Out *to = y + (u64)row * n + column;
        if (n % VECTOR == 0) {
            if (column < n)
                put(to, values);
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (column + i < n)
                    put_one(to + i, values.at[i]);
        }
    }
}

template <int MI> DEVICE void backward(bf16 *dx, const bf16 *dy, const bf16 *w, int m, int n, int k) {
    __shared__ Sums<4 * MI> sums;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.y * 16 * MI, k0 = blockIdx.x * BACKWARD_K;
    float sum[MI][8][4] = {};
    for (int n0 = warp * CHUNK; n0 < n; n0 += N_WARPS * CHUNK) {
        uint4 upper[MI], lower[MI];
#pragma unroll
        for (int i = 0; i < MI; i++) {
            upper[i] = row_piece(dy, m0 + 16 * i + g, m, n0 + 8 * t, n);
            lower[i] = row_piece(dy, m0 + 16 * i + g + 8, m, n0 + 8 * t, n);
        }
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint4 rows[4];
#pragma unroll
            for (int r = 0; r < 4; r++)
                rows[r] = row_piece(w, n0 + 8 * t + 4 * step + r, n, k0 + 8 * g, k);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                // Two rows at one column make a register of the right operand.
                u32 half = j % 2 ? 0x7632 : 0x5410;
                u32 b0 = __byte_perm(word(rows[0], j / 2), word(rows[1], j / 2), half);
                u32 b1 = __byte_perm(word(rows[2], j / 2), word(rows[3], j / 2), half);
#pragma unroll
                for (int i = 0; i < MI; i++) {
                    u32 a[4] = {word(upper[i], 2 * step), word(lower[i], 2 * step), word(upper[i], 2 * step + 1),
                                word(lower[i], 2 * step + 1)};
                    multiply_add(sum[i][j], a, b0, b1);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums.at[warp][4 * i + e][j][lane] = sum[i][j][e];
    __syncthreads();
    for (int group = warp; group < 4 * MI; group += N_WARPS) {
        int e = group % 4, row = m0 + 16 * (group / 4) + g + 8 * (e / 2), column = k0 + 16 * t + 8 * (e % 2);
        Values<VECTOR> values = total(sums, group, lane);
        if (row >= m)
            continue;
        bf16 *to = dx + (u64)row * k + column;
        if (k % VECTOR == 0) {
            if (column >= k)
                continue;
            Values<VECTOR> old = load<VECTOR>(to);
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                values.at[i] += old.at[i];
            store(to, values);
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (column + i < k)
                    to[i] = to_bf16(to_f32(to[i]) + values.at[i]);
        }
    }
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
