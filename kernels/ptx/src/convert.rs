//! `cvt`: from one type to another.
//!
//! Invariant: a float becomes an integer in the direction the mnemonic names and is clamped to the integer's range;
//! NaN becomes 0.

use half::{bf16, f16};

use crate::float::{narrow_bf16, pack_bf16x2, pack_f16x2, to_f16, to_tf32};
use crate::lanes::{Function, Lanes, N_LANES, Raw, lane_function};
use crate::types::Type;

/// The function of `cvt` with these parts after its name: modifiers, target type, source type.
pub(crate) fn function(parts: &[&str]) -> Option<Function> {
    let [modifiers @ .., to, from] = parts else {
        return None;
    };
    let (to, from) = (Type::of_name(to)?, Type::of_name(from)?);
    match modifiers {
        [] => integers(to, from).or_else(|| exact(to, from)),
        ["rn"] => to_float(to, from),
        ["sat"] if (to, from) == (Type::F32, Type::F32) => Some(lane_function!(|a: f32| saturate(a))),
        ["rna"] if (to, from) == (Type::Tf32, Type::F32) => Some(lane_function!(|a: f32| to_tf32(a))),
        [rounding] => to_integer(rounding, to, from),
        _ => None,
    }
}

/// Into `[0, 1]`; NaN to 0.
fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// An integer in 64 bits, to be cut to any width.
trait Integer: Raw {
    fn extended(self) -> u64;
    fn cut(bits: u64) -> Self;
}

macro_rules! integers {
    ($($ty:ty => $wide:ty),*) => {$(
        impl Integer for $ty {
            #[inline(always)]
            fn extended(self) -> u64 {
                <$wide>::from(self) as u64
            }
            #[inline(always)]
            fn cut(bits: u64) -> Self {
                bits as Self
            }
        }
    )*};
}

integers!(u8 => u64, u16 => u64, u32 => u64, u64 => u64, i8 => i64, i16 => i64, i32 => i64, i64 => i64);

fn cast<From: Integer, To: Integer>(inputs: [&Lanes; 4], out: &mut Lanes) {
    for lane in 0..N_LANES {
        out[lane] = To::cut(From::of_raw(inputs[0][lane]).extended()).raw();
    }
}

fn integers(to: Type, from: Type) -> Option<Function> {
    fn from_type<From: Integer>(to: Type) -> Option<Function> {
        Some(match to {
            Type::U8 => cast::<From, u8>,
            Type::U16 => cast::<From, u16>,
            Type::U32 => cast::<From, u32>,
            Type::U64 => cast::<From, u64>,
            Type::S8 => cast::<From, i8>,
            Type::S16 => cast::<From, i16>,
            Type::S32 => cast::<From, i32>,
            Type::S64 => cast::<From, i64>,
            _ => return None,
        })
    }
    match from {
        Type::U8 => from_type::<u8>(to),
        Type::U16 => from_type::<u16>(to),
        Type::U32 => from_type::<u32>(to),
        Type::U64 => from_type::<u64>(to),
        Type::S8 => from_type::<i8>(to),
        Type::S16 => from_type::<i16>(to),
        Type::S32 => from_type::<i32>(to),
        Type::S64 => from_type::<i64>(to),
        _ => None,
    }
}

/// Conversions that lose nothing.
fn exact(to: Type, from: Type) -> Option<Function> {
    Some(match (to, from) {
        (Type::F64, Type::F32) => lane_function!(|a: f32| f64::from(a)),
        (Type::F32, Type::F16) => lane_function!(|a: f16| a.to_f32()),
        (Type::F32, Type::Bf16) => lane_function!(|a: bf16| a.to_f32()),
        _ => return None,
    })
}

/// To the nearest float, ties to even.
fn to_float(to: Type, from: Type) -> Option<Function> {
    Some(match (to, from) {
        (Type::Bf16, Type::F32) => lane_function!(|a: f32| narrow_bf16(a)),
        (Type::F16, Type::F32) => lane_function!(|a: f32| f16::from_f32(a)),
        (Type::F16, Type::F64) => lane_function!(|a: f64| to_f16(a)),
        (Type::Bf16x2, Type::F32) => pack_bf16x2,
        (Type::F16x2, Type::F32) => pack_f16x2,
        (Type::F32, Type::F64) => lane_function!(|a: f64| a as f32),
        (Type::F32, Type::S8) => lane_function!(|a: i8| f32::from(a)),
        (Type::F32, Type::U8) => lane_function!(|a: u8| f32::from(a)),
        (Type::F32, Type::S16) => lane_function!(|a: i16| f32::from(a)),
        (Type::F32, Type::U16) => lane_function!(|a: u16| f32::from(a)),
        (Type::F32, Type::S32) => lane_function!(|a: i32| a as f32),
        (Type::F32, Type::U32) => lane_function!(|a: u32| a as f32),
        (Type::F32, Type::S64) => lane_function!(|a: i64| a as f32),
        (Type::F32, Type::U64) => lane_function!(|a: u64| a as f32),
        (Type::F64, Type::S32) => lane_function!(|a: i32| f64::from(a)),
        (Type::F64, Type::U32) => lane_function!(|a: u32| f64::from(a)),
        (Type::F64, Type::S64) => lane_function!(|a: i64| a as f64),
        (Type::F64, Type::U64) => lane_function!(|a: u64| a as f64),
        _ => return None,
    })
}

/// To an integer, or to a whole float, in the direction of `rounding`.
fn to_integer(rounding: &str, to: Type, from: Type) -> Option<Function> {
    macro_rules! rounded {
        ($source:ty, $($name:literal => $method:ident),*) => {
            match (rounding, to) {
                $(
                    ($name, Type::S32) => lane_function!(|a: $source| a.$method() as i32),
                    ($name, Type::U32) => lane_function!(|a: $source| a.$method() as u32),
                    ($name, Type::S64) => lane_function!(|a: $source| a.$method() as i64),
                    ($name, Type::U64) => lane_function!(|a: $source| a.$method() as u64),
                    ($name, Type::F32 | Type::F64) if to == from => lane_function!(|a: $source| a.$method()),
                )*
                _ => return None,
            }
        };
    }
    Some(match from {
        Type::F32 => rounded!(f32, "rzi" => trunc, "rni" => round_ties_even, "rmi" => floor, "rpi" => ceil),
        Type::F64 => rounded!(f64, "rzi" => trunc, "rni" => round_ties_even, "rmi" => floor, "rpi" => ceil),
        _ => return None,
    })
}
