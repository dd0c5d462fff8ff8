// What products on tensor cores share: pieces of rows, fragments, a LoRA pair's part, the sums of a block's warps and their
// way to memory.
//
// Invariant: the sums of warps are added in their order. A block whose warps share a contraction has `N_WARPS` of them.
#pragma once
#include "common.cuh"

#define N_WARPS 4

DEVICE u32 word(const uint4 &unit, int index) {
    return index == 0 ? unit.x : index == 1 ? unit.y : index == 2 ? unit.z : unit.w;
}

// `c += a · b`: 16 by 16 times 16 by 8.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `a * b + c` of two bf16 each, rounded once.
DEVICE u32 multiply_add_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// 8 neighbours from `column` of row `row`, which is all within the row and aligned; zeros where there is no such row.
DEVICE uint4 inner_piece(const bf16 *matrix, int row, int n_rows, int column, int width) {
    if (row >= n_rows)
        return uint4{0, 0, 0, 0};
    return *(const uint4 *)(matrix + (u64)row * width + column);
}

// The same for any width: zeros behind the end of the row. Rows of a width that is no multiple of 8 are not aligned.
DEVICE uint4 row_piece(const bf16 *matrix, int row, int n_rows, int column, int width) {
    uint4 piece = {0, 0, 0, 0};
    if (row >= n_rows || column >= width)
        return piece;
    if (width % VECTOR == 0)
        return inner_piece(matrix, row, n_rows, column, width);
    const bf16 *from = matrix + (u64)row * width + column;
    u32 words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (column + i < width)
            words[i / 2] |= (u32)from[i] << (16 * (i % 2));
    piece.x = words[0], piece.y = words[1], piece.z = words[2], piece.w = words[3];
    return piece;
}

// A lane's pieces of 16·MI rows of a product's left operand: g = lane / 4 and g + 8 of each 16.
template <int MI> struct Left {
    uint4 upper[MI], lower[MI];

    // `piece(row)` is a lane's piece of a row.
    template <typename Piece> __device__ __forceinline__ void take(int m0, const Piece &piece) {
        int g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < MI; i++) {
            upper[i] = piece(m0 + 16 * i + g);
            lower[i] = piece(m0 + 16 * i + g + 8);
        }
    }

    // `sum[..][j] += left · right`, of half `step` of the pieces.
    template <int NJ>
    __device__ __forceinline__ void multiply(float (&sum)[MI][NJ][4], int j, int step, u32 b0, u32 b1) const {
#pragma unroll
        for (int i = 0; i < MI; i++) {
            u32 a[4] = {word(upper[i], 2 * step), word(lower[i], 2 * step), word(upper[i], 2 * step + 1),
                        word(lower[i], 2 * step + 1)};
            multiply_add(sum[i][j], a, b0, b1);
        }
    }
};

// One tile of a forward product, 32 rows of W by 8·MJ rows of x: `sum[f][j] +=` that of rows 4g + 2f and 4g + 2f + 1 of W, and
// of rows 8j + 2t and 8j + 2t + 1 of x; the contraction is k = 8t.. of each half of 64. `rows(half)` gives a lane its pieces
// 4·half + t of rows 4g.. of W, one for each `(r)`, and `piece(j, half)` that of row 8j + g of x.
template <int MJ, typename Rows, typename Piece>
DEVICE void multiply_tile(float (&sum)[2][MJ][4], const Rows &rows, const Piece &piece) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 right[MJ];
#pragma unroll
        for (int j = 0; j < MJ; j++)
            right[j] = piece(j, half);
        auto row = rows(half);
#pragma unroll
        for (int f = 0; f < 2; f++) {
            uint4 upper = row(2 * f), lower = row(2 * f + 1);
#pragma unroll
            for (int step = 0; step < 2; step++) {
                u32 left[4] = {word(upper, 2 * step), word(lower, 2 * step), word(upper, 2 * step + 1),
                               word(lower, 2 * step + 1)};
#pragma unroll
                for (int j = 0; j < MJ; j++)
                    multiply_add(sum[f][j], left, word(right[j], 2 * step), word(right[j], 2 * step + 1));
            }
        }
    }
}

// Two rows at one column make a register of the right operand: column `j` of the pieces of two rows.
DEVICE u32 across(const uint4 &first, const uint4 &second, int j) {
    return __byte_perm(word(first, j / 2), word(second, j / 2), j % 2 ? 0x7632 : 0x5410);
}

// 4 neighbours from `column` of row `row` of f32, zeros behind the end of the row and where there is no such row. In one
// piece where it is aligned: the matrix may begin anywhere in a buffer.
DEVICE float4 float_piece(const float *matrix, int row, int n_rows, int column, int width) {
    float4 piece = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row >= n_rows || column >= width)
        return piece;
    const float *from = matrix + (u64)row * width + column;
    if (column + 4 <= width && (u64)from % 16 == 0)
        return *(const float4 *)from;
    piece.x = from[0];
    if (column + 1 < width)
        piece.y = from[1];
    if (column + 2 < width)
        piece.z = from[2];
    if (column + 3 < width)
        piece.w = from[3];
    return piece;
}

// 4 neighbours of a column.
DEVICE float4 column_piece(const float *matrix, int row, int n_rows, int column, int width) {
    float4 piece = {0.0f, 0.0f, 0.0f, 0.0f};
    if (column >= width)
        return piece;
    const float *from = matrix + (u64)row * width + column;
    if (row < n_rows)
        piece.x = from[0];
    if (row + 1 < n_rows)
        piece.y = from[width];
    if (row + 2 < n_rows)
        piece.z = from[2 * (u64)width];
    if (row + 3 < n_rows)
        piece.w = from[3 * (u64)width];
    return piece;
}

// Two f32, each as the sum of two bf16, exact to 2^-18 of it: what tensor cores take without losing adapters' bits.
struct Split {
    u32 high, low;
};

DEVICE Split split(float first, float second) {
    Split halves;
    halves.high = to_bf16x2(first, second);
    halves.low = to_bf16x2(first - __uint_as_float(halves.high << 16),
                           second - __uint_as_float(halves.high & 0xffff0000u));
    return halves;
}

// LoRA pairs of which each row has one of its own, or none: where they are in the flat buffer, as the host writes it, and
// the number of each row's. Null where one pair is for all rows.
struct PairAt {
    u64 a, b;
    float scale;
    int rank; // 0: an adapter that has no pair here
};

#define NO_PAIR 0xffffffffu

struct ByRow {
    const PairAt *pairs;
    const u32 *of_row;

    __device__ __forceinline__ bool has(int row, int m, u32 number) const {
        return row < m && (!of_row || of_row[row] == number);
    }

    // The least number from `from` on that one of rows m0.. has, the same in every lane; NO_PAIR where none has.
    template <int ROWS> __device__ __forceinline__ u32 next(int m0, int m, u32 from) const {
        u32 least = NO_PAIR;
#pragma unroll
        for (int first = 0; first < ROWS; first += 32) {
            int row = m0 + first + threadIdx.x % 32;
            if (first + threadIdx.x % 32 < ROWS && row < m && of_row[row] >= from)
                least = min(least, of_row[row]);
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            least = min(least, __shfl_xor_sync(0xffffffffu, least, distance));
        return least;
    }
};

// LoRA's part of a forward product: `scale * h · Bᵀ` with `h [M, R]` and `B [N, R]` in f32; nothing where `h` is null. With
// pairs by row, `b` is the flat buffer and `rank` the largest, that of the rows of `h`.
struct Pair {
    const float *h, *b;
    float scale;
    int rank;
    ByRow by_row;

    // 4 neighbours from rank `r` of a row of h, of a pair of `n_ranks`; zeros where the row has another.
    __device__ __forceinline__ float4 left(int row, bool has, int r, int n_ranks) const {
        return float_piece(h + (u64)row * rank, 0, has, r, n_ranks);
    }

    // `add(number, b, scale, rank)` for each pair that one of rows m0.. has.
    template <int ROWS, typename Add> __device__ __forceinline__ void each(int m0, int m, const Add &add) const {
        if (!h)
            return;
        u32 number = 0;
        do {
            PairAt at = {0, 0, scale, rank};
            if (by_row.of_row) {
                number = by_row.next<ROWS>(m0, m, number);
                if (number == NO_PAIR)
                    return;
                at = by_row.pairs[number];
            }
            add(number, b + at.b, at.scale, at.rank);
            number++;
        } while (by_row.of_row);
    }
};

// LoRA's part in the accumulators of the block's warps. The columns are those of the products' forward: column c of
// n-fragment j is row n0 + 4c + j of B. Both operands are split, the product of the two lower parts left out. Sums of rows
// that have another pair stay as they are, to the bit.
template <int MI> DEVICE void add_pair(float (&sum)[MI][4][4], const Pair &pair, int m0, int m, int n0, int n) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    pair.each<16 * MI>(m0, m, [&](u32 number, const float *b, float scale, int rank) {
        bool has[MI][2];
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int below = 0; below < 2; below++)
                has[i][below] = pair.by_row.has(m0 + 16 * i + g + 8 * below, m, number);
        for (int r = 16 * warp + 4 * t; r - 4 * t < rank; r += 16 * N_WARPS) {
            u32 high[MI][4], low[MI][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int below = 0; below < 2; below++) {
                    float4 left = pair.left(m0 + 16 * i + g + 8 * below, has[i][below], r, rank);
                    Split first = split(left.x * scale, left.y * scale);
                    Split second = split(left.z * scale, left.w * scale);
                    high[i][below] = first.high, high[i][2 + below] = second.high;
                    low[i][below] = first.low, low[i][2 + below] = second.low;
                }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float4 right = float_piece(b, n0 + 4 * g + j, n, r, rank);
                Split first = split(right.x, right.y), second = split(right.z, right.w);
#pragma unroll
                for (int i = 0; i < MI; i++) {
                    float next[4] = {sum[i][j][0], sum[i][j][1], sum[i][j][2], sum[i][j][3]};
                    multiply_add(next, high[i], first.high, second.high);
                    multiply_add(next, high[i], first.low, second.low);
                    multiply_add(next, low[i], first.high, second.high);
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (has[i][e / 2])
                            sum[i][j][e] = next[e];
                }
            }
        }
    });
}

// A product's result goes where it is written, in bf16 or, as logits, in f32.
DEVICE void put(bf16 *to, const Values<VECTOR> &values) { store(to, values); }

DEVICE void put(float *to, const Values<VECTOR> &values) {
    ((float4 *)to)[0] = float4{values.at[0], values.at[1], values.at[2], values.at[3]};
    ((float4 *)to)[1] = float4{values.at[4], values.at[5], values.at[6], values.at[7]};
}

DEVICE void put(bf16 *to, const Values<4> &values) {
    *(uint2 *)to = uint2{to_bf16x2(values.at[0], values.at[1]), to_bf16x2(values.at[2], values.at[3])};
}

DEVICE void put(float *to, const Values<4> &values) {
    *(float4 *)to = float4{values.at[0], values.at[1], values.at[2], values.at[3]};
}

DEVICE void put(bf16 *to, const Values<2> &values) { *(u32 *)to = to_bf16x2(values.at[0], values.at[1]); }

DEVICE void put(float *to, const Values<2> &values) { *(float2 *)to = float2{values.at[0], values.at[1]}; }

DEVICE void put_one(bf16 *to, float value) { *to = to_bf16(value); }

DEVICE void put_one(float *to, float value) { *to = value; }

// `COUNT` neighbours of a row of `[.., N]` from `column` on, a multiple of it, as far as the row goes.
template <int COUNT, typename Out> DEVICE void put_row(Out *row, const Values<COUNT> &values, int column, int n) {
    Out *to = row + column;
    if (n % COUNT == 0) {
        if (column < n)
            put(to, values);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (column + i < n)
                put_one(to + i, values.at[i]);
    }
}

// Where the warps' sums meet: groups of 8 output columns that a lane writes in one piece.
template <int GROUPS> struct Sums {
    float at[N_WARPS][GROUPS][VECTOR][32];
};

// The sum of all warps, always in the order of the warps.
template <int GROUPS> DEVICE Values<VECTOR> total(const Sums<GROUPS> &sums, int group, int lane) {
    Values<VECTOR> values;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        float sum = sums.at[0][group][i][lane];
#pragma unroll
        for (int warp = 1; warp < N_WARPS; warp++)
            sum += sums.at[warp][group][i][lane];
        values.at[i] = sum;
    }
    return values;
}

// The end of a product `y [M, N] = ..` whose block makes 32 columns: column c of n-fragment j is n0 + 4c + j.
template <int MI, typename Out>
DEVICE void write_sums(Out *y, const float (&sum)[MI][4][4], int m0, int m, int n0, int n) {
    __shared__ Sums<2 * MI> sums;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums.at[warp][2 * i + e / 2][4 * (e % 2) + j][lane] = sum[i][j][e];
    __syncthreads();
    for (int group = warp; group < 2 * MI; group += N_WARPS) {
        int row = m0 + 16 * (group / 2) + g + 8 * (group % 2), column = n0 + 8 * t;
        Values<VECTOR> values = total(sums, group, lane);
        if (row < m)
            put_row(y + (u64)row * n, values, column, n);
    }
}

// The sums of a block that makes 64 columns, column c of n-fragment j being c0 + 8c + j: `write(row, column, values)` for
// each 8 neighbours of the block's 16·MI rows.
template <int MI, typename Write>
DEVICE void for_each_sum(const float (&sum)[MI][8][4], int m0, int c0, const Write &write) {
    __shared__ Sums<4 * MI> sums;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sums.at[warp][4 * i + e][j][lane] = sum[i][j][e];
    __syncthreads();
    for (int group = warp; group < 4 * MI; group += N_WARPS) {
        int e = group % 4;
        write(m0 + 16 * (group / 4) + g + 8 * (e / 2), c0 + 16 * t + 8 * (e % 2), total(sums, group, lane));
    }
}

DEVICE void add_to(bf16 *to, Values<VECTOR> values) {
    Values<VECTOR> old = load<VECTOR>(to);
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        values.at[i] += old.at[i];
    store(to, values);
}

// The same of 4 neighbours.
DEVICE void add_to(bf16 *to, Values<4> values) {
    uint2 old = *(const uint2 *)to;
    values.at[0] += __uint_as_float(old.x << 16), values.at[1] += __uint_as_float(old.x & 0xffff0000u);
    values.at[2] += __uint_as_float(old.y << 16), values.at[3] += __uint_as_float(old.y & 0xffff0000u);
    put(to, values);
}

// `row[column..] += values` within `width`.
template <int COUNT> DEVICE void add_to_row(bf16 *row, const Values<COUNT> &values, int column, int width) {
    bf16 *to = row + column;
    if (width % COUNT == 0) {
        if (column < width)
            add_to(to, values);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (column + i < width)
                to[i] = to_bf16(to_f32(to[i]) + values.at[i]);
    }
}
