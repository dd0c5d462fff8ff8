// Gated feed-forward (Shazeer 2020), forward and backward: `out = activation(gate) * up`.
//
// Both activations are `g * sigmoid(u(g))`: `u = g` for SiLU, `u = 2 sqrt(2/pi) (g + 0.044715 g³)` for the tanh GELU.
// With `s = sigmoid(u)`: `dup = dout * g * s`, `dgate = dout * up * (s + g * s * (1 - s) * u'(g))`.
// The backward puts each gradient in the place of what it is the gradient of.
// All tensors `[M, F]` bf16, read as `[len]`. A thread takes 8 neighbours in one access, the last ones singly.
#include "common.cuh"

// `u(g)` and its derivative.
struct Silu {
    DEVICE void inner(float g, float &u, float &slope) {
        u = g;
        slope = 1.0f;
    }
};

struct GeluTanh {
    DEVICE void inner(float g, float &u, float &slope) {
        const float FACTOR = 1.595769f, CUBIC = 0.044715f; // 2 sqrt(2/pi), and the cubic term
        float square = g * g;
        u = FACTOR * g * (1.0f + CUBIC * square);
        slope = FACTOR * (1.0f + 3.0f * CUBIC * square);
    }
};

template <typename Activation, int N> DEVICE void forward_part(bf16 *out, const bf16 *gate, const bf16 *up) {
    Values<N> g = load<N>(gate), values = load<N>(up);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float u, slope;
        Activation::inner(g.at[j], u, slope);
        values.at[j] *= g.at[j] * sigmoid(u);
    }
    store(out, values);
}

template <typename Activation, int N>
DEVICE void backward_part(bf16 *gate, bf16 *up, const bf16 *dout) {
    Values<N> g = load<N>(gate), values = load<N>(up), gradient = load<N>(dout), to_gate, to_up;
#pragma unroll
    for (int j = 0; j < N; j++) {
        float u, slope;
        Activation::inner(g.at[j], u, slope);
        float s = sigmoid(u);
        to_up.at[j] = gradient.at[j] * g.at[j] * s;
        to_gate.at[j] = gradient.at[j] * values.at[j] * (s + g.at[j] * s * (1.0f - s) * slope);
    }
    store(gate, to_gate);
    store(up, to_up);
}

template <typename Activation> DEVICE void forward(bf16 *out, const bf16 *gate, const bf16 *up, u64 len) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i + VECTOR <= len)
        forward_part<Activation, VECTOR>(out + i, gate + i, up + i);
    else
        for (; i < len; i++)
            forward_part<Activation, 1>(out + i, gate + i, up + i);
}

template <typename Activation>
DEVICE void backward(bf16 *gate, bf16 *up, const bf16 *dout, u64 len) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    if (i + VECTOR <= len)
        backward_part<Activation, VECTOR>(gate + i, up + i, dout + i);
    else
        for (; i < len; i++)
            backward_part<Activation, 1>(gate + i, up + i, dout + i);
}

KERNEL(256) gated_silu(bf16 *out, const bf16 *gate, const bf16 *up, u64 len) { forward<Silu>(out, gate, up, len); }

KERNEL(256) gated_gelu_tanh(bf16 *out, const bf16 *gate, const bf16 *up, u64 len) {
    forward<GeluTanh>(out, gate, up, len);
}

KERNEL(256) gated_silu_backward(bf16 *gate, bf16 *up, const bf16 *dout, u64 len) {
    backward<Silu>(gate, up, dout, len);
}

KERNEL(256) gated_gelu_tanh_backward(bf16 *gate, bf16 *up, const bf16 *dout, u64 len) {
    backward<GeluTanh>(gate, up, dout, len);
}
