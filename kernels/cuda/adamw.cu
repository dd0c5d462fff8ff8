// AdamW (Loshchilov & Hutter 2019) on flat f32 buffers, and the sum of squares that clipping needs.
//
// Every operation is rounded by itself, in the CPU's order, so that `adamw` gives the CPU's bits; factors are made in
// double precision on the host and rounded once. `adamw`: `params, first, second [len] =`; a thread an element.
// `sum_squares`: `sums [blocks] =` in f64; block `b` takes the chunk `[b * chunk, (b + 1) * chunk)` of `values [len]`
// and adds in a fixed order; the host adds the blocks.
#include "common.cuh"

struct AdamwFactors {
    float gradient_scale;
    float decay;         // 1 - learning rate * weight decay
    float first_rest;    // 1 - beta1
    float second_decay;  // beta2
    float second_rest;   // 1 - beta2
    float step_size;     // learning rate / (1 - beta1^step)
    float second_root;   // sqrt(1 - beta2^step)
    float epsilon;
};

KERNEL(256) adamw(float *params, const float *grads, float *first_moment, float *second_moment, AdamwFactors by,
                  u64 len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len)
        return;
    float gradient = __fmul_rn(grads[i], by.gradient_scale);
    float first = first_moment[i], second = second_moment[i];
    first = __fadd_rn(first, __fmul_rn(by.first_rest, __fsub_rn(gradient, first)));
    second = __fadd_rn(__fmul_rn(by.second_decay, second), __fmul_rn(__fmul_rn(by.second_rest, gradient), gradient));
    float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(second), by.second_root), by.epsilon);
    params[i] = __fsub_rn(__fmul_rn(params[i], by.decay), __fdiv_rn(__fmul_rn(by.step_size, first), root));
    first_moment[i] = first;
    second_moment[i] = second;
}

KERNEL(256) sum_squares(double *sums, const float *values, u64 len, u64 chunk) {
    __shared__ double partial[32];
    u64 begin = blockIdx.x * chunk, end = begin + chunk < len ? begin + chunk : len;
    double sum = 0.0;
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x)
        sum += (double)values[i] * (double)values[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}
