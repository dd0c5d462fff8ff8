// Softmax cross-entropy of rows of logits, loss and gradient in one kernel, and the way of rows back to their places.
//
// `cross_entropy`: `losses[rows] = log(sum(exp(logits))) - logits[labels]`; `dlogits [n, V] = loss_scale * (softmax -
// onehot)` in bf16, none where `dlogits` is null. `logits [n, V]` f32 are read twice: for the largest and the sum, and for
// the gradient. One block a row.
// `put_rows`: `to[rows] = from`, `from [n, C]` bf16. One block a row; a thread takes 8 (or 1) neighbours at a time.
//
// `rows, labels [n]` u32: the rows of a step that have a label. The host has checked that each label is below V.
#include "common.cuh"

KERNEL(512) cross_entropy(float *losses, bf16 *dlogits, const float *logits, const u32 *rows, const u32 *labels,
                          float loss_scale, int n_vocab) {
    __shared__ float largest_of_warps[32], sums_of_warps[32];
    logits += (u64)blockIdx.x * n_vocab;
    u32 label = labels[blockIdx.x];
    // A thread's sum is relative to the largest it has met.
    float largest_here = MINUS_INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x) {
        float logit = logits[i], larger = fmaxf(largest_here, logit);
        sum = sum * exp_fast(largest_here - larger) + exp_fast(logit - larger);
        largest_here = larger;
    }
    float largest = block_max(largest_here, largest_of_warps);
    sum = block_sum(sum * exp_fast(largest_here - largest), sums_of_warps);
    if (threadIdx.x == 0)
        losses[rows[blockIdx.x]] = log2_fast(sum) * LN_2 - (logits[label] - largest);
    if (!dlogits)
        return;
    dlogits += (u64)blockIdx.x * n_vocab;
    float factor = loss_scale / sum;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x) {
        float gradient = exp_fast(logits[i] - largest) * factor;
        dlogits[i] = to_bf16(i == label ? gradient - loss_scale : gradient);
    }
}

template <int N> DEVICE void put_row(bf16 *to, const bf16 *from, const u32 *rows, int width) {
    to += (u64)rows[blockIdx.x] * width;
    from += (u64)blockIdx.x * width;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N)
        store(to + i, load<N>(from + i));
}

KERNEL(256) put_rows(bf16 *to, const bf16 *from, const u32 *rows, int width) { put_row<VECTOR>(to, from, rows, width); }

// Any width.
KERNEL(256) put_rows_narrow(bf16 *to, const bf16 *from, const u32 *rows, int width) {
    put_row<1>(to, from, rows, width);
}
