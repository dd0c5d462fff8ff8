//! The functions and sums that several operations share.
//!
//! Invariant: a sum is taken in lanes, element `i` in lane `i % 32` (16 where it is in f64), and the lanes are added in
//! a fixed order, so it is the same number on every instruction set. All are inlined into code that `versions!` compiles.

/// Lanes of a sum: two registers of AVX-512, which hides the latency of an addition.
pub(super) const LANES: usize = 32;

/// `e^x`, within 2 units in the last place for `x` in `[-87, 88.3]`; below it is 0, above it stays at `e^88.3`.
///
/// Range reduction to `|r| <= ln(2) / 2` and the polynomial of Cephes' `expf` (Moshier).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts: the first has few enough digits that n * LN2_HIGH is exact
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = r.mul_add(1.987_569_1e-4, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { scaled }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Adds the lanes, halving their number each time.
#[inline(always)]
pub(super) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `sum of a[i] * b[i]` over the shorter length.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let len = a.len().min(b.len());
    let (a_chunks, a_rest) = a[..len].as_chunks::<LANES>();
    let (b_chunks, b_rest) = b[..len].as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = a.mul_add(*b, *lane);
    }
    add_lanes(lanes)
}

/// Sum of squares in f64.
#[inline(always)]
pub(super) fn sum_squares(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES / 2];
    let (chunks, rest) = values.as_chunks::<{ LANES / 2 }>();
    for chunk in chunks {
        for i in 0..LANES / 2 {
            lanes[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value) * f64::from(value);
    }
    lanes.iter().sum()
}

/// The largest value, `-inf` of none; NaN is passed over.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// `values[i] = e^(factor * values[i] - shift)` for each, and their sum.
#[inline(always)]
pub(super) fn exp_in_place(values: &mut [f32], factor: f32, shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(factor * chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *value = exp(factor * *value - shift);
        *lane += *value;
    }
    add_lanes(lanes)
}
