// RMSNorm (Zhang & Sennrich 2019), forward and backward to the input; the weight is frozen.
//
// Forward:  `rstd [M] = 1 / sqrt(mean(x²) + epsilon)`, `out [M, W] = x * rstd * (weight + offset)`.
// With a sum before: `y [M, W] += x`, rounded, and the same of `y`: bit for bit what the two do one after the other.
// Backward: with `g = dy * (weight + offset)`: `dx [M, W] += rstd * (g - x * rstd² * mean(g * x))`.
// `x, out, dy, dx` are bf16, `weight [W]` and `rstd` f32. One block a row; a thread takes 8 (or 1) neighbours at a
// time and reads the row twice: the second time from L1.
#include "common.cuh"

// The second half of a row's forward: each thread reads what it has read, or written, before.
template <int N>
DEVICE void norm_row(bf16 *out, float *rstd, const bf16 *x, const float *weight, float sum, float *partial,
                     float epsilon, float offset, int width) {
    float factor = 1.0f / sqrtf(block_sum(sum, partial) / (float)width + epsilon);
    if (threadIdx.x == 0)
        rstd[blockIdx.x] = factor;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> values = load<N>(x + i);
#pragma unroll
        for (int j = 0; j < N; j++)
            values.at[j] *= factor * (weight[i + j] + offset);
        store(out + i, values);
    }
}

template <int N>
DEVICE void forward_row(bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon, float offset,
                        int width) {
    __shared__ float partial[32];
    out += (u64)blockIdx.x * width;
    x += (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> values = load<N>(x + i);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += values.at[j] * values.at[j];
    }
    norm_row<N>(out, rstd, x, weight, sum, partial, epsilon, offset, width);
}

template <int N>
DEVICE void add_forward_row(bf16 *y, bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon,
                            float offset, int width) {
    __shared__ float partial[32];
    y += (u64)blockIdx.x * width;
    out += (u64)blockIdx.x * width;
    x += (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> values = load<N>(y + i), added = load<N>(x + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            values.at[j] = to_f32(to_bf16(values.at[j] + added.at[j]));
            sum += values.at[j] * values.at[j];
        }
        store(y + i, values);
    }
    norm_row<N>(out, rstd, y, weight, sum, partial, epsilon, offset, width);
}

template <int N>
DEVICE void backward_row(bf16 *dx, const bf16 *dy, const bf16 *x, const float *rstd, const float *weight,
                         float offset, int width) {
    __shared__ float partial[32];
    u64 row = (u64)blockIdx.x * width;
    dx += row;
    dy += row;
    x += row;
    float sum = 0.0f;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> inputs = load<N>(x + i), gradients = load<N>(dy + i);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += gradients.at[j] * (weight[i + j] + offset) * inputs.at[j];
    }
    float factor = rstd[blockIdx.x];
    float shared_part = block_sum(sum, partial) / (float)width * factor * factor;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> inputs = load<N>(x + i), gradients = load<N>(dy + i), out = load<N>(dx + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float g = gradients.at[j] * (weight[i + j] + offset);
            out.at[j] += factor * (g - inputs.at[j] * shared_part);
        }
        store(dx + i, out);
    }
}

KERNEL(256) rms_norm(bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon, float offset,
                     int width) {
    forward_row<VECTOR>(out, rstd, x, weight, epsilon, offset, width);
}

// Any width.
KERNEL(256) rms_norm_narrow(bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon, float offset,
                            int width) {
    forward_row<1>(out, rstd, x, weight, epsilon, offset, width);
}

KERNEL(256) add_rms_norm(bf16 *y, bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon,
                         float offset, int width) {
    add_forward_row<VECTOR>(y, out, rstd, x, weight, epsilon, offset, width);
}

// Any width.
KERNEL(256) add_rms_norm_narrow(bf16 *y, bf16 *out, float *rstd, const bf16 *x, const float *weight, float epsilon,
                                float offset, int width) {
    add_forward_row<1>(y, out, rstd, x, weight, epsilon, offset, width);
}

KERNEL(256) rms_norm_backward(bf16 *dx, const bf16 *dy, const bf16 *x, const float *rstd, const float *weight,
                              float offset, int width) {
    backward_row<VECTOR>(dx, dy, x, rstd, weight, offset, width);
}

// Any width.
KERNEL(256) rms_norm_backward_narrow(bf16 *dx, const bf16 *dy, const bf16 *x, const float *rstd,
                                     const float *weight, float offset, int width) {
    backward_row<1>(dx, dy, x, rstd, weight, offset, width);
}
