// Products with an NF4 weight `W [N, K]` on tensor cores, for few rows: what generation does, where reading W is the cost.
//
// Forward: `y [M, N] = x [M, K] · Wᵀ`, with LoRA `+ scale * h [M, R] · Bᵀ` (see `Pair`), rounded once; or in f32 as logits.
// `x, y` bf16, `h, B` and sums f32. `dequantize` writes W itself, `[N, K]` bf16. The packed form is in `nf4.cuh`.
//
// Invariant: a row's result does not depend on M. This kernel and that of many rows (`matmul_nf4_tiles.cu`) add the same
// numbers in the same order: the products of a tile of 64 columns in four steps of a tensor core, their sum times the
// tile's scale to what the tiles before have given, then the LoRA pair in steps of 16 ranks. So which of them runs may
// follow from M alone.
//
// One block makes 8·MJ rows by 32 columns. Its warps take tiles of the contraction in turn, each with a ring of copies
// under way of the units and scales that its own lanes read; so the bytes in flight do not depend on how many warps a
// multiprocessor holds. A round's tiles meet in shared memory, where each fragment has a warp that adds the tiles' parts.
#include "nf4.cuh"

#define DEPTH 4 // tiles in a warp's ring: 3 KB under way for each warp

template <int MJ, int WARPS> struct Room {
    uint4 units[WARPS][DEPTH][2][32];
    RawScale raw_scales[WARPS][DEPTH][32];
    // Of two rounds, so that one barrier a round is enough: a lane's four sums of each fragment, and the rows' scales.
    float4 parts[2][WARPS][2 * MJ][32];
    float scales[2][WARPS][TILE_N];
};
static_assert(sizeof(Room<1, 8>) == 59392 && sizeof(Room<2, 8>) == 75776 && sizeof(Room<4, 4>) == 54272,
              "what the launches ask for");

extern __shared__ __align__(16) unsigned char room_bytes[];

template <int MJ, int WARPS, typename Out>
DEVICE void forward(Out *y, const bf16 *x, const uint4 *units, const Scales &scales, int m, int n, int k,
                    const Pair &pair) {
    constexpr int FRAGMENTS = 2 * MJ, OWNED = (FRAGMENTS + WARPS - 1) / WARPS;
    Room<MJ, WARPS> &room = *(Room<MJ, WARPS> *)room_bytes;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int m0 = blockIdx.x * 8 * MJ, n0 = blockIdx.y * TILE_N;
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    const uint4 *tiles = units + (u64)blockIdx.y * n_tiles * TILE_UNITS;
    // Begins the copies of the warp's tile of a round, if there is one.
    auto begin = [&](int round) {
        int tile = round * WARPS + warp, slot = round % DEPTH;
        if (tile < n_tiles) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                copy_async(&room.units[warp][slot][half][lane], tiles + tile * TILE_UNITS + g * 8 + half * 4 + t, true);
            room.raw_scales[warp][slot][lane].copy(scales, n0 + lane, tile, n_padded, n_tiles);
        }
        copies_commit();
    };
#pragma unroll
    for (int round = 0; round < DEPTH - 1; round++)
        begin(round);
    float sum[OWNED][1][1][4] = {}; // of fragments warp, warp + WARPS, ..: fragment f·MJ + j is [f][j] of a tile's part
    for (int round = 0; round * WARPS < n_tiles; round++) {
        begin(round + DEPTH - 1);
        copies_wait<DEPTH - 1>();
        int tile = round * WARPS + warp, slot = round % DEPTH, side = round % 2;
        if (tile < n_tiles) {
            float part[2][MJ][4] = {};
            multiply_tile(
                part, [&](int half) { return Unit{room.units[warp][slot][half][lane]}; },
                [&](int j, int half) {
                    return inner_piece(x, m0 + 8 * j + g, m, tile * TILE_K + half * 32 + 8 * t, k);
                });
#pragma unroll
            for (int f = 0; f < 2; f++)
#pragma unroll
                for (int j = 0; j < MJ; j++)
                    room.parts[side][warp][f * MJ + j][lane] =
                        float4{part[f][j][0], part[f][j][1], part[f][j][2], part[f][j][3]};
            room.scales[side][warp][lane] = room.raw_scales[warp][slot][lane].scale(scales, lane);
        }
        __syncthreads();
        if (warp >= FRAGMENTS)
            continue;
        for (int other = 0; other < WARPS && round * WARPS + other < n_tiles; other++)
#pragma unroll
            for (int i = 0; i < OWNED; i++) {
                int fragment = warp + i * WARPS;
                float2 by = *(const float2 *)(room.scales[side][other] + 4 * g + 2 * (fragment / MJ));
                add_scaled(sum[i][0][0], room.parts[side][other][fragment][lane], by.x, by.y);
            }
    }
    if (warp >= FRAGMENTS)
        return;
#pragma unroll
    for (int i = 0; i < OWNED; i++) {
        int fragment = warp + i * WARPS, first_row = m0 + 8 * (fragment % MJ), column = n0 + 2 * (fragment / MJ);
        add_turned_pair(sum[i], pair, first_row, m, column, n);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = first_row + 2 * t + e;
            if (row < m)
                put_row(y + (u64)row * n, Values<2>{sum[i][0][0][e], sum[i][0][0][2 + e]}, column + 4 * g, n);
        }
    }
}

#define PRODUCT(name, MJ, WARPS)                                                                                       \
    KERNEL(32 * WARPS)                                                                                                 \
    matmul_nf4_##name(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes, float offset,  \
                      int m, int n, int k, const float *h, const float *b, float scale, int rank, const PairAt *pairs, \
                      const u32 *of_row) {                                                                             \
        forward<MJ, WARPS>(y, x, units, Scales{scales, codes, offset}, m, n, k,                                        \
                           Pair{h, b, scale, rank, {pairs, of_row}});                                                  \
    }                                                                                                                  \
    KERNEL(32 * WARPS)                                                                                                 \
    logits_nf4_##name(float *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes, float offset, \
                      int m, int n, int k) {                                                                           \
        forward<MJ, WARPS>(y, x, units, Scales{scales, codes, offset}, m, n, k, Pair{});                               \
    }

PRODUCT(8, 1, 8)
PRODUCT(16, 2, 8)
PRODUCT(32, 4, 4)

__device__ const float CODE_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// One block a tile, one thread a unit.
KERNEL(64) dequantize_nf4(bf16 *w, const uint4 *units, const float *scales, const u8 *codes, float offset, int n, int k) {
    int n_tiles = k / TILE_K, n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    int tile = blockIdx.x, n0 = blockIdx.y * TILE_N + threadIdx.x / 8 * 4, k0 = tile * TILE_K + threadIdx.x % 8 * 8;
    uint4 unit = units[((u64)blockIdx.y * n_tiles + tile) * TILE_UNITS + threadIdx.x];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if (n0 + r >= n)
            return;
        float scale = Scales{scales, codes, offset}.at(n0 + r, tile, n_padded, n_tiles);
        Values<VECTOR> values;
#pragma unroll
        for (int c = 0; c < VECTOR; c++)
            values.at[c] = CODE_VALUES[word(unit, r) >> (4 * c) & 15] * scale;
        store(w + (u64)(n0 + r) * k + k0, values);
    }
}
