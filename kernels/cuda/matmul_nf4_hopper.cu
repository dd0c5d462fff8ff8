// The forward product with an NF4 weight `W [N, K]` on Hopper's tensor cores, for the many rows of training.
//
// `y [M, N] = x [M, K] · Wᵀ`, with a LoRA pair `+ scale * h [M, R] · Bᵀ`, rounded once.
// `x, y` bf16, `h, B` and sums f32. The packed form is in `nf4.cuh`.
//
// Invariant: a row's result does not depend on M; it is not, to the bit, that of the kernels for every card. A sum is one
// chain over k in steps of 16, then the pair's. W is what the backward multiplies with: codes in bf16 times their scale as
// two bf16, rounded.
//
// A block of two warpgroups makes 256 rows by 128 columns, as 128 rows of W by 256 of x: a warpgroup has 64 rows of W, a
// warp 16. W goes from its codes straight into the registers of the left operand, and never through shared memory, whose
// rate is what limits a product of two operands that lie there. The rows of x are the right operand, in a ring of stages
// that asynchronous copies fill some steps of 64 ahead. A fragment's row r is row 2r of the warp's, its row 8 + r row
// 2r + 1: a lane then has neighbours to read and to write.
//
// While the tensor cores are at one step, each warp decodes the next into registers of its own, and the products of the
// next are issued before those of the last are waited for: the tensor cores go from one to the other. A step past the end
// multiplies zeros, so that steps come in pairs, each with registers of its own.
#include "nf4.cuh"
#include "tiles.cuh"
#include "wgmma.cuh"

#define HOPPER_M 256
#define HOPPER_N 128
// Stages of 38 KB: products of one step may be under way, another is decoded, and copies fill the other three.
#define DEPTH 5
#define AHEAD (DEPTH - 2)
#define ROW_COPIES (HOPPER_M * STEP_PIECES / THREADS)

struct Stage {
    uint4 rows[HOPPER_M][STEP_PIECES];
    uint4 units[HOPPER_N / TILE_N][8][8];
    Split scales[HOPPER_N]; // either half of a word holds the row's scale
    RawScale raw_scales[HOPPER_N];
};
static_assert(DEPTH * sizeof(Stage) == 194560, "what the launch asks for");

extern __shared__ __align__(1024) Stage ring[];

DEVICE int after(int stage) { return stage + 1 == DEPTH ? 0 : stage + 1; }

// Where piece `piece` of row `row` lies, of rows of x as of units: the swizzle of `right_operand`, by which lanes of a warp
// that take a piece of 8 rows at once are at 8 different places.
DEVICE int swizzled(int row, int piece) { return piece ^ row % 8; }

// What a thread copies of each step, and how far it has come.
struct Copier {
    int n_steps;
    const bf16 *x;        // its piece of the block's first row, in the next step
    u32 rows[ROW_COPIES]; // from there to its piece of each of its rows, the last of x for those that are not there
    int row_slot;
    const uint4 *units; // its unit, in the next step
    bool is_unit;
    int unit_slot;
    Scales scales;
    int scale_row, n_padded;

    __device__ __forceinline__ void copy_rows(Stage &stage, int step) {
        bool there = step < n_steps;
#pragma unroll
        for (int i = 0; i < ROW_COPIES; i++)
            copy_async(stage.rows[i * (THREADS / STEP_PIECES)] + row_slot, x + rows[i], there);
        x += there ? STEP : 0;
    }

    __device__ __forceinline__ void copy_unit(Stage &stage, int step) {
        bool there = is_unit && step < n_steps;
        copy_async(stage.units[0][0] + unit_slot, units, there);
        units += there ? TILE_UNITS : 0;
    }

    __device__ __forceinline__ void copy_scale(Stage &stage, int step) {
        bool there = step < n_steps;
        if (threadIdx.x < HOPPER_N)
            stage.raw_scales[threadIdx.x].copy(scales, there ? scale_row : n_padded, there ? step : 0, n_padded, n_steps);
    }

    // Begins a group: the rows of a step, units of the step after it and scales of the one after that, as they are needed.
    __device__ __forceinline__ void begin(int step, int stage) {
        copy_rows(ring[stage], step);
        copy_unit(ring[after(stage)], step + 1);
        copy_scale(ring[after(after(stage))], step + 2);
        copies_commit();
    }

    __device__ __forceinline__ void make_scale(Stage &stage) const {
        if (threadIdx.x < HOPPER_N) {
            float scale = stage.raw_scales[threadIdx.x].scale(scales, scale_row);
            stage.scales[threadIdx.x] = split(scale, scale);
        }
    }
};

DEVICE Copier copier(const bf16 *x, const uint4 *units, const Scales &scales, int2 corner, int m, int n, int k) {
    int first_row = threadIdx.x / STEP_PIECES, piece = threadIdx.x % STEP_PIECES;
    int tile = threadIdx.x / TILE_UNITS, row = threadIdx.x % TILE_UNITS / 8, column = threadIdx.x % 8;
    Copier copier;
    copier.n_steps = k / TILE_K;
    copier.x = x + (u64)corner.x * k + VECTOR * piece;
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++)
        copier.rows[i] = min(first_row + i * (THREADS / STEP_PIECES), m - 1 - corner.x) * k;
    copier.row_slot = first_row * STEP_PIECES + swizzled(first_row, piece);
    copier.is_unit = corner.y + TILE_N * tile < n;
    u64 first_tile = copier.is_unit ? (u64)(corner.y / TILE_N + tile) * copier.n_steps : 0;
    copier.units = units + first_tile * TILE_UNITS + threadIdx.x % TILE_UNITS;
    copier.unit_slot = (tile * 8 + row) * 8 + swizzled(row, column);
    copier.scales = scales;
    copier.scale_row = corner.y + threadIdx.x;
    copier.n_padded = (n + TILE_N - 1) / TILE_N * TILE_N;
    return copier;
}

// A step's left operand: of two neighbouring rows the codes that fragments give to a lane, which are byte t of each word.
DEVICE void decode_left(u32 (&left)[4][4], const Stage &stage) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int row = warp % 2 * 4 + g / 2; // of units; two lanes share one
    const uint4(&units)[8] = stage.units[warp / 2][row];
    uint4 scales = *(const uint4 *)(stage.scales + 16 * warp + 2 * g);
    Split upper_scale = {scales.x, scales.y}, lower_scale = {scales.z, scales.w};
    u32 byte_t_of_both = 0x40 + 0x11 * t;
#pragma unroll
    for (int step = 0; step < 4; step++) {
        uint2 first = ((const uint2 *)(units + swizzled(row, 2 * step)))[g % 2];
        uint2 second = ((const uint2 *)(units + swizzled(row, 2 * step + 1)))[g % 2];
        uint2 upper = decode_half(__byte_perm(first.x, second.x, byte_t_of_both));
        uint2 lower = decode_half(__byte_perm(first.y, second.y, byte_t_of_both));
        left[step][0] = scaled(upper.x, upper_scale);
        left[step][1] = scaled(lower.x, lower_scale);
        left[step][2] = scaled(upper.y, upper_scale);
        left[step][3] = scaled(lower.y, lower_scale);
    }
}

// Begins the products of a step, whose stage `stage` is, and prepares the next in `next`.
DEVICE void advance(float (&sum)[128], const u32 (&left)[4][4], u32 (&next)[4][4], Copier &copier, int step, int stage) {
    copies_wait<AHEAD - 1>();
    fence_for_products();
    __syncthreads(); // the step's rows are there, and the products of two steps ago are done in either warpgroup
    u64 right = right_operand(ring[stage].rows);
    products_begin();
#pragma unroll
    for (int i = 0; i < 4; i++)
        multiply_add_async(sum, left[i], right + RIGHT_STEP * i);
    products_commit();
    products_wait<1>();
    int second = after(stage), third = after(second), fourth = after(third);
    copier.begin(step + AHEAD, fourth);
    copier.make_scale(ring[third]);
    decode_left(next, ring[second]);
}

// A LoRA pair's part in the same sums, up to 64 ranks at a time. Both operands are split, the product of the two lower parts
// left out; h takes the place of rows of x in two stages. A lane takes 4 neighbouring ranks of B where fragments give it
// columns 2t, 2t + 1, 2t + 8 and 2t + 9, so h lies in that order.
DEVICE void add_pair_async(float (&sum)[128], const Pair &pair, int m0, int m, int row0, int n) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = threadIdx.x;
    uint4(&high)[HOPPER_M][STEP_PIECES] = ring[0].rows, (&low)[HOPPER_M][STEP_PIECES] = ring[1].rows;
    for (int r0 = 0; r0 < pair.rank; r0 += STEP) {
        int n_steps = (min(pair.rank - r0, STEP) + 15) / 16;
        __syncthreads(); // nobody reads the stages any more
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

// The sums of x · Wᵀ.
DEVICE void multiply(float (&sum)[128], Copier &copier) {
    copier.copy_unit(ring[0], 0);
    copier.copy_scale(ring[0], 0);
    copier.copy_scale(ring[1], 1);
#pragma unroll
    for (int step = 0; step < AHEAD; step++)
        copier.begin(step, step);
    copies_wait<AHEAD - 1>();
    copier.make_scale(ring[0]);
    copier.make_scale(ring[1]);
    __syncthreads();
    u32 even[4][4], odd[4][4];
    decode_left(even, ring[0]);
    for (int step = 0, stage = 0; step < copier.n_steps; step += 2) {
        advance(sum, even, odd, copier, step, stage);
        stage = after(stage);
        advance(sum, odd, even, copier, step + 1, stage);
        stage = after(stage);
    }
    products_wait<0>();
    copies_wait<0>();
}

KERNEL(THREADS) matmul_nf4_hopper(bf16 *y, const bf16 *x, const uint4 *units, const float *scales, const u8 *codes,
                                  float offset, int m, int n, int k, const float *h, const float *b, float scale,
                                  int rank) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int2 block = place<HOPPER_M>(m, (n + HOPPER_N - 1) / HOPPER_N);
    int m0 = block.x * HOPPER_M, n0 = block.y * HOPPER_N, row0 = n0 + 16 * warp;
    Copier from = copier(x, units, Scales{scales, codes, offset}, int2{m0, n0}, m, n, k);
    float sum[128] = {};
    multiply(sum, from);
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
