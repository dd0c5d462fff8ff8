// Causal grouped-query attention within documents, forward (Dao 2023, FlashAttention-2): scores are never stored.
//
// `out [M, H, D] = softmax(scale * q · kᵀ) v`, `lse [M, H] = log(sum(exp(scale * q · k)))`; `q [M, H, D]`, `k, v
// [M, KV, D]` bf16, `lse` f32. Query head h reads key head `h / (H / KV)`. A row sees the keys of its document up to
// itself, with a window only the last `window` of them.
//
// A tile has at most 64 rows. One block a tile and head; a warp owns 16 rows and walks over the keys 32
// (D = 256: 16) at a time.
#include "attention.cuh"

#define ROWS (16 * N_WARPS)

template <int D, int KEYS>
DEVICE void forward(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const RowTile *tiles,
                    AttentionSizes sizes) {
    __shared__ __align__(16) Tile<ROWS, D> queries;
    __shared__ __align__(16) Tile<KEYS, D> keys, values;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    RowTile tile = tiles[blockIdx.x];
    int begin = tile.x, end = tile.y, document = tile.z;
    int head = blockIdx.y, kv_head = head / (sizes.n_heads / sizes.n_kv_heads);
    int stride = sizes.n_heads * D, kv_stride = sizes.n_kv_heads * D;
    k += kv_head * D;
    v += kv_head * D;
    queries.bring(q + head * D, begin, end, stride);
    // The first key that any row of the tile sees.
    int first_key = document;
    if (sizes.window > 0 && begin - sizes.window + 1 > document)
        first_key = begin - sizes.window + 1;
    int row[2] = {begin + warp * 16 + g, begin + warp * 16 + g + 8};
    float o[D / 8][4] = {}, largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};
    for (int key0 = first_key; key0 < end; key0 += KEYS) {
        if (key0 != first_key)
            __syncthreads(); // nobody reads the last tile any more
        keys.bring(k, key0, end, kv_stride);
        values.bring(v, key0, end, kv_stride);
        copies_done();
        __syncthreads();
        // Scores: rows by keys.
        float s[KEYS / 8][4] = {};
        add_scores(s, queries, warp * 16, keys);
        // The largest score so far; a row that sees no key yet keeps minus infinity.
        float new_largest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int key = key0 + 8 * n + 2 * t + e % 2, at = row[e / 2];
                bool seen = key <= at && (sizes.window == 0 || key > at - sizes.window);
                s[n][e] = seen ? s[n][e] * sizes.scale_log2 : MINUS_INFINITY;
                new_largest[e / 2] = fmaxf(new_largest[e / 2], s[n][e]);
            }
        float shift[2], shrink[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            new_largest[h] = fmaxf(new_largest[h], __shfl_xor_sync(0xffffffffu, new_largest[h], 1));
            new_largest[h] = fmaxf(new_largest[h], __shfl_xor_sync(0xffffffffu, new_largest[h], 2));
            shift[h] = new_largest[h] == MINUS_INFINITY ? 0.0f : new_largest[h];
            shrink[h] = exp2_fast(largest[h] - shift[h]);
            largest[h] = new_largest[h];
            sum[h] *= shrink[h];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] = exp2_fast(s[n][e] - shift[e / 2]);
                sum[e / 2] += s[n][e];
            }
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[d][e] *= shrink[e / 2];
        add_weighted<D>(o, s, values, 0);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        if (row[h] >= end)
            continue;
        float factor = 1.0f / sum[h];
        u32 *to = (u32 *)(out + (u64)row[h] * stride + head * D) + t;
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            to[4 * d] = to_bf16x2(o[d][2 * h] * factor, o[d][2 * h + 1] * factor);
        if (t == 0)
            lse[(u64)row[h] * sizes.n_heads + head] = (largest[h] + log2_fast(sum[h])) * LN_2;
    }
}

#define ATTENTION(D, KEYS)                                                                                            \
    KERNEL(128) attention_##D(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v,                    \
                              const RowTile *tiles, AttentionSizes sizes) {                                          \
        forward<D, KEYS>(out, lse, q, k, v, tiles, sizes);                                                            \
    }

ATTENTION(64, 32)
ATTENTION(96, 32)
ATTENTION(128, 32)
ATTENTION(256, 16)
