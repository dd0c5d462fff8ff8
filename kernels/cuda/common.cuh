// What all kernels share: types, one wrapper for each instruction that C++ cannot name, and reductions.
//
// Invariant: nothing here depends on the order in which warps or blocks run, so every result is the same on every run.
// A bf16 is its 16 bits; arithmetic is in f32. Sizes are 32-bit where the host has checked that they fit.
#pragma once

typedef unsigned char u8;
typedef unsigned short bf16; // the upper half of an f32
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

// Elements of one 16-byte access of bf16, the widest there is.
#define VECTOR 8

DEVICE float to_f32(bf16 x) { return __uint_as_float((u32)x << 16); }

// Rounds to nearest even; one instruction from sm_80 on.
DEVICE bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// Two at once, `low` in the lower half: what a tensor core's register holds.
DEVICE u32 to_bf16x2(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// 2^x in one instruction, 2 units in the last place.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// log2(x) in one instruction, absolute error 2^-22 near 1.
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define MINUS_INFINITY __int_as_float(0xff800000)

DEVICE float exp_fast(float x) { return exp2_fast(x * LOG2_E); }

DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp_fast(-x)); }

// `N` neighbours of a row as f32: one 16-byte access for 8, a plain one for 1.
template <int N> struct Values {
    float at[N];
};

template <int N> __device__ Values<N> load(const bf16 *from);

template <> __device__ __forceinline__ Values<1> load<1>(const bf16 *from) {
    Values<1> values;
    values.at[0] = to_f32(*from);
    return values;
}

template <> __device__ __forceinline__ Values<VECTOR> load<VECTOR>(const bf16 *from) {
    uint4 raw = *(const uint4 *)from;
    u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    Values<VECTOR> values;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values.at[2 * i] = __uint_as_float(words[i] << 16);
        values.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return values;
}

DEVICE void store(bf16 *to, const Values<1> &values) { *to = to_bf16(values.at[0]); }

DEVICE void store(bf16 *to, const Values<VECTOR> &values) {
    uint4 raw;
    raw.x = to_bf16x2(values.at[0], values.at[1]);
    raw.y = to_bf16x2(values.at[2], values.at[3]);
    raw.z = to_bf16x2(values.at[4], values.at[5]);
    raw.w = to_bf16x2(values.at[6], values.at[7]);
    *(uint4 *)to = raw;
}

// Sum over the warp, the same in every lane: a butterfly, so the order of additions is fixed.
template <typename T> DEVICE T warp_sum(T value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// Sum over the block, the same in every thread. `partial` has room for 32 and is used once in a kernel: a second use
// would need a barrier first, so that a fast warp does not overwrite what a slow one still reads.
template <typename T> DEVICE T block_sum(T value, T *partial) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    value = warp_sum(value);
    if (lane == 0)
        partial[warp] = value;
    __syncthreads();
    return warp_sum(lane < n_warps ? partial[lane] : (T)0);
}

DEVICE float block_max(float value, float *partial) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    value = warp_max(value);
    if (lane == 0)
        partial[warp] = value;
    __syncthreads();
    return warp_max(lane < n_warps ? partial[lane] : MINUS_INFINITY);
}
