//! The 32 lanes of a warp, and functions that work on all of them.
//!
//! Invariant: a lane function looks at nothing but its inputs, so it may be run for lanes that are not active and its
//! result for them dropped.

use half::{bf16, f16};

/// Lanes of a warp.
pub(crate) const N_LANES: usize = 32;

/// One register of a warp.
pub(crate) type Lanes = [u64; N_LANES];

/// An arithmetic instruction: up to four inputs, one output.
pub(crate) type Function = fn([&Lanes; 4], &mut Lanes);

/// A comparison: one bit a lane.
pub(crate) type Comparison = fn(&Lanes, &Lanes) -> u32;

/// A value as a register holds it.
pub(crate) trait Raw: Copy {
    fn of_raw(raw: u64) -> Self;
    fn raw(self) -> u64;
}

macro_rules! raw_integers {
    ($($ty:ty as $unsigned:ty),*) => {$(
        impl Raw for $ty {
            #[inline(always)]
            fn of_raw(raw: u64) -> Self {
                raw as Self
            }
            #[inline(always)]
            fn raw(self) -> u64 {
                u64::from(self as $unsigned)
            }
        }
    )*};
}

raw_integers!(
    u8 as u8, u16 as u16, u32 as u32, u64 as u64, i8 as u8, i16 as u16, i32 as u32, i64 as u64
);

macro_rules! raw_floats {
    ($($ty:ty as $bits:ty),*) => {$(
        impl Raw for $ty {
            #[inline(always)]
            fn of_raw(raw: u64) -> Self {
                Self::from_bits(raw as $bits)
            }
            #[inline(always)]
            fn raw(self) -> u64 {
                self.to_bits() as u64
            }
        }
    )*};
}

raw_floats!(f64 as u64, f32 as u32, f16 as u16, bf16 as u16);

/// A [`Function`] of a formula on one lane's values.
macro_rules! lane_function {
    (|$($input:ident: $ty:ty),+| $body:expr) => {{
        fn all(inputs: [&$crate::lanes::Lanes; 4], out: &mut $crate::lanes::Lanes) {
            let mut inputs = inputs.into_iter();
            $(let Some($input) = inputs.next() else { return };)+
            for lane in 0..$crate::lanes::N_LANES {
                $(let $input = <$ty as $crate::lanes::Raw>::of_raw($input[lane]);)+
                out[lane] = $crate::lanes::Raw::raw($body);
            }
        }
        all as $crate::lanes::Function
    }};
}

/// A [`Comparison`] of a formula on one lane's values.
macro_rules! lane_comparison {
    (|$a:ident, $b:ident: $ty:ty| $body:expr) => {{
        fn all(left: &$crate::lanes::Lanes, right: &$crate::lanes::Lanes) -> u32 {
            let mut mask = 0u32;
            for lane in 0..$crate::lanes::N_LANES {
                let $a = <$ty as $crate::lanes::Raw>::of_raw(left[lane]);
                let $b = <$ty as $crate::lanes::Raw>::of_raw(right[lane]);
                mask |= u32::from($body) << lane;
            }
            mask
        }
        all as $crate::lanes::Comparison
    }};
}

pub(crate) use {lane_comparison, lane_function};

/// The lanes of `mask`, lowest first.
pub(crate) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}
