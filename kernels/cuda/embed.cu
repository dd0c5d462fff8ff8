// Embedding: `out [M, C] = scale * table[ids]`, `table [V, C]` bf16.
//
// The host has checked that every id is below V. One block a row; a thread takes 8 (or 1) neighbours at a time.
#include "common.cuh"

template <int N> DEVICE void embed_row(bf16 *out, const u32 *ids, const bf16 *table, float scale, int width) {
    out += (u64)blockIdx.x * width;
    table += (u64)ids[blockIdx.x] * width;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Values<N> values = load<N>(table + i);
#pragma unroll
        for (int j = 0; j < N; j++)
            values.at[j] *= scale;
        store(out + i, values);
    }
}

KERNEL(256) embed(bf16 *out, const u32 *ids, const bf16 *table, float scale, int width) {
    embed_row<VECTOR>(out, ids, table, scale, width);
}

// Any width.
KERNEL(256) embed_narrow(bf16 *out, const u32 *ids, const bf16 *table, float scale, int width) {
    embed_row<1>(out, ids, table, scale, width);
}
