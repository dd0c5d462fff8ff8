// LoRA (Hu et al. 2021) beside a linear: down to ranks, `h = drop(x) · Aᵀ` and `dh = scale * dy · B`, and the gradient of
// the input, `dx += drop'(dh · A)`. The other two: `y += scale * h · Bᵀ` is the end of the linear's own product (`add_pair`
// in `product.cuh`), the gradients of A and B are in `lora_gradients.cu`.
//
// `A [R, K]`, `B [N, R]`, `h, dh [M, R]` f32; `x, dx [M, K]`, `dy [M, N]` bf16.
//
// On tensor cores, f32 operands split in two bf16, so that nothing is lost against sums of f32. The orders of contractions
// and of output columns are free, as in `matmul_bf16.cu`: a lane (g = lane / 4, t = lane % 4) takes whole pieces of rows. A
// row's result does not depend on M.
#include "dropout.cuh"

#define CHUNK 32   // of a contraction
#define COLUMNS 64 // that a warp makes of dx

// `out [M, R] = factor * drop(x [M, C]) · W` with `W` as `A [R, C]`, or as `B [C, R]` where ACROSS. One block makes 16·MI
// rows by 8·NJ ranks; its 4 warps share the contraction. With pairs by row R is the largest rank, `w` the flat buffer, and
// the blocks of one pair follow those of another: each writes the rows that have its pair, as many ranks as that has.
template <int MI, int NJ, bool ACROSS>
DEVICE void down(float *out, const bf16 *x, const float *w, const Dropout &dropout, float factor, int m, int rank,
                 int width, const ByRow &by_row) {
    __shared__ float sums[N_WARPS][MI * NJ * 4][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.y * 16 * MI, r0 = blockIdx.x * 8 * NJ, stride = rank;
    u32 number = 0;
    if (by_row.of_row) {
        int n_rank_blocks = (rank + 8 * NJ - 1) / (8 * NJ);
        number = blockIdx.x / n_rank_blocks, r0 = blockIdx.x % n_rank_blocks * 8 * NJ;
        PairAt at = by_row.pairs[number];
        w += at.a, rank = at.rank;
        if (r0 >= rank || by_row.next<16 * MI>(m0, m, number) != number)
            return;
    }
    float sum[MI][NJ][4] = {};
    for (int k0 = warp * CHUNK; k0 < width; k0 += N_WARPS * CHUNK) {
        Left<MI> left;
        left.take(m0, [&](int row) { return kept_piece(x, row, m, k0 + 8 * t, width, dropout); });
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int j = 0; j < NJ; j++) {
                int k = k0 + 8 * t + 4 * step, r = r0 + 8 * j + g;
                float4 right = ACROSS ? column_piece(w, k, width, r, rank) : float_piece(w, r, rank, k, width);
                Split first = split(right.x, right.y), second = split(right.z, right.w);
                left.multiply(sum, j, step, first.high, second.high);
                left.multiply(sum, j, step, first.low, second.low);
            }
    }
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < NJ; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums[warp][(i * NJ + j) * 4 + e][lane] = sum[i][j][e];
    __syncthreads();
    for (int value = warp; value < MI * NJ * 4; value += N_WARPS) {
        int e = value % 4, fragment = value / 4;
        int row = m0 + 16 * (fragment / NJ) + g + 8 * (e / 2), r = r0 + 8 * (fragment % NJ) + 2 * t + e % 2;
        float total = sums[0][value][lane];
#pragma unroll
        for (int other = 1; other < N_WARPS; other++)
            total += sums[other][value][lane];
        if (r < rank && by_row.has(row, m, number))
            out[(u64)row * stride + r] = total * factor;
    }
}

KERNEL(128) lora_h_16(float *h, const bf16 *x, const float *a, Dropout dropout, int m, int rank, int width,
                       const PairAt *pairs, const u32 *of_row) {
    down<1, 1, false>(h, x, a, dropout, dropout.factor, m, rank, width, ByRow{pairs, of_row});
}

KERNEL(128) lora_h_32(float *h, const bf16 *x, const float *a, Dropout dropout, int m, int rank, int width,
                       const PairAt *pairs, const u32 *of_row) {
    down<2, 4, false>(h, x, a, dropout, dropout.factor, m, rank, width, ByRow{pairs, of_row});
}

KERNEL(128) lora_dh(float *dh, const bf16 *dy, const float *b, float scale, int m, int rank, int width) {
    down<2, 4, true>(dh, dy, b, Dropout{}, scale, m, rank, width, ByRow{});
}

// A warp makes 32 rows by COLUMNS columns, a block's warps different rows. Column c of n-fragment j is column 8c + j.
KERNEL(128) lora_dx(bf16 *dx, const float *dh, const float *a, Dropout dropout, int m, int rank, int width) {
    constexpr int MI = 2;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = (blockIdx.y * N_WARPS + warp) * 16 * MI, c0 = blockIdx.x * COLUMNS;
    float sum[MI][8][4] = {};
    for (int r = 4 * t; r - 4 * t < rank; r += 16) {
        u32 high[MI][4], low[MI][4];
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float4 left = float_piece(dh, m0 + 16 * i + g + 8 * below, m, r, rank);
                Split first = split(left.x, left.y), second = split(left.z, left.w);
                high[i][below] = first.high, high[i][2 + below] = second.high;
                low[i][below] = first.low, low[i][2 + below] = second.low;
            }
        float rows[4][8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 first = float_piece(a, r + i, rank, c0 + 8 * g, width);
            float4 second = float_piece(a, r + i, rank, c0 + 8 * g + 4, width);
            rows[i][0] = first.x, rows[i][1] = first.y, rows[i][2] = first.z, rows[i][3] = first.w;
            rows[i][4] = second.x, rows[i][5] = second.y, rows[i][6] = second.z, rows[i][7] = second.w;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            Split first = split(rows[0][j], rows[1][j]), second = split(rows[2][j], rows[3][j]);
#pragma unroll
            for (int i = 0; i < MI; i++) {
                multiply_add(sum[i][j], high[i], first.high, second.high);
                multiply_add(sum[i][j], high[i], first.low, second.low);
                multiply_add(sum[i][j], low[i], first.high, second.high);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = m0 + 16 * i + g + 8 * (e / 2), column = c0 + 16 * t + 8 * (e % 2);
            if (row >= m || column >= width)
                continue;
            u64 first = (u64)row * width + column;
            u32 bits = dropout.rate == 0.0f ? 0xff : kept_bits(dropout, first);
            Values<VECTOR> values;
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                values.at[j] = bits >> j & 1 ? sum[i][j][e] * dropout.factor : 0.0f;
            add_to_row(dx + (u64)row * width, values, column, width);
        }
}
