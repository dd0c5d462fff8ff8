// An NF4 weight `W [N, K]` (Dettmers et al. 2023) as it lies in memory, how its values are made, and how a tile of it is
// multiplied.
//
// Invariant: one packed form serves both directions of a product; a code's value in bf16 is the nearest to its value in
// f32, and a scale has the bits that the CPU gives it.
//
// Packed form. A unit of 16 bytes holds 4 rows (n) by 8 columns (k): word r is row r, its nibble c column c. 8 by 8
// units make a tile of 32 rows by 64 columns, 1 KB, as wide as a scale's block:
// `units[((n / 32) * (K / 64) + k / 64) * 64 + (n / 4 % 8) * 8 + k / 8 % 8]`. N is padded to 32, K is a multiple of 64.
//
// Fragments. W is the left operand of the tensor cores and the activations are the right one, whose registers are then
// neighbours in a row as they lie in memory, while those of W are made one by one. The order of a contraction is free if
// both operands share it, and so are the orders of rows and columns of the output. So a lane (g = lane / 4, t = lane % 4)
// takes whole units and whole 16-byte pieces of rows, and nothing is shuffled.
#pragma once
#include "pipeline.cuh"
#include "product.cuh"

#define TILE_N 32
#define TILE_K 64
#define TILE_UNITS 64

// Four codes, the lowest nibbles of `codes`, to their values in bf16: the bytes of the 16 values lie in 8 registers, and
// a byte permutation is a table of 8 entries. About 10 instructions, no memory.
DEVICE uint2 decode_half(u32 codes) {
    u32 low_bits = codes & 0x7777u;                    // which entry of a half of a table
    u32 upper_half = 0x3210u | (codes & 0x8888u) >> 1; // byte i of the first, or of the second where bit 3 is set
    u32 high = __byte_perm(__byte_perm(0xbebfbfbfu, 0x00bdbebeu, low_bits),
                           __byte_perm(0x3e3e3e3du, 0x3f3f3f3eu, low_bits), upper_half);
    u32 low = __byte_perm(__byte_perm(0xca063280u, 0x00ba3d92u, low_bits),
                          __byte_perm(0xad7c25a3u, 0x803910e2u, low_bits), upper_half);
    return uint2{__byte_perm(low, high, 0x5140), __byte_perm(low, high, 0x7362)};
}

// A row of a unit.
DEVICE uint4 decode(u32 codes) {
    uint2 first = decode_half(codes), second = decode_half(codes >> 16);
    return uint4{first.x, first.y, second.x, second.y};
}

// A unit gives its rows.
struct Unit {
    uint4 codes;

    __device__ __forceinline__ uint4 operator()(int r) const { return decode(word(codes, r)); }
};

// Of a double quantization: the 256 values of the 8-bit map come first, then a factor for each SCALE_BLOCK scales.
#define MAP_LEN 256
#define SCALE_BLOCK 256

// The scales of a weight, one for each row and tile of columns. Without `codes`, `values [K / 64, N]` are the scales.
// With them the scales are quantized too: `codes [K / 64, N]` are bytes, and a scale is `map * factor + offset`, where
// `factor` is that of the scale's number in the order of the matrix. N is padded to 32 in both.
struct Scales {
    const float *values;
    const u8 *codes;
    float offset;

    __device__ __forceinline__ float nested(u32 code, float factor) const {
        return __fadd_rn(__fmul_rn(values[code], factor), offset); // two roundings, as on the CPU
    }

    __device__ __forceinline__ const float *factor(int row, int tile, int n_tiles) const {
        return values + MAP_LEN + ((u32)row * n_tiles + tile) / SCALE_BLOCK;
    }

    __device__ __forceinline__ float at(int row, int tile, int n_padded, int n_tiles) const {
        u64 index = (u64)tile * n_padded + row;
        return codes ? nested(codes[index], *factor(row, tile, n_tiles)) : values[index];
    }
};

// What a thread copies of a scale before it is needed: all that lies in memory for it.
struct RawScale {
    u32 value; // the scale, or the factor of its code
    u32 codes; // four codes, the scale's among them

    // Zeros where there is no such row.
    __device__ __forceinline__ void copy(const Scales &scales, int row, int tile, int n_padded, int n_tiles) {
        bool there = row < n_padded;
        u64 index = there ? (u64)tile * n_padded + row : 0;
        if (scales.codes) {
            copy_async(&value, scales.factor(there ? row : 0, tile, n_tiles), there);
            copy_async(&codes, scales.codes + index / 4 * 4, there);
        } else {
            copy_async(&value, scales.values + index, there);
        }
    }

    // The scale, when the copies have been waited for; of no row a number that only zeros are multiplied with.
    __device__ __forceinline__ float scale(const Scales &scales, int row) const {
        float stored = __uint_as_float(value);
        return scales.codes ? scales.nested(codes >> (8 * (row % 4)) & 255, stored) : stored;
    }
};

// Two values of W times a scale each. W is then rounded as code and as value, and nowhere else.
DEVICE u32 scaled(u32 values, const Split &scales) {
    // From sm_90 on there is a product of bf16x2; before, this one, whose -0 leaves the product as it is.
    u32 small = multiply_add_bf16x2(values, scales.low, 0x80008000u);
    return multiply_add_bf16x2(values, scales.high, small);
}

// A lane's four sums of a fragment, of two rows of W with these scales.
DEVICE void add_scaled(float (&sum)[4], const float4 &part, float upper, float lower) {
    sum[0] = __fmaf_rn(part.x, upper, sum[0]);
    sum[1] = __fmaf_rn(part.y, upper, sum[1]);
    sum[2] = __fmaf_rn(part.z, lower, sum[2]);
    sum[3] = __fmaf_rn(part.w, lower, sum[3]);
}

// LoRA's part in the same accumulators, of rows n0 + 4g + 2f.. of B and rows m0 + 8j + g of h, 16 ranks at a time. Both
// operands are split, the product of the two lower parts left out. Sums of rows that have another pair stay as they are, to
// the bit.
template <int NF, int MJ>
DEVICE void add_turned_pair(float (&sum)[NF][MJ][4], const Pair &pair, int m0, int m, int n0, int n) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    pair.each<8 * MJ>(m0, m, [&](u32 number, const float *b, float scale, int rank) {
        // A bit for each row that a lane takes of h, and for each that its sums are of.
        u32 has = 0, keeps = 0;
#pragma unroll
        for (int j = 0; j < MJ; j++) {
            has |= (u32)pair.by_row.has(m0 + 8 * j + g, m, number) << j;
#pragma unroll
            for (int e = 0; e < 2; e++)
                keeps |= (u32)!pair.by_row.has(m0 + 8 * j + 2 * t + e, m, number) << (2 * j + e);
        }
        for (int r = 4 * t; r - 4 * t < rank; r += 16) {
            u32 high[NF][4], low[NF][4];
#pragma unroll
            for (int f = 0; f < NF; f++)
#pragma unroll
                for (int below = 0; below < 2; below++) {
                    float4 left = float_piece(b, n0 + 4 * g + 2 * f + below, n, r, rank);
                    Split first = split(left.x, left.y), second = split(left.z, left.w);
                    high[f][below] = first.high, high[f][2 + below] = second.high;
                    low[f][below] = first.low, low[f][2 + below] = second.low;
                }
#pragma unroll
            for (int j = 0; j < MJ; j++) {
                float4 right = pair.left(m0 + 8 * j + g, has >> j & 1, r, rank);
                Split first = split(right.x * scale, right.y * scale);
                Split second = split(right.z * scale, right.w * scale);
#pragma unroll
                for (int f = 0; f < NF; f++) {
                    float next[4] = {sum[f][j][0], sum[f][j][1], sum[f][j][2], sum[f][j][3]};
                    multiply_add(next, high[f], first.high, second.high);
                    multiply_add(next, high[f], first.low, second.low);
                    multiply_add(next, low[f], first.high, second.high);
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (!(keeps >> (2 * j + e % 2) & 1))
                            sum[f][j][e] = next[e];
                }
            }
        }
    });
}
