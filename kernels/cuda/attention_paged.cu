// Attention of a generation step over paged keys and values, and the writing of them.
//
// `write_kv`: `moves [n, 2]` u32 are rows of `k, v [M, KV, D]` and their places in the cache, `[n_pages * page_len, KV, D]`
// each; a place is `page * page_len + slot`.
// `attention_paged`: `out [M, H, D] = softmax(scale * q · kᵀ) v`; a row sees the first tokens of its sequence up to
// itself, with a window only the last `window` of them. All bf16.
//
// The query heads of a key head make the 16 rows of a product, for as many rows of the step as fit: a tile. A context is
// read in parts of 256 tokens. One block a part of a tile and key head; where a tile has more than one part, blocks write
// sums (`partials`), which `attention_paged_join` adds in the order of the parts. Token j belongs to part `j / 256` and warp
// `j / 16 % 4`, whatever the tile, and a token that a row does not see, or a part of only such, changes no bit of it: so a
// row's result does not depend on the rows beside it.
//
// `parts [n, 6]` u32: first row of the tile, its number of rows, how many tokens its first row sees (each further row one
// more), where its sequence's pages begin in `pages`, the part's first token, and 0, or 1 and the number of its place in
// `partials`. `joins [n, 4]` u32: first row of a tile, its number of rows, the place of its first part, how many there are.
// Entries of no rows fill a list up: a launch may have more blocks than a step needs, so that it is the same for many.
//
// As in `matmul_nf4.cu` the orders of contractions and columns are free: lanes read keys and values from the cache in
// whole pieces and in their own places; nothing goes through shared memory but the sums of the four warps.
#include "product.cuh"

#define KEYS 16 // of a warp's turn
#define PART 256

struct PagedSizes {
    float scale_log2; // scale * log2(e): exponentials are taken to the base 2
    int n_heads;
    int n_kv_heads;
    int page_len;
    int window; // 0: none
};

DEVICE uint4 piece_or_zeros(const bf16 *from, bool there) {
    return there ? *(const uint4 *)from : uint4{0, 0, 0, 0};
}

// The cache's row of token `token`.
DEVICE u64 place(const u32 *pages, int token, int page_len) {
    return (u64)pages[token / page_len] * page_len + token % page_len;
}

// Where the warps of a block meet.
template <int D> struct Meeting {
    float largest[N_WARPS][16], sum[N_WARPS][16];
    float o[D / 8][4][32]; // one warp's at a time
};

// What a block leaves of a part: for each row the sum of weighted values, and the sum of weights, both relative to the
// largest score, which is minus infinity for a row that sees nothing of the part.
template <int D> struct Partial {
    float o[16][D], largest[16], sum[16];
};

// The element of `q` and `out` where row `index` of a tile's product begins.
template <int D> DEVICE u64 row_place(int first_row, int kv_head, int group, int index, const PagedSizes &sizes) {
    return ((u64)(first_row + index / group) * sizes.n_heads + kv_head * group + index % group) * D;
}

template <int D>
DEVICE void attend(bf16 *out, Partial<D> *partials, const bf16 *q, const bf16 *keys, const bf16 *values,
                   const u32 *parts, const u32 *pages, PagedSizes sizes) {
    __shared__ Meeting<D> meeting;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const u32 *part = parts + 6 * blockIdx.x;
    int first_row = part[0], n_rows = part[1], seen_by_first = part[2];
    if (n_rows == 0)
        return;
    pages += part[3];
    int kv_head = blockIdx.y, group = sizes.n_heads / sizes.n_kv_heads;
    int width = sizes.n_kv_heads * D;
    keys += kv_head * D;
    values += kv_head * D;
    // The two rows of the product that this lane has sums of: their place in `q` and `out`, and the tokens they see.
    bool used[2];
    int seen[2];
    u64 at[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int index = g + 8 * h;
        used[h] = index / group < n_rows;
        seen[h] = used[h] ? seen_by_first + index / group : 0;
        at[h] = row_place<D>(first_row, kv_head, group, index, sizes);
    }
    int first_key = part[4], end = min(seen_by_first + n_rows - 1, first_key + PART);
    if (sizes.window > 0 && seen_by_first - sizes.window > first_key)
        first_key = seen_by_first - sizes.window;
    float o[D / 8][4] = {}, largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};
    int stride = KEYS * N_WARPS;
    for (int key0 = first_key / stride * stride + warp * KEYS; key0 < end; key0 += stride) {
        // Scores: column c of fragment n is token key0 + 8n + c; the contraction takes d = 32 i + 8t.. in pieces.
        float s[2][4] = {};
        const bf16 *key[2];
        bool there[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int token = key0 + 8 * n + g;
            there[n] = token < end;
            key[n] = keys + place(pages, there[n] ? token : 0, sizes.page_len) * width + 8 * t;
        }
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            uint4 upper = piece_or_zeros(q + at[0] + 32 * i + 8 * t, used[0]);
            uint4 lower = piece_or_zeros(q + at[1] + 32 * i + 8 * t, used[1]);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint4 right = piece_or_zeros(key[n] + 32 * i, there[n]);
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    u32 a[4] = {word(upper, 2 * step), word(lower, 2 * step), word(upper, 2 * step + 1),
                                word(lower, 2 * step + 1)};
                    multiply_add(s[n], a, word(right, 2 * step), word(right, 2 * step + 1));
                }
            }
        }
        float shift[2], shrink[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float now = largest[h];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int token = key0 + 8 * n + 2 * t + e;
                    bool visible = token < seen[h] && (sizes.window == 0 || token >= seen[h] - sizes.window);
                    float &score = s[n][2 * h + e];
                    score = visible ? score * sizes.scale_log2 : MINUS_INFINITY;
                    now = fmaxf(now, score);
                }
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            shift[h] = now == MINUS_INFINITY ? 0.0f : now;
            shrink[h] = exp2_fast(largest[h] - shift[h]);
            largest[h] = now;
            sum[h] *= shrink[h];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &weight = s[n][2 * h + e];
                    weight = exp2_fast(weight - shift[h]);
                    sum[h] += weight;
                }
        }
        u32 a[4] = {to_bf16x2(s[0][0], s[0][1]), to_bf16x2(s[0][2], s[0][3]), to_bf16x2(s[1][0], s[1][1]),
                    to_bf16x2(s[1][2], s[1][3])};
        // Values: a lane's four tokens of the contraction; column c of fragment j is d = 32 i + 4c + j.
        const bf16 *value[4];
        bool has[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int token = key0 + 8 * (i / 2) + 2 * t + i % 2;
            has[i] = token < end;
            value[i] = values + place(pages, has[i] ? token : 0, sizes.page_len) * width + 4 * g;
        }
#pragma unroll
        for (int i = 0; i < D / 32; i++) {
            uint2 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                v[j] = has[j] ? *(const uint2 *)(value[j] + 32 * i) : uint2{0, 0};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 half = j % 2 ? 0x7632 : 0x5410;
                u32 b0 = __byte_perm(j < 2 ? v[0].x : v[0].y, j < 2 ? v[1].x : v[1].y, half);
                u32 b1 = __byte_perm(j < 2 ? v[2].x : v[2].y, j < 2 ? v[3].x : v[3].y, half);
#pragma unroll
                for (int e = 0; e < 4; e++)
                    o[4 * i + j][e] *= shrink[e / 2];
                multiply_add(o[4 * i + j], a, b0, b1);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        if (t == 0) {
            meeting.largest[warp][g + 8 * h] = largest[h];
            meeting.sum[warp][g + 8 * h] = sum[h];
        }
    }
    __syncthreads();
    // Each warp brings its sums to the common scale; the first adds those of the others, in their order.
    float top[2], all[2] = {0.0f, 0.0f}, factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = MINUS_INFINITY;
#pragma unroll
        for (int w = 0; w < N_WARPS; w++)
            top[h] = fmaxf(top[h], meeting.largest[w][g + 8 * h]);
        float shift = top[h] == MINUS_INFINITY ? 0.0f : top[h];
#pragma unroll
        for (int w = 0; w < N_WARPS; w++)
            all[h] += meeting.sum[w][g + 8 * h] * exp2_fast(meeting.largest[w][g + 8 * h] - shift);
        factor[h] = exp2_fast(largest[h] - shift);
    }
#pragma unroll
    for (int d = 0; d < D / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[d][e] *= factor[e / 2];
    for (int w = 1; w < N_WARPS; w++) {
        if (warp == w) {
#pragma unroll
            for (int d = 0; d < D / 8; d++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    meeting.o[d][e][lane] = o[d][e];
        }
        __syncthreads();
        if (warp == 0) {
#pragma unroll
            for (int d = 0; d < D / 8; d++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    o[d][e] += meeting.o[d][e][lane];
        }
        if (w + 1 < N_WARPS)
            __syncthreads(); // the next warp writes where the first has just read
    }
    if (warp != 0)
        return;
    int slot = part[5];
    Partial<D> *partial = partials + (u64)(slot - 1) * sizes.n_kv_heads + kv_head;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!used[h])
            continue;
        if (slot && t == 0) {
            partial->largest[g + 8 * h] = top[h];
            partial->sum[g + 8 * h] = all[h];
        }
        float share = 1.0f / all[h];
#pragma unroll
        for (int i = 0; i < D / 32; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int column = 32 * i + 4 * (2 * t + e);
                float4 four = {o[4 * i][2 * h + e], o[4 * i + 1][2 * h + e], o[4 * i + 2][2 * h + e],
                               o[4 * i + 3][2 * h + e]};
                if (slot)
                    *(float4 *)&partial->o[g + 8 * h][column] = four;
                else
                    *(uint2 *)(out + at[h] + column) = uint2{to_bf16x2(four.x * share, four.y * share),
                                                             to_bf16x2(four.z * share, four.w * share)};
            }
    }
}

// One block a tile and key head; a thread takes 4 neighbours of a row at a time.
template <int D>
DEVICE void join(bf16 *out, const Partial<D> *partials, const u32 *joins, PagedSizes sizes) {
    const u32 *tile = joins + 4 * blockIdx.x;
    int first_row = tile[0], n_rows = tile[1], n_parts = tile[3];
    if (n_rows == 0)
        return;
    int kv_head = blockIdx.y, group = sizes.n_heads / sizes.n_kv_heads;
    partials += (u64)tile[2] * sizes.n_kv_heads + kv_head;
    for (int i = threadIdx.x; i < n_rows * group * (D / 4); i += blockDim.x) {
        int index = i / (D / 4), column = i % (D / 4) * 4;
        float top = MINUS_INFINITY, all = 0.0f;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        const Partial<D> *partial = partials;
        int n_left = n_parts;
        do { // there are two parts at least
            float larger = fmaxf(top, partial->largest[index]), shift = larger == MINUS_INFINITY ? 0.0f : larger;
            float shrink = exp2_fast(top - shift), factor = exp2_fast(partial->largest[index] - shift);
            float4 four = *(const float4 *)&partial->o[index][column];
            all = all * shrink + partial->sum[index] * factor;
            sum.x = sum.x * shrink + four.x * factor, sum.y = sum.y * shrink + four.y * factor;
            sum.z = sum.z * shrink + four.z * factor, sum.w = sum.w * shrink + four.w * factor;
            top = larger;
            partial += sizes.n_kv_heads;
        } while (--n_left > 0);
        float share = 1.0f / all;
        *(uint2 *)(out + row_place<D>(first_row, kv_head, group, index, sizes) + column) =
            uint2{to_bf16x2(sum.x * share, sum.y * share), to_bf16x2(sum.z * share, sum.w * share)};
    }
}

// At least 2 blocks a multiprocessor: more would cost registers that spill.
#define PAGED(D)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                              \
        attention_paged_##D(bf16 *out, Partial<D> *partials, const bf16 *q, const bf16 *keys, const bf16 *values,     \
                            const u32 *parts, const u32 *pages, PagedSizes sizes) {                                   \
        attend<D>(out, partials, q, keys, values, parts, pages, sizes);                                               \
    }                                                                                                                 \
    KERNEL(128)                                                                                                       \
    attention_paged_join_##D(bf16 *out, const Partial<D> *partials, const u32 *joins, PagedSizes sizes) {            \
        join<D>(out, partials, joins, sizes);                                                                         \
    }

PAGED(64)
PAGED(96)
PAGED(128)
PAGED(256)

// One block a row; `width` is KV * D, a multiple of 8.
KERNEL(256) write_kv(bf16 *keys, bf16 *values, const bf16 *k, const bf16 *v, const u32 *moves, int width) {
    u64 from = (u64)moves[2 * blockIdx.x] * width, to = (u64)moves[2 * blockIdx.x + 1] * width;
    for (int i = threadIdx.x * VECTOR; i < width; i += blockDim.x * VECTOR) {
        *(uint4 *)(keys + to + i) = *(const uint4 *)(k + from + i);
        *(uint4 *)(values + to + i) = *(const uint4 *)(v + from + i);
    }
}
