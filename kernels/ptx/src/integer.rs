//! Integer and bit instructions.
//!
//! Invariant: arithmetic wraps; a division by zero gives all ones, as on the card, and never panics.

use crate::lanes::{Comparison, Function, lane_comparison, lane_function};
use crate::types::Type;

/// Evaluates `$body` with `$ty` naming the integer type of `$of`; `None` for another type.
macro_rules! for_integer {
    ($of:expr, $ty:ident => $body:expr) => {
        match $of {
            Type::B16 | Type::U16 => {
                type $ty = u16;
                Some($body)
            }
            Type::B32 | Type::U32 => {
                type $ty = u32;
                Some($body)
            }
            Type::B64 | Type::U64 => {
                type $ty = u64;
                Some($body)
            }
            Type::S16 => {
                type $ty = i16;
                Some($body)
            }
            Type::S32 => {
                type $ty = i32;
                Some($body)
            }
            Type::S64 => {
                type $ty = i64;
                Some($body)
            }
            _ => None,
        }
    };
}

/// The function of a mnemonic whose parts are `parts` and whose type is `ty`.
pub(crate) fn function(parts: &[&str], ty: Type) -> Option<Function> {
    match parts {
        ["add", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a.wrapping_add(b))),
        ["sub", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a.wrapping_sub(b))),
        ["mul", "lo", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a.wrapping_mul(b))),
        ["mad", "lo", _] => {
            for_integer!(ty, T => lane_function!(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c)))
        }
        ["div", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| {
            if b == 0 { !0 } else { a.wrapping_div(b) }
        })),
        ["rem", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| {
            if b == 0 { !0 } else { a.wrapping_rem(b) }
        })),
        ["min", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a.min(b))),
        ["max", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a.max(b))),
        ["and", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a & b)),
        ["or", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a | b)),
        ["xor", _] => for_integer!(ty, T => lane_function!(|a: T, b: T| a ^ b)),
        ["not", _] => for_integer!(ty, T => lane_function!(|a: T| !a)),
        ["neg", _] => for_integer!(ty, T => lane_function!(|a: T| T::wrapping_sub(0, a))),
        // A shift by the width or more leaves nothing, or the sign.
        ["shl", _] => for_integer!(ty, T => lane_function!(|a: T, b: u32| a.checked_shl(b).unwrap_or(0))),
        ["shr", _] => for_integer!(ty, T => lane_function!(|a: T, b: u32| {
            a >> b.min(T::BITS - 1) >> u32::from(b >= T::BITS)
        })),
        _ => wide(parts, ty)
            .or_else(|| high(parts, ty))
            .or_else(|| bits(parts, ty)),
    }
}

/// Products of twice the width.
fn wide(parts: &[&str], ty: Type) -> Option<Function> {
    Some(match (parts, ty) {
        (["mul", "wide", _], Type::U16) => lane_function!(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        (["mul", "wide", _], Type::S16) => lane_function!(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        (["mul", "wide", _], Type::U32) => lane_function!(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        (["mul", "wide", _], Type::S32) => lane_function!(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        (["mad", "wide", _], Type::U32) => {
            lane_function!(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        (["mad", "wide", _], Type::S32) => {
            lane_function!(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        _ => return None,
    })
}

/// The upper half of products.
fn high(parts: &[&str], ty: Type) -> Option<Function> {
    Some(match (parts, ty) {
        (["mul", "hi", _], Type::U32) => {
            lane_function!(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32)
        }
        (["mul", "hi", _], Type::S32) => {
            lane_function!(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32)
        }
        (["mul", "hi", _], Type::U64) => {
            lane_function!(|a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64)
        }
        (["mul", "hi", _], Type::S64) => {
            lane_function!(|a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64)
        }
        _ => return None,
    })
}

/// Instructions on bit patterns.
fn bits(parts: &[&str], ty: Type) -> Option<Function> {
    Some(match (parts, ty) {
        (["abs", _], Type::S32) => lane_function!(|a: i32| a.wrapping_abs()),
        (["abs", _], Type::S64) => lane_function!(|a: i64| a.wrapping_abs()),
        (["popc", _], Type::B32) => lane_function!(|a: u32| a.count_ones()),
        (["popc", _], Type::B64) => lane_function!(|a: u64| a.count_ones()),
        (["clz", _], Type::B32) => lane_function!(|a: u32| a.leading_zeros()),
        (["clz", _], Type::B64) => lane_function!(|a: u64| a.leading_zeros()),
        (["brev", _], Type::B32) => lane_function!(|a: u32| a.reverse_bits()),
        (["bfe", _], Type::U32) => lane_function!(|a: u32, b: u32, c: u32| extract(a, b & 0xff, c & 0xff)),
        (["prmt", _], Type::B32) => lane_function!(|a: u32, b: u32, c: u32| permute(a, b, c)),
        (["shf", "l", "wrap", _], Type::B32) => {
            lane_function!(|a: u32, b: u32, c: u32| {
                let both = u64::from(b) << 32 | u64::from(a);
                (both << (c & 31) >> 32) as u32
            })
        }
        (["shf", "r", "wrap", _], Type::B32) => {
            lane_function!(|a: u32, b: u32, c: u32| {
                let both = u64::from(b) << 32 | u64::from(a);
                (both >> (c & 31)) as u32
            })
        }
        (["lop3", _], Type::B32) => lookup as Function,
        (["bfi", _], Type::B32) => insert as Function,
        _ => return None,
    })
}

/// `length` bits of `value` from bit `first`.
fn extract(value: u32, first: u32, length: u32) -> u32 {
    let shifted = value.checked_shr(first).unwrap_or(0);
    match length {
        0 => 0,
        1..=31 => shifted & ((1 << length) - 1),
        _ => shifted,
    }
}

/// The low bits of the first input, put into the second from a bit on; the fourth says how many.
fn insert(inputs: [&crate::lanes::Lanes; 4], out: &mut crate::lanes::Lanes) {
    for (lane, out) in out.iter_mut().enumerate() {
        let [from, into, first, length] = inputs.map(|input| input[lane] as u32);
        let (first, length) = (first & 0xff, length & 0xff);
        let ones = if length > 31 { u32::MAX } else { (1 << length) - 1 };
        let mask = ones.checked_shl(first).unwrap_or(0);
        *out = u64::from(into & !mask | from.checked_shl(first).unwrap_or(0) & mask);
    }
}

/// Each result byte is one of the eight of `b:a`, or its sign spread.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |result, index| {
        let choice = selector >> (4 * index) & 0xf;
        let byte = (bytes >> (8 * (choice & 7)) & 0xff) as u32;
        let byte = match choice & 8 {
            0 => byte,
            _ if byte & 0x80 != 0 => 0xff,
            _ => 0,
        };
        result | byte << (8 * index)
    })
}

/// Any function of three bits, by its truth table in the fourth input.
fn lookup(inputs: [&crate::lanes::Lanes; 4], out: &mut crate::lanes::Lanes) {
    for (lane, out) in out.iter_mut().enumerate() {
        let [a, b, c, table] = inputs.map(|input| input[lane] as u32);
        *out = u64::from(
            (0..8)
                .filter(|row| table >> row & 1 == 1)
                .fold(0u32, |result, row| {
                    let a = if row & 4 != 0 { a } else { !a };
                    let b = if row & 2 != 0 { b } else { !b };
                    let c = if row & 1 != 0 { c } else { !c };
                    result | a & b & c
                }),
        );
    }
}

/// The comparison `name` of two integers.
pub(crate) fn comparison(name: &str, ty: Type) -> Option<Comparison> {
    match name {
        "eq" => for_integer!(ty, T => lane_comparison!(|a, b: T| a == b)),
        "ne" => for_integer!(ty, T => lane_comparison!(|a, b: T| a != b)),
        "lt" | "lo" => for_integer!(ty, T => lane_comparison!(|a, b: T| a < b)),
        "le" | "ls" => for_integer!(ty, T => lane_comparison!(|a, b: T| a <= b)),
        "gt" | "hi" => for_integer!(ty, T => lane_comparison!(|a, b: T| a > b)),
        "ge" | "hs" => for_integer!(ty, T => lane_comparison!(|a, b: T| a >= b)),
        _ => None,
    }
}
