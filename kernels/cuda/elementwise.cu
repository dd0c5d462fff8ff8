// The residual stream and the conversions at the edge of the device.
//
// `add`: `y [len] += x`. `add_bias`: `y [M, N] += bias [N]` in every row. `narrow`: f32 to bf16, rounded to nearest
// even. `widen`: bf16 to f32, exact. A thread takes 8 neighbours in one access, the last ones singly.
#include "common.cuh"

template <int N> DEVICE void add_part(bf16 *y, const bf16 *x) {
    Values<N> sum = load<N>(y), term = load<N>(x);
#pragma unroll
    for (int j = 0; j < N; j++)
        sum.at[j] += term.at[j];
    store(y, sum);
}

KERNEL(256) add(bf16 *y, const bf16 *x, u64 len) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i + VECTOR <= len)
        add_part<VECTOR>(y + i, x + i);
    else
        for (; i < len; i++)
            add_part<1>(y + i, x + i);
}

// One block a row.
KERNEL(256) add_bias(bf16 *y, const float *bias, int n) {
    y += (u64)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[i] = to_bf16(to_f32(y[i]) + bias[i]);
}

KERNEL(256) narrow(bf16 *to, const float *from, u64 len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len)
        to[i] = to_bf16(from[i]);
}

KERNEL(256) widen(float *to, const bf16 *from, u64 len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len)
        to[i] = to_f32(from[i]);
}
