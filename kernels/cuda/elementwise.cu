// The residual stream, and biases.
//
// `add`: `y [len] += x`; a thread takes 8 neighbours in one access, the last ones singly. `add_bias`: `y [M, N] +=
// bias [N]` in every row; one block a row. Activations are bf16, the bias f32.
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

KERNEL(256) add_bias(bf16 *y, const float *bias, int n) {
    y += (u64)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[i] = to_bf16(to_f32(y[i]) + bias[i]);
}
