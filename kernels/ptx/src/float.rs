//! Floating-point instructions in f32, f64 and the two halves.
//!
//! Invariant: what PTX rounds to nearest even is rounded once, exactly; approximate instructions are computed in f64
//! and rounded to f32.

use std::cmp::Ordering::{Equal, Greater, Less};

use half::{bf16, f16};

use crate::lanes::{Comparison, Function, Lanes, N_LANES, lane_comparison, lane_function};
use crate::types::Type;

/// The function of a mnemonic whose parts are `parts` and whose type is `ty`.
pub(crate) fn function(parts: &[&str], ty: Type) -> Option<Function> {
    match ty {
        Type::F32 => single(parts).or_else(|| approximate(parts)),
        Type::F64 => double(parts),
        Type::Bf16 | Type::Bf16x2 => brain(parts),
        Type::F16 | Type::F16x2 => half(parts),
        _ => None,
    }
}

fn single(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["add", "f32"] | ["add", "rn", "f32"] => lane_function!(|a: f32, b: f32| a + b),
        ["sub", "f32"] | ["sub", "rn", "f32"] => lane_function!(|a: f32, b: f32| a - b),
        ["mul", "f32"] | ["mul", "rn", "f32"] => lane_function!(|a: f32, b: f32| a * b),
        ["fma", "rn", "f32"] => lane_function!(|a: f32, b: f32, c: f32| a.mul_add(b, c)),
        ["div", "rn", "f32"] => lane_function!(|a: f32, b: f32| a / b),
        ["rcp", "rn", "f32"] => lane_function!(|a: f32| 1.0f32 / a),
        ["sqrt", "rn", "f32"] => lane_function!(|a: f32| a.sqrt()),
        ["neg", "f32"] => lane_function!(|a: f32| -a),
        ["abs", "f32"] => lane_function!(|a: f32| a.abs()),
        ["min", "f32"] => lane_function!(|a: f32, b: f32| least(a, b)),
        ["max", "f32"] => lane_function!(|a: f32, b: f32| -least(-a, -b)),
        _ => return None,
    })
}

/// The smaller; the other one where one is NaN; -0 below +0.
fn least(a: f32, b: f32) -> f32 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) {
        b
    } else {
        a
    }
}

fn approximate(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["ex2", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).exp2() as f32),
        ["ex2", "approx", "ftz", "f32"] => {
            lane_function!(|a: f32| flush(f64::from(flush(a)).exp2() as f32))
        }
        ["lg2", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).log2() as f32),
        ["lg2", "approx", "ftz", "f32"] => lane_function!(|a: f32| flush(f64::from(flush(a)).log2() as f32)),
        ["rcp", "approx", "f32"] => lane_function!(|a: f32| (1.0 / f64::from(a)) as f32),
        ["rcp", "approx", "ftz", "f32"] => lane_function!(|a: f32| flush((1.0 / f64::from(flush(a))) as f32)),
        ["sqrt", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).sqrt() as f32),
        ["rsqrt", "approx", "f32"] => lane_function!(|a: f32| (1.0 / f64::from(a).sqrt()) as f32),
        ["sin", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).sin() as f32),
        ["cos", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).cos() as f32),
        ["tanh", "approx", "f32"] => lane_function!(|a: f32| f64::from(a).tanh() as f32),
        // Outside of (2^-126, 2^126) the card's result for a divisor is 0.
        ["div", "approx", "f32"] => lane_function!(|a: f32, b: f32| {
            if b.abs() > 8.507_059e37 && b.is_finite() {
                if a.is_finite() { 0.0 } else { f32::NAN }
            } else {
                (f64::from(a) / f64::from(b)) as f32
            }
        }),
        _ => return None,
    })
}

/// A denormal becomes a zero of its sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn double(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["add", "f64"] | ["add", "rn", "f64"] => lane_function!(|a: f64, b: f64| a + b),
        ["sub", "f64"] | ["sub", "rn", "f64"] => lane_function!(|a: f64, b: f64| a - b),
        ["mul", "f64"] | ["mul", "rn", "f64"] => lane_function!(|a: f64, b: f64| a * b),
        ["fma", "rn", "f64"] => lane_function!(|a: f64, b: f64, c: f64| a.mul_add(b, c)),
        ["div", "rn", "f64"] => lane_function!(|a: f64, b: f64| a / b),
        ["sqrt", "rn", "f64"] => lane_function!(|a: f64| a.sqrt()),
        ["neg", "f64"] => lane_function!(|a: f64| -a),
        _ => return None,
    })
}

/// bf16: from sm_90 on all of these, before that only `fma`, `neg`, `abs`, `min` and `max`; what a target has is the
/// compiler's care.
fn brain(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["fma", "rn", "bf16"] => {
            lane_function!(|a: bf16, b: bf16, c: bf16| to_bf16(a.to_f64().mul_add(b.to_f64(), c.to_f64())))
        }
        ["fma", "rn", "bf16x2"] => {
            lane_function!(|a: u32, b: u32, c: u32| halves(a, b, c, |a, b, c| {
                let [a, b, c] = [a, b, c].map(|x| bf16::from_bits(x).to_f64());
                to_bf16(a.mul_add(b, c)).to_bits()
            }))
        }
        ["neg", "bf16"] => lane_function!(|a: u16| a ^ 0x8000),
        ["neg", "bf16x2"] => lane_function!(|a: u32| a ^ 0x8000_8000),
        _ => return None,
    })
}

fn half(parts: &[&str]) -> Option<Function> {
    Some(match parts {
        ["add", "f16"] => lane_function!(|a: f16, b: f16| to_f16(a.to_f64() + b.to_f64())),
        ["mul", "f16"] => lane_function!(|a: f16, b: f16| to_f16(a.to_f64() * b.to_f64())),
        ["fma", "rn", "f16"] => {
            lane_function!(|a: f16, b: f16, c: f16| to_f16(a.to_f64().mul_add(b.to_f64(), c.to_f64())))
        }
        ["add", "f16x2"] => lane_function!(|a: u32, b: u32| halves(a, b, 0, |a, b, _| {
            to_f16(f16::from_bits(a).to_f64() + f16::from_bits(b).to_f64()).to_bits()
        })),
        ["mul", "f16x2"] => lane_function!(|a: u32, b: u32| halves(a, b, 0, |a, b, _| {
            to_f16(f16::from_bits(a).to_f64() * f16::from_bits(b).to_f64()).to_bits()
        })),
        ["fma", "rn", "f16x2"] => lane_function!(|a: u32, b: u32, c: u32| halves(a, b, c, |a, b, c| {
            let [a, b, c] = [a, b, c].map(|x| f16::from_bits(x).to_f64());
            to_f16(a.mul_add(b, c)).to_bits()
        })),
        _ => return None,
    })
}

/// `each` on the lower and the upper halves.
fn halves(a: u32, b: u32, c: u32, each: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let low = each(a as u16, b as u16, c as u16);
    let high = each((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(high) << 16 | u32::from(low)
}

/// The f32 towards zero from `x`, its last bit set where something was lost: rounding that again to fewer bits gives
/// what rounding `x` at once would (Boldo & Melquiond 2008).
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    if back == x || nearest.is_nan() {
        return nearest;
    }
    let bits = if back.abs() > x.abs() {
        nearest.to_bits() - 1
    } else {
        nearest.to_bits()
    };
    f32::from_bits(bits | 1)
}

/// `x` to the nearest bf16, ties to even; every NaN is the card's.
pub(crate) fn to_bf16(x: f64) -> bf16 {
    narrow_bf16(to_odd(x))
}

/// See [`to_bf16`].
pub(crate) fn narrow_bf16(x: f32) -> bf16 {
    if x.is_nan() {
        return bf16::from_bits(0x7fff);
    }
    let bits = x.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
}

/// `x` to the nearest f16, ties to even.
pub(crate) fn to_f16(x: f64) -> f16 {
    f16::from_f32(to_odd(x))
}

/// The bits of `x` rounded to tf32: ten bits of mantissa, ties away from zero.
pub(crate) fn to_tf32(x: f32) -> u32 {
    if x.is_finite() {
        x.to_bits().wrapping_add(0x1000) & 0xffff_e000
    } else {
        x.to_bits()
    }
}

/// The comparison `name` of two floats; a name that ends in `u` also holds where one is NaN.
pub(crate) fn comparison(name: &str, ty: Type) -> Option<Comparison> {
    macro_rules! of {
        ($ty:ty) => {
            Some(match name {
                "eq" => lane_comparison!(|a, b: $ty| a == b),
                "ne" => lane_comparison!(|a, b: $ty| matches!(a.partial_cmp(&b), Some(Less | Greater))),
                "lt" => lane_comparison!(|a, b: $ty| a < b),
                "le" => lane_comparison!(|a, b: $ty| a <= b),
                "gt" => lane_comparison!(|a, b: $ty| a > b),
                "ge" => lane_comparison!(|a, b: $ty| a >= b),
                "equ" => lane_comparison!(|a, b: $ty| !matches!(a.partial_cmp(&b), Some(Less | Greater))),
                "neu" => lane_comparison!(|a, b: $ty| a != b),
                "ltu" => lane_comparison!(|a, b: $ty| !matches!(a.partial_cmp(&b), Some(Equal | Greater))),
                "leu" => lane_comparison!(|a, b: $ty| !matches!(a.partial_cmp(&b), Some(Greater))),
                "gtu" => lane_comparison!(|a, b: $ty| !matches!(a.partial_cmp(&b), Some(Less | Equal))),
                "geu" => lane_comparison!(|a, b: $ty| !matches!(a.partial_cmp(&b), Some(Less))),
                "num" => lane_comparison!(|a, b: $ty| !(a.is_nan() || b.is_nan())),
                "nan" => lane_comparison!(|a, b: $ty| a.is_nan() || b.is_nan()),
                _ => return None,
            })
        };
    }
    match ty {
        Type::F32 => of!(f32),
        Type::F64 => of!(f64),
        _ => None,
    }
}

/// Two f32 to a register of two bf16; the first input is the upper half.
pub(crate) fn pack_bf16x2(inputs: [&Lanes; 4], out: &mut Lanes) {
    for lane in 0..N_LANES {
        let [high, low] =
            [inputs[0], inputs[1]].map(|x| narrow_bf16(f32::from_bits(x[lane] as u32)).to_bits());
        out[lane] = u64::from(high) << 16 | u64::from(low);
    }
}

/// Two f32 to a register of two f16; the first input is the upper half.
pub(crate) fn pack_f16x2(inputs: [&Lanes; 4], out: &mut Lanes) {
    for lane in 0..N_LANES {
        let [high, low] =
            [inputs[0], inputs[1]].map(|x| f16::from_f32(f32::from_bits(x[lane] as u32)).to_bits());
        out[lane] = u64::from(high) << 16 | u64::from(low);
    }
}
