// Attention of a generation step over paged keys and values, and the writing of them.
//
// `write_kv`: `moves [n, 2]` u32 are rows of `k, v [M, KV, D]` and their places in the cache, `[n_pages * page_len, KV, D]`
// each; a place is `page * page_len + slot`.
// `attention_paged`: `out [M, H, D] = softmax(scale * q · kᵀ) v`; a row sees the first tokens of its sequence up to
// itself, with a window only the last `window` of them. All bf16.
//
// `tiles [n, 4]` u32: first row of a tile, its number of rows, how many tokens its first row sees (each further row one
// more), where its sequence's pages begin in `pages`. The query heads of a key head make the 16 rows of a product, for
// as many rows of the step as fit. One block a tile and key head. Token j belongs to warp `j / 16 % 4`, whatever the tile, and
// a token that a row does not see changes no bit of it: so a row's result does not depend on the rows beside it.
//
// As in `matmul_nf4.cu` the orders of contractions and columns are free: lanes read keys and values from the cache in
// whole pieces and in their own places; nothing goes through shared memory but the sums of the four warps.
#include "product.cuh"

#define KEYS 16 // of a warp's turn

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

template <int D> struct Meeting {
    float largest[N_WARPS][16], sum[N_WARPS][16];
    float o[D / 8][4][32]; // one warp's at a time
};

template <int D>
DEVICE void attend(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values, const u32 *tiles, const u32 *pages,
                   PagedSizes sizes) {
    __shared__ Meeting<D> meeting;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const u32 *tile = tiles + 4 * blockIdx.x;
    int first_row = tile[0], n_rows = tile[1], seen_by_first = tile[2];
    pages += tile[3];
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
        int index = g + 8 * h, token_row = index / group;
        used[h] = token_row < n_rows;
        seen[h] = used[h] ? seen_by_first + token_row : 0;
        at[h] = ((u64)(first_row + token_row) * sizes.n_heads + kv_head * group + index % group) * D;
    }
    int seen_by_last = seen_by_first + n_rows - 1, first_key = 0;
    if (sizes.window > 0 && seen_by_first > sizes.window)
        first_key = seen_by_first - sizes.window;
    float o[D / 8][4] = {}, largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f};
    int stride = KEYS * N_WARPS;
    for (int key0 = first_key / stride * stride + warp * KEYS; key0 < seen_by_last; key0 += stride) {
        // Scores: column c of fragment n is token key0 + 8n + c; the contraction takes d = 32 i + 8t.. in pieces.
        float s[2][4] = {};
        const bf16 *key[2];
        bool there[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int token = key0 + 8 * n + g;
            there[n] = token < seen_by_last;
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
            has[i] = token < seen_by_last;
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
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = MINUS_INFINITY, all = 0.0f;
#pragma unroll
        for (int w = 0; w < N_WARPS; w++)
            top = fmaxf(top, meeting.largest[w][g + 8 * h]);
        top = top == MINUS_INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < N_WARPS; w++)
            all += meeting.sum[w][g + 8 * h] * exp2_fast(meeting.largest[w][g + 8 * h] - top);
        factor[h] = exp2_fast(largest[h] - top) / all;
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
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!used[h])
            continue;
#pragma unroll
        for (int i = 0; i < D / 32; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint2 four;
                four.x = to_bf16x2(o[4 * i][2 * h + e], o[4 * i + 1][2 * h + e]);
                four.y = to_bf16x2(o[4 * i + 2][2 * h + e], o[4 * i + 3][2 * h + e]);
                *(uint2 *)(out + at[h] + 32 * i + 4 * (2 * t + e)) = four;
            }
    }
}

// At least 2 blocks a multiprocessor: more would cost registers that spill.
#define PAGED(D)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_paged_##D(bf16 *out, const bf16 *q, const bf16 *keys, const bf16 *values, const u32 *tiles, \
                                    const u32 *pages, PagedSizes sizes) {                                            \
        attend<D>(out, q, keys, values, tiles, pages, sizes);                                                         \
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
