// Gradients of a LoRA pair: `dA [R, K] += dhᵀ · drop(x)`, `dB [N, R] += scale * dyᵀ · h`.
//
// `h, dh [M, R]` f32, `x [M, K]`, `dy [M, N]` bf16. On tensor cores as in `lora.cu`. The sum over M is made for parts of
// PART_ROWS rows, each stored, and then added in the parts' order: no atomics, and nothing depends on the card.
#include "dropout.cuh"

#define CHUNK 32      // of a contraction
#define COLUMNS 64    // of a block's output
#define PART_ROWS 512 // as in kernels/src/cuda/lora.rs

// The sum over one part of the rows: `parts[part] = hᵀ · drop(x)` with `h [M, R]`, `x [M, C]`, as `[R, C]`, or as `[C, R]`
// where ACROSS. One block makes 32 ranks by COLUMNS columns; its 4 warps share the rows.
template <bool ACROSS>
DEVICE void gradient(float *parts, const float *h, const bf16 *x, const Dropout &dropout, int m, int rank, int width) {
    constexpr int MI = 2;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int n_tiles = (rank + 16 * MI - 1) / (16 * MI);
    int r0 = blockIdx.x % n_tiles * 16 * MI, c0 = blockIdx.x / n_tiles * COLUMNS;
    int begin = blockIdx.y * PART_ROWS, end = min(m, begin + PART_ROWS);
    float sum[MI][8][4] = {};
    for (int m0 = begin + warp * CHUNK; m0 < end; m0 += N_WARPS * CHUNK)
#pragma unroll
        for (int step = 0; step < 2; step++) {
            int row = m0 + 8 * t + 4 * step;
            uint4 rows[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                rows[i] = kept_piece(x, row + i, m, c0 + 8 * g, width, dropout);
            u32 high[MI][4], low[MI][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int below = 0; below < 2; below++) {
                    float4 left = column_piece(h, row, m, r0 + 16 * i + g + 8 * below, rank);
                    Split first = split(left.x, left.y), second = split(left.z, left.w);
                    high[i][below] = first.high, high[i][2 + below] = second.high;
                    low[i][below] = first.low, low[i][2 + below] = second.low;
                }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 b0 = across(rows[0], rows[1], j), b1 = across(rows[2], rows[3], j);
#pragma unroll
                for (int i = 0; i < MI; i++) {
                    multiply_add(sum[i][j], high[i], b0, b1);
                    multiply_add(sum[i][j], low[i], b0, b1);
                }
            }
        }
    parts += (u64)blockIdx.y * rank * width;
    for_each_sum(sum, r0, c0, [&](int r, int column, const Values<VECTOR> &values) {
        if (r >= rank)
            return;
        if (!ACROSS && width % VECTOR == 0) {
            if (column < width)
                put(parts + (u64)r * width + column, values);
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (column + i < width)
                    parts[ACROSS ? (u64)(column + i) * rank + r : (u64)r * width + column + i] = values.at[i];
        }
    });
}

KERNEL(128) lora_da(float *parts, const float *dh, const bf16 *x, Dropout dropout, int m, int rank, int width) {
    gradient<false>(parts, dh, x, dropout, m, rank, width);
}

KERNEL(128) lora_db(float *parts, const float *h, const bf16 *dy, int m, int rank, int width) {
    gradient<true>(parts, h, dy, Dropout{}, m, rank, width);
}

// `gradients [len] += factor * (the sum of the parts, each [len])`.
KERNEL(256) lora_add_parts(float *gradients, const float *parts, float factor, u64 len, int n_parts) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len)
        return;
    float sum = 0.0f;
    for (int part = 0; part < n_parts; part++)
        sum += parts[part * len + i];
    gradients[i] += sum * factor;
}
