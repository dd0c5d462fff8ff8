// Counter-based dropout: the mask is a function of (key, element) alone.
//
// Invariant: element i is kept iff number i of the key's stream is not below the rate, numbers being Philox4x32-10's
// (Salmon et al. 2011) as in `kernels/src/random.rs`: every kernel draws the mask that the CPU draws. A rate of 0 keeps
// all. What is dropped is zero, which bf16 holds exactly; the factor 1 / (1 - rate) is applied to sums.
#pragma once
#include "product.cuh"

struct Dropout {
    u64 key;
    float rate, factor;
};

DEVICE void philox(u32 (&words)[4], u64 key, u64 index) {
    u32 low = (u32)key, high = (u32)(key >> 32);
    words[0] = (u32)index, words[1] = (u32)(index >> 32), words[2] = 0, words[3] = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)0xd2511f53u * words[0], b = (u64)0xcd9e8d57u * words[2];
        words[0] = (u32)(b >> 32) ^ words[1] ^ low;
        words[1] = (u32)b;
        words[2] = (u32)(a >> 32) ^ words[3] ^ high;
        words[3] = (u32)a;
        low += 0x9e3779b9u;
        high += 0xbb67ae85u;
    }
}

// Bit i says whether element `first + i` is kept, for 8 elements: two blocks of numbers, three where they straddle.
DEVICE u32 kept_bits(const Dropout &dropout, u64 first) {
    u32 offset = (u32)first % 4, n_blocks = offset == 0 ? 2 : 3, bits = 0;
    for (u32 block = 0; block < n_blocks; block++) {
        u32 words[4];
        philox(words, dropout.key, first / 4 + block);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if ((float)(words[i] >> 8) * (1.0f / 16777216.0f) >= dropout.rate)
                bits |= 1u << (4 * block + i);
    }
    return bits >> offset;
}

// `row_piece` with what is dropped set to zero.
DEVICE uint4 kept_piece(const bf16 *x, int row, int n_rows, int column, int width, const Dropout &dropout) {
    uint4 piece = row_piece(x, row, n_rows, column, width);
    if (dropout.rate == 0.0f || row >= n_rows || column >= width)
        return piece;
    u32 bits = kept_bits(dropout, (u64)row * width + column);
    u32 masks[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        masks[i] = (bits >> (2 * i) & 1 ? 0x0000ffffu : 0) | (bits >> (2 * i + 1) & 1 ? 0xffff0000u : 0);
    piece.x &= masks[0], piece.y &= masks[1], piece.z &= masks[2], piece.w &= masks[3];
    return piece;
}
