// Causal grouped-query attention within documents, backward (Dao 2023, FlashAttention-2): weights are recomputed from the
// scores and `lse`, and never stored.
//
// With `P = exp(scale * q · kᵀ - lse)`, `dP = dout · vᵀ`, `delta [M, H] = rowsum(dout * out)` and `dS = P (dP - delta)`:
// `dq [M, H, D] = scale * dS · k`, `dk [M, KV, D] = scale * dSᵀ · q`, `dv [M, KV, D] = Pᵀ · dout`, the last two summed over
// the query heads of a key head. `q, k, v, out, dout, dq, dk, dv` bf16, `lse, delta` f32.
//
// Two kernels, so that no sum needs atomics: one block a tile of keys and key head walks over the group's heads in their
// order, in each over the queries that see the tile; one block a tile of queries and head walks over the keys they see. A
// tile has at most 64 rows (D = 256: 32). A warp owns 16 of them; at D = 256, where the sums of a whole row would not fit
// in registers, two warps share 16 rows, make their scores twice and half of their columns each.
#include "attention.cuh"

// Warps that share 16 rows, and what follows from that.
#define SHARERS(D) ((D) > 128 ? 2 : 1)
#define ROWS(D) (16 * N_WARPS / SHARERS(D))
#define COLUMNS(D) ((D) / SHARERS(D))

// Turns a score into its weight, and `dP` into `dS`.
DEVICE void weigh(float &score, float &gradient, int query, int key, float lse, float delta, const AttentionSizes &sizes) {
    bool seen = key <= query && (sizes.window == 0 || key > query - sizes.window);
    score = seen ? exp2_fast(score * sizes.scale_log2 - lse * LOG2_E) : 0.0f;
    gradient = score * (gradient - delta);
}

// A lane's two rows of `values`, 16 rows from `row0` on; none from `end` on.
template <int COLUMNS>
DEVICE void write(bf16 *to, const float (&values)[COLUMNS / 8][4], float factor, int row0, int end, int row_stride) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = row0 + g + 8 * h;
        if (row >= end)
            continue;
        u32 *at = (u32 *)(to + (u64)row * row_stride) + t;
#pragma unroll
        for (int d = 0; d < COLUMNS / 8; d++)
            at[4 * d] = to_bf16x2(values[d][2 * h] * factor, values[d][2 * h + 1] * factor);
    }
}

template <int D, int QUERIES>
DEVICE void key_gradients(bf16 *dk, bf16 *dv, const bf16 *dout, const float *lse, const float *delta, const bf16 *q,
                          const bf16 *k, const bf16 *v, const RowTile *tiles, AttentionSizes sizes) {
    __shared__ __align__(16) Tile<ROWS(D), D> keys, values;
    __shared__ __align__(16) Tile<QUERIES, D> queries, douts;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int row0 = warp / SHARERS(D) * 16, column0 = warp % SHARERS(D) * COLUMNS(D);
    RowTile tile = tiles[blockIdx.x];
    int begin = tile.x, end = tile.y, query_end = tile.w;
    // One past the last query that sees any key of the tile.
    if (sizes.window > 0 && end - 1 + sizes.window < query_end)
        query_end = end - 1 + sizes.window;
    int kv_head = blockIdx.y, group = sizes.n_heads / sizes.n_kv_heads;
    int stride = sizes.n_heads * D, kv_stride = sizes.n_kv_heads * D;
    keys.bring(k + kv_head * D, begin, end, kv_stride);
    values.bring(v + kv_head * D, begin, end, kv_stride);
    float dk_sums[COLUMNS(D) / 8][4] = {}, dv_sums[COLUMNS(D) / 8][4] = {};
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int query0 = begin; query0 < query_end; query0 += QUERIES) {
            queries.bring(q + head * D, query0, query_end, stride);
            douts.bring(dout + head * D, query0, query_end, stride);
            copies_done();
            __syncthreads();
            // Keys by queries. Queries from `query_end` on are zeros and add nothing, whatever their weight.
            float p[QUERIES / 8][4] = {}, ds[QUERIES / 8][4] = {};
            add_scores(p, keys, row0, queries);
            add_scores(ds, values, row0, douts);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int query = query0 + 8 * n + 2 * t + c;
                    bool there = query < query_end;
                    u64 at = (u64)query * sizes.n_heads + head;
                    float lse_here = there ? lse[at] : 0.0f, delta_here = there ? delta[at] : 0.0f;
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        weigh(p[n][2 * h + c], ds[n][2 * h + c], query, begin + row0 + g + 8 * h, lse_here, delta_here,
                              sizes);
                }
            add_weighted<COLUMNS(D)>(dv_sums, p, douts, column0 / 16);
            add_weighted<COLUMNS(D)>(dk_sums, ds, queries, column0 / 16);
            __syncthreads(); // nobody reads the tiles of queries any more
        }
    write<COLUMNS(D)>(dk + kv_head * D + column0, dk_sums, sizes.scale, begin + row0, end, kv_stride);
    write<COLUMNS(D)>(dv + kv_head * D + column0, dv_sums, 1.0f, begin + row0, end, kv_stride);
}

template <int D, int KEYS>
DEVICE void query_gradients(bf16 *dq, const bf16 *dout, const float *lse, const float *delta, const bf16 *q,
                            const bf16 *k, const bf16 *v, const RowTile *tiles, AttentionSizes sizes) {
    __shared__ __align__(16) Tile<ROWS(D), D> queries, douts;
    __shared__ __align__(16) Tile<KEYS, D> keys, values;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int row0 = warp / SHARERS(D) * 16, column0 = warp % SHARERS(D) * COLUMNS(D);
    RowTile tile = tiles[blockIdx.x];
    int begin = tile.x, end = tile.y, first_key = tile.z;
    if (sizes.window > 0 && begin - sizes.window + 1 > first_key)
        first_key = begin - sizes.window + 1;
    int head = blockIdx.y, kv_head = head / (sizes.n_heads / sizes.n_kv_heads);
    int stride = sizes.n_heads * D, kv_stride = sizes.n_kv_heads * D;
    queries.bring(q + head * D, begin, end, stride);
    douts.bring(dout + head * D, begin, end, stride);
    float lse_of[2], delta_of[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = begin + row0 + g + 8 * h;
        u64 at = (u64)row * sizes.n_heads + head;
        lse_of[h] = row < end ? lse[at] : 0.0f;
        delta_of[h] = row < end ? delta[at] : 0.0f;
    }
    float sums[COLUMNS(D) / 8][4] = {};
    for (int key0 = first_key; key0 < end; key0 += KEYS) {
        keys.bring(k + kv_head * D, key0, end, kv_stride);
        values.bring(v + kv_head * D, key0, end, kv_stride);
        copies_done();
        __syncthreads();
        float p[KEYS / 8][4] = {}, ds[KEYS / 8][4] = {};
        add_scores(p, queries, row0, keys);
        add_scores(ds, douts, row0, values);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                weigh(p[n][e], ds[n][e], begin + row0 + g + e / 2 * 8, key0 + 8 * n + 2 * t + e % 2, lse_of[e / 2],
                      delta_of[e / 2], sizes);
        add_weighted<COLUMNS(D)>(sums, ds, keys, column0 / 16);
        __syncthreads(); // nobody reads the tiles of keys any more
    }
    write<COLUMNS(D)>(dq + head * D + column0, sums, sizes.scale, begin + row0, end, stride);
}

// One warp a row of a head.
KERNEL(256) attention_delta(float *delta, const bf16 *dout, const bf16 *out, int n_rows, int head_dim) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n_rows)
        return;
    float sum = 0.0f;
    if (lane < head_dim / VECTOR) {
        u64 at = (u64)row * head_dim + lane * VECTOR;
        Values<VECTOR> gradient = load<VECTOR>(dout + at), value = load<VECTOR>(out + at);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            sum += gradient.at[i] * value.at[i];
    }
    sum = warp_sum(sum);
    if (lane == 0)
        delta[row] = sum;
}

#define ATTENTION_BACKWARD(D, OTHERS)                                                                                \
    KERNEL(128) attention_backward_keys_##D(bf16 *dk, bf16 *dv, const bf16 *dout, const float *lse,                  \
                                            const float *delta, const bf16 *q, const bf16 *k, const bf16 *v,         \
                                            const RowTile *tiles, AttentionSizes sizes) {                            \
        key_gradients<D, OTHERS>(dk, dv, dout, lse, delta, q, k, v, tiles, sizes);                                   \
    }                                                                                                                \
    KERNEL(128) attention_backward_queries_##D(bf16 *dq, const bf16 *dout, const float *lse, const float *delta,     \
                                               const bf16 *q, const bf16 *k, const bf16 *v, const RowTile *tiles,    \
                                               AttentionSizes sizes) {                                               \
        query_gradients<D, OTHERS>(dq, dout, lse, delta, q, k, v, tiles, sizes);                                     \
    }

ATTENTION_BACKWARD(64, 32)
ATTENTION_BACKWARD(96, 32)
ATTENTION_BACKWARD(128, 32)
ATTENTION_BACKWARD(256, 16)
