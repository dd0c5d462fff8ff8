// Causal grouped-query attention within documents, forward (Dao 2023, FlashAttention-2): scores are never stored.
//
// `out [M, H, D] = softmax(scale * q · kᵀ) v`, `lse [M, H] = log(sum(exp(scale * q · k)))`; `q [M, H, D]`, `k, v
// [M, KV, D]` bf16, `lse` f32. Query head h reads key head `h / (H / KV)`. A row sees the keys of its document up to
// itself, with a window only the last `window` of them.
//
// `tiles [n, 3]` u32: first row of a tile of at most 64 rows, one past its last row, first row of its document. One block a
// tile and head; a warp owns 16 rows and walks over the keys 32 (D = 256: 16) at a time. Keys and values are brought by
// asynchronous copies. In shared memory the 16-byte pieces of a row are permuted by the row's number, so that the eight
// rows that `ldmatrix` reads lie in different banks.
#include "product.cuh"

#define ROWS (16 * N_WARPS)
#define PIECE 8 // elements of 16 bytes

struct AttentionSizes {
    float scale_log2; // scale * log2(e): exponentials are taken to the base 2
    int n_heads;
    int n_kv_heads;
    int window; // 0: none
};

DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory past the registers; `n_read` 0 fills with zeros.
DEVICE void copy_piece(bf16 *to, const bf16 *from, int n_read) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(n_read)
                 : "memory");
}

DEVICE void copies_done() {
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// Four 8 by 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 (&to)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

DEVICE void load_transposed(u32 (&to)[4], const bf16 *from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from))
                 : "memory");
}

// `N` rows of `D` elements in shared memory.
template <int N, int D> struct Tile {
    bf16 at[N * D];

    // Rows of a multiple of 64 elements all begin at the same bank, rows of 96 at one of two.
    __device__ __forceinline__ bf16 *piece(int row, int index) {
        int permuted = D % 64 == 0 ? index ^ row % 8 : index ^ row / 2 % 4;
        return at + row * D + permuted * PIECE;
    }

    // Begins to bring rows `[first, first + N)` of one head; zeros from `end` on.
    __device__ __forceinline__ void bring(const bf16 *from, int first, int end, int row_stride) {
        for (int i = threadIdx.x; i < N * (D / PIECE); i += blockDim.x) {
            int row = i / (D / PIECE), index = i % (D / PIECE);
            bool there = first + row < end;
            // An address that is not read is still one that exists.
            const bf16 *source = from + (u64)(there ? first + row : first) * row_stride + index * PIECE;
            copy_piece(piece(row, index), source, there ? 16 : 0);
        }
    }
};

template <int D, int KEYS>
DEVICE void forward(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const u32 *tiles,
                    AttentionSizes sizes) {
    __shared__ __align__(16) Tile<ROWS, D> queries;
    __shared__ __align__(16) Tile<KEYS, D> keys, values;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int begin = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], document = tiles[3 * blockIdx.x + 2];
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
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            u32 a[4];
            load_matrices(a, queries.piece(warp * 16 + lane % 16, 2 * d + lane / 16));
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                load_matrices(b, keys.piece(16 * n + lane % 8 + lane / 16 * 8, 2 * d + lane / 8 % 2));
                multiply_add(s[2 * n], a, b[0], b[1]);
                multiply_add(s[2 * n + 1], a, b[2], b[3]);
            }
        }
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
        // Weights are where the next product wants them: sums of one product are the left operand of the next.
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            u32 a[4] = {to_bf16x2(s[2 * n][0], s[2 * n][1]), to_bf16x2(s[2 * n][2], s[2 * n][3]),
                        to_bf16x2(s[2 * n + 1][0], s[2 * n + 1][1]), to_bf16x2(s[2 * n + 1][2], s[2 * n + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                u32 b[4];
                load_transposed(b, values.piece(16 * n + lane % 16, 2 * d + lane / 16));
                multiply_add(o[2 * d], a, b[0], b[1]);
                multiply_add(o[2 * d + 1], a, b[2], b[3]);
            }
        }
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
    KERNEL(128) attention_##D(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const u32 *tiles,  \
                              AttentionSizes sizes) {                                                                \
        forward<D, KEYS>(out, lse, q, k, v, tiles, sizes);                                                            \
    }

ATTENTION(64, 32)
ATTENTION(96, 32)
ATTENTION(128, 32)
ATTENTION(256, 16)
