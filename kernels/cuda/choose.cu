// The next tokens of a step's rows, to the bit as `kernels/src/sampling.rs` chooses them.
//
// `penalize`, `restore`: logits of seen tokens under a row's penalty, `kept` what they were before; and back. One block a
// row. `seen` u32 are all rows' tokens, those of a row distinct.
// `choose`: `ids [M]` u32 of `logits [M, V]` f32; NO_TOKEN where the largest is not finite. One block a row.
//
// A token's key is its weight and, below it, its id turned round: keys are distinct, and the larger one ranks first. Each
// warp keeps the keys of its part of the row, those that can be chosen, in `keys [M, V]`; from then on all is sums of
// integers, exact in any order. A cut-off leaves the first keys by rank, so the sum of their weights says which they are.
#include "common.cuh"

#define THREADS 1024
#define N_WARPS (THREADS / 32)
#define WEIGHT_BITS 43
#define ID_BITS 20
#define ID_MASK ((1ull << ID_BITS) - 1)
#define NO_TOKEN 0xffffffffu

struct Row {
    double temperature; // 0: the largest logit
    double top_p;
    u64 random;     // of 53 bits
    u64 min_weight; // 0: none
    u64 top_k;      // 0: all
    float reach;    // tokens so far below the largest logit weigh nothing
    float penalty;
    u32 first_seen, n_seen;
};

DEVICE float penalized(float logit, float penalty) {
    return logit > 0.0f ? __fdiv_rn(logit, penalty) : __fmul_rn(logit, penalty);
}

KERNEL(256) penalize(float *logits, float *kept, const u32 *seen, const Row *rows, int n_vocab) {
    logits += (u64)blockIdx.x * n_vocab;
    u32 first = rows[blockIdx.x].first_seen, n = rows[blockIdx.x].n_seen;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        float &logit = logits[seen[first + i]];
        kept[first + i] = logit;
        logit = penalized(logit, rows[blockIdx.x].penalty);
    }
}

KERNEL(256) restore(float *logits, const float *kept, const u32 *seen, const Row *rows, int n_vocab) {
    logits += (u64)blockIdx.x * n_vocab;
    u32 first = rows[blockIdx.x].first_seen, n = rows[blockIdx.x].n_seen;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x)
        logits[seen[first + i]] = kept[first + i];
}

// A number that orders as the logits do, both zeros alike; and the logit of such a number.
DEVICE u32 ordered(float logit) {
    u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE float logit_of(u32 ordered) {
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// A logit's number and its id, turned round so that of equal logits the lower id makes the larger number.
DEVICE u64 rank(float logit, int id) {
    u64 both;
    asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(~(u32)id), "r"(ordered(logit)));
    return both;
}

// `exp(x) * 2^43`, cut off below, of `x <= 0`; `weight` in the CPU's source says how. Nothing is fused.
DEVICE u64 weight(double x) {
    const double series[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                             1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
                             1.0 / 6.0,          1.0 / 2.0,         1.0,              1.0};
    if (x < -30.0)
        return 0;
    int n = __double2int_rn(__dmul_rn(x, 1.4426950408889634));
    double rest = __dsub_rn(x, __dmul_rn(n, __longlong_as_double(0x3fe62e42fee00000)));
    rest = __dsub_rn(rest, __dmul_rn(n, __longlong_as_double(0x3dea39ef35793c76)));
    double exp = 0.0;
#pragma unroll
    for (int i = 0; i < 14; i++)
        exp = __dadd_rn(__dmul_rn(exp, rest), series[i]);
    return __double2ull_rz(__dmul_rn(exp, __longlong_as_double((long long)(WEIGHT_BITS + 1023 + n) << 52)));
}

DEVICE u64 warp_largest(u64 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// Sums over the block, the same in every thread.
template <int N> DEVICE void block_sums(u64 (&sums)[N], u64 (&room)[5][N_WARPS]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        sums[i] = warp_sum(sums[i]);
        if (lane == 0)
            room[i][warp] = sums[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++)
        sums[i] = warp_sum(room[i][lane]);
}

// A warp's keys, and where the warps of the block meet: in two rooms by turns, for who writes to one has passed the barrier
// of the other, which no warp reaches before it has read the first.
struct Keys {
    u64 *mine;
    int n_mine;
    u64 (*rooms)[5][N_WARPS];
    int turn;

    template <int N> __device__ __forceinline__ void sum(u64 (&sums)[N]) {
        block_sums(sums, rooms[turn]);
        turn ^= 1;
    }

    // The weight of the keys from `least` on.
    __device__ __forceinline__ u64 weight_from(u64 least) {
        u64 sums[1] = {0};
        for (int i = threadIdx.x % 32; i < n_mine; i += 32)
            if (mine[i] >= least)
                sums[0] += mine[i] >> ID_BITS;
        sum(sums);
        return sums[0];
    }

    // The first key, by rank, with which the number of keys, or the sum of their weights, is above `place`: two bits of it
    // at a time, until one key has those that are known.
    template <bool COUNT> __device__ __forceinline__ u64 find(u64 place) {
        u64 known = 0, above = 0;
        for (int shift = 62; shift >= 0; shift -= 2) {
            u64 sums[5] = {0, 0, 0, 0, 0}; // from digit 1, 2 and 3 on; sum and number of the keys that may be it
            for (int i = threadIdx.x % 32; i < n_mine; i += 32) {
                u64 key = mine[i], measure = COUNT ? 1 : key >> ID_BITS;
                if ((key ^ known) >> shift >> 2)
                    continue;
#pragma unroll
                for (int digit = 1; digit < 4; digit++)
                    sums[digit - 1] += (key >> shift & 3) >= digit ? measure : 0;
                sums[3] += key;
                sums[4] += 1;
            }
            sum(sums);
            if (sums[4] == 1)
                return sums[3];
            u64 rest = place - above;
            u64 digit = sums[2] > rest ? 3 : sums[1] > rest ? 2 : sums[0] > rest ? 1 : 0;
            above += digit == 3 ? 0 : digit == 2 ? sums[2] : digit == 1 ? sums[1] : sums[0];
            known |= digit << shift;
        }
        return known;
    }
};

KERNEL(THREADS) choose(u32 *ids, u64 *keys, const float *logits, const Row *rows, int n_vocab) {
    __shared__ u64 rooms[2][5][N_WARPS];
    const Row &row = rows[blockIdx.x];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    logits += (u64)blockIdx.x * n_vocab;
    // What is no number is never the largest.
    u64 best = rank(MINUS_INFINITY, 0);
    for (int i = threadIdx.x; i < n_vocab; i += THREADS) {
        float logit = logits[i];
        if (logit == logit)
            best = max(best, rank(logit, i));
    }
    best = warp_largest(best);
    if (lane == 0)
        rooms[0][0][warp] = best;
    __syncthreads();
    best = warp_largest(rooms[0][0][lane]);
    float largest = logit_of(best >> 32);
    bool finite = fabsf(largest) < __int_as_float(0x7f800000);
    if (!finite || row.temperature == 0.0) {
        if (threadIdx.x == 0)
            ids[blockIdx.x] = finite ? ~(u32)best : NO_TOKEN;
        return;
    }
    // Each warp takes neighbouring tokens.
    int n_each = (n_vocab + THREADS - 1) / THREADS * 32, first = min(warp * n_each, n_vocab);
    int end = min(first + n_each, n_vocab);
    Keys held = {keys + (u64)blockIdx.x * n_vocab + first, 0, rooms, 1};
    float floor = __fsub_rn(largest, row.reach);
    u64 sums[2] = {0, 0};
    for (int base = first; base < end; base += 32) {
        int id = base + lane;
        float logit = id < end ? logits[id] : MINUS_INFINITY;
        bool counts = id < end && logit >= floor;
        u32 all = __ballot_sync(0xffffffffu, counts);
        if (counts) {
            u64 w = weight(__ddiv_rn(__dsub_rn(logit, largest), row.temperature));
            held.mine[held.n_mine + __popc(all & ((1u << lane) - 1))] = w << ID_BITS | (ID_MASK ^ id);
            sums[0] += w;
            sums[1] += 1;
        }
        held.n_mine += __popc(all);
    }
    held.sum(sums); // from its barrier on a warp may read what its other lanes wrote
    u64 total = sums[0];
    if (row.top_k > 0 && row.top_k < sums[1])
        total = held.weight_from(held.find<true>(row.top_k - 1));
    if (row.top_p < 1.0) {
        u64 part = __double2ull_ru(__dmul_rn(row.top_p, __ull2double_rn(total)));
        total = held.weight_from(held.find<false>(max(part, 1ull) - 1));
    }
    if (row.min_weight > 0)
        total = min(total, held.weight_from(row.min_weight << ID_BITS));
    u64 key = held.find<false>(__umul64hi(row.random << 11, total));
    if (threadIdx.x == 0)
        ids[blockIdx.x] = (u32)(key & ID_MASK ^ ID_MASK);
}
