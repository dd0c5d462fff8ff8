// The forward product with an NF4 weight `W [N, K]` on Hopper's tensor cores, for the many rows of training.
//
// `y [M, N] = x [M, K] · Wᵀ`, with a LoRA pair `+ scale * h [M, R] · Bᵀ`, rounded once.
// `x, y` bf16, `h, B` and sums f32. The packed form is in `nf4.cuh`, the loop in `hopper.cuh`.
//
// Invariant: a row's result does not depend on M; it is not, to the bit, that of the kernels for every card. W is what the
// backward multiplies with: codes in bf16 times their scale as two bf16, rounded.
//
// A warp has 16 rows of W. Row r of its fragments is row 2r of them and row 8 + r is row 2r + 1, so that a lane has
// neighbours to read and to write.
#include "hopper.cuh"

// What a thread copies and decodes of 128 rows of W.
struct Weight {
    int n_steps;
    RowCopier rows;
    const uint4 *units; // its unit, in the next step
    bool is_unit;
    int unit_slot;
    Scales scales; // those of a row lie in both halves of a word
    int scale_row, n_padded;

    __device__ __forceinline__ Weight(const bf16 *x, const uint4 *all_units, const Scales &scales, int m0, int m, int n0,
                                      int n, int k)
        : n_steps(k / TILE_K), rows(x, m0, m, k), scales(scales), scale_row(n0 + threadIdx.x),
          n_padded((n + TILE_N - 1) / TILE_N * TILE_N) {
        int tile = threadIdx.x / TILE_UNITS, row = threadIdx.x % TILE_UNITS / 8, column = threadIdx.x % 8;
        is_unit = n0 + TILE_N * tile < n;
        u64 first_tile = is_unit ? (u64)(n0 / TILE_N + tile) * n_steps : 0;
        units = all_units + first_tile * TILE_UNITS + threadIdx.x % TILE_UNITS;
        unit_slot = (tile * 8 + row) * 8 + slot_of(row, column);
    }

    // Lanes take a piece of 4 neighbouring rows of units at once, two lanes each.
    static __device__ __forceinline__ int slot_of(int row, int column) { return column ^ row; }

    __device__ __forceinline__ void copy_rows(Stage &stage, int step) { rows.copy(stage, step < n_steps); }

    __device__ __forceinline__ void copy_units(Stage &stage, int step) {
        bool there = is_unit && step < n_steps;
        copy_async(stage.units[0][0] + unit_slot, units, there);
        units += there ? TILE_UNITS : 0;
    }

    __device__ __forceinline__ void copy_scales(Stage &stage, int step) {
        bool there = step < n_steps;
        if (threadIdx.x < N_SCALES)
            stage.raw_scales[threadIdx.x].copy(scales, there ? scale_row : n_padded, there ? step : 0, n_padded, n_steps);
    }

    __device__ __forceinline__ void make_scales(Stage &stage) const {
        if (threadIdx.x < N_SCALES) {
            float scale = stage.raw_scales[threadIdx.x].scale(scales, scale_row);
            stage.scales[threadIdx.x] = split(scale, scale);
        }
    }

    // Of two neighbouring rows the codes that fragments give to a lane: byte t of each word.
    __device__ __forceinline__ void decode(LeftOperand &left, const Stage &stage) const {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
        int row = warp % 2 * 4 + g / 2;
        const uint4(&units)[8] = stage.units[warp / 2][row];
        uint4 both = *(const uint4 *)(stage.scales + 16 * warp + 2 * g);
        Split upper_scale = {both.x, both.y}, lower_scale = {both.z, both.w};
        u32 byte_t_of_both = 0x40 + 0x11 * t;
#pragma unroll
        for (int step = 0; step < 4; step++) {
            uint2 first = ((const uint2 *)(units + slot_of(row, 2 * step)))[g % 2];
            uint2 second = ((const uint2 *)(units + slot_of(row, 2 * step + 1)))[g % 2];
            uint2 upper = decode_half(__byte_perm(first.x, second.x, byte_t_of_both));
            uint2 lower = decode_half(__byte_perm(first.y, second.y, byte_t_of_both));
            left[step][0] = scaled(upper.x, upper_scale);
            left[step][1] = scaled(lower.x, lower_scale);
            left[step][2] = scaled(upper.y, upper_scale);
            left[step][3] = scaled(lower.y, lower_scale);
        }
    }
};

// A LoRA pair's part in the same sums, up to 64 ranks at a time. Both operands are split, the product of the two lower parts
// left out; h takes the place of rows of x in two stages. A lane takes 4 neighbouring ranks of B where fragments give it
// columns 2t, 2t + 1, 2t + 8 and 2t + 9, so h lies in that order.
DEVICE void add_pair_async(float (&sum)[128], const Pair &pair, int m0, int m, int row0, int n) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x;
    uint4(&high)[HOPPER_M][STEP_PIECES] = ring[0].rows, (&low)[HOPPER_M][STEP_PIECES] = ring[1].rows;
    for (int r0 = 0; r0 < pair.rank; r0 += STEP) {
        int n_steps = (min(pair.rank - r0, STEP) + 15) / 16;
        __syncthreads(); // nobody reads the ring any more
#pragma unroll 1
        for (int step = 0; step < n_steps; step++) {
            Split parts[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 h = float_piece(pair.h, m0 + row, m, r0 + 16 * step + 4 * i, pair.rank);
                parts[0][i] = split(h.x * pair.scale, h.y * pair.scale);
                parts[1][i] = split(h.z * pair.scale, h.w * pair.scale);
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Split(&part)[4] = parts[half];
                int slot = swizzled(row, 2 * step + half);
                high[row][slot] = uint4{part[0].high, part[1].high, part[2].high, part[3].high};
                low[row][slot] = uint4{part[0].low, part[1].low, part[2].low, part[3].low};
            }
        }
        fence_for_products();
        __syncthreads();
#pragma unroll 1
        for (int step = 0; step < n_steps; step++) {
            u32 left_high[4], left_low[4];
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float4 b = float_piece(pair.b, row0 + 2 * g + below, n, r0 + 16 * step + 4 * t, pair.rank);
                Split first = split(b.x, b.y), second = split(b.z, b.w);
                left_high[below] = first.high, left_high[2 + below] = second.high;
                left_low[below] = first.low, left_low[2 + below] = second.low;
            }
            products_begin();
            multiply_add_async(sum, left_high, right_operand(high) + RIGHT_STEP * step);
            multiply_add_async(sum, left_high, right_operand(low) + RIGHT_STEP * step);
            multiply_add_async(sum, left_low, right_operand(high) + RIGHT_STEP * step);
            products_commit();
            products_wait<0>();
        }
    }
}

KERNEL(THREADS) matmul_nf4_hopper(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes,
                                  float offset, int m, int n, int k, const float *h, const float *b, float scale,
                                  int rank) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int2 block = place<HOPPER_M>(m, (n + HOPPER_N - 1) / HOPPER_N);
    int m0 = block.x * HOPPER_M, n0 = block.y * HOPPER_N, row0 = n0 + 16 * warp;
    Weight weight(x, units, Scales{scales, codes, offset}, m0, m, n0, n, k);
    float sum[128] = {};
    multiply(sum, weight, weight.n_steps);
    if (h)
        add_pair_async(sum, Pair{h, b, scale, rank}, m0, m, row0, n);
#pragma unroll
    for (int j = 0; j < HOPPER_M / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int row = m0 + 8 * j + 2 * t + e;
            if (row < m)
                put_row(y + (u64)row * n, Values<2>{sum[4 * j + e], sum[4 * j + 2 + e]}, row0 + 2 * g, n);
        }
}
