// Softmax cross-entropy of rows of logits, loss and gradient in one kernel.
//
// `losses [M] = log(sum(exp(logits))) - logits[label]`, 0 where the label is NO_LABEL;
// `dlogits [M, V] = loss_scale * (softmax - onehot)` in bf16, 0 in a row without a label; no gradient where `dlogits` is
// null. `logits [M, V]` f32 are read three times: the largest, the sum, the gradient; the host gives as many rows at a
// time as stay in L2. One block a row.
#include "common.cuh"

#define NO_LABEL 0xffffffffu

KERNEL(512) cross_entropy(float *losses, bf16 *dlogits, const float *logits, const u32 *labels, float loss_scale,
                          int n_vocab) {
    __shared__ float largest_of_warps[32], sums_of_warps[32];
    logits += (u64)blockIdx.x * n_vocab;
    if (dlogits)
        dlogits += (u64)blockIdx.x * n_vocab;
    u32 label = labels[blockIdx.x];
    if (label == NO_LABEL) { // the whole block: no barrier is missed
        if (threadIdx.x == 0)
            losses[blockIdx.x] = 0.0f;
        if (dlogits)
            for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
                dlogits[i] = 0;
        return;
    }
    float largest = MINUS_INFINITY;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
        largest = fmaxf(largest, logits[i]);
    largest = block_max(largest, largest_of_warps);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
        sum += exp_fast(logits[i] - largest);
    sum = block_sum(sum, sums_of_warps);
    if (threadIdx.x == 0)
        losses[blockIdx.x] = log2_fast(sum) * LN_2 - (logits[label] - largest);
    if (!dlogits)
        return;
    float factor = loss_scale / sum;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x) {
        float gradient = exp_fast(logits[i] - largest) * factor;
        dlogits[i] = to_bf16(i == label ? gradient - loss_scale : gradient);
    }
}
