// Rotary position embedding (Su et al. 2021) in place, pairing element `i` with `i + D/2`.
//
// `q [M, H, D]` and `k [M, KV, D]` bf16 (`k` may have no heads), `positions [M]` u32, `frequencies [D/2]` f32 (radians a
// position). `direction` is 1 to turn and -1 to turn back, which is the gradient. One block a row and 4 heads, those of
// `q` before those of `k`: a step of few rows has blocks enough, and an angle's sine serves 4 heads. A thread owns one
// pair index. The angle is `position * frequency` rounded to f32, as the CPU has it.
#include "common.cuh"

// Sine and cosine of any angle below 2^17: what is left of whole quarter turns, then the polynomials of Cephes (Moshier).
DEVICE void sine_cosine(float angle, float &sine, float &cosine) {
    // pi/2 in three parts; a product with a fused subtraction loses nothing of the first
    const float HIGH = 1.57079637e+0f, MIDDLE = -4.37113900e-8f, LOW = -1.71512489e-15f;
    float turns = rintf(angle * 0.636619772f);
    float r = fmaf(-turns, HIGH, angle);
    r = fmaf(-turns, MIDDLE, r);
    r = fmaf(-turns, LOW, r);
    float square = r * r;
    float s = fmaf(square, -1.9515295891e-4f, 8.3321608736e-3f);
    s = fmaf(square, s, -1.6666654611e-1f);
    s = fmaf(square * s, r, r);
    float c = fmaf(square, 2.443315711809948e-5f, -1.388731625493765e-3f);
    c = fmaf(square, c, 4.166664568298827e-2f);
    c = fmaf(square * square, c, fmaf(square, -0.5f, 1.0f));
    int quarter = (int)turns & 3;
    sine = quarter & 1 ? c : s;
    cosine = quarter & 1 ? s : c;
    if (quarter & 2)
        sine = -sine;
    if ((quarter + 1) & 2)
        cosine = -cosine;
}

#define HEADS_OF_BLOCK 4

KERNEL(256) rope(bf16 *q, bf16 *k, const u32 *positions, const float *frequencies, float direction, int n_q, int n_k,
                 int half) {
    int begin = blockIdx.y * HEADS_OF_BLOCK, end = min(begin + HEADS_OF_BLOCK, n_q + n_k);
    float position = (float)positions[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float sine, cosine;
        sine_cosine(position * frequencies[i], sine, cosine);
        sine *= direction;
        for (int head = begin; head < end; head++) {
            u64 of_q = (u64)blockIdx.x * n_q + head, of_k = (u64)blockIdx.x * n_k + (head - n_q);
            bf16 *first = (head < n_q ? q + of_q * 2 * half : k + of_k * 2 * half) + i, *second = first + half;
            float a = to_f32(*first), b = to_f32(*second);
            *first = to_bf16(a * cosine - b * sine);
            *second = to_bf16(b * cosine + a * sine);
        }
    }
}
