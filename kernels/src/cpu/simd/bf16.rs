//! Operands of products rounded to bf16: 8 bits of mantissa, to nearest even, with float32's exponents.
//!
//! Invariant: a pair is one word, the element with the even index in its low half; a NaN stays one.

use super::panel::{HALF_COLUMNS, HalfRow, Panel};
use super::tile::{Start, in_whole_rows};
use super::{Isa, Set, versions};

/// One row of half a panel of pairs: columns `j` of two rows of the panel of floats.
pub(crate) type PairRow = [u32; HALF_COLUMNS];

/// The bits of a bf16, in the upper half of a word.
#[inline(always)]
fn upper_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // adding could carry a NaN's bits away
    if value.is_nan() { 0x7fc0_0000 } else { rounded }
}

versions! {
    /// `out[i] = values[i]` rounded to bf16.
    pub(crate) fn round_row(values: &[f32], out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = f32::from_bits(upper_bits(*value));
        }
    }
}

versions! {
    /// Rounds rows of a panel in place.
    pub(crate) fn round_panel(panel: &mut [HalfRow]) {
        for value in panel.as_flattened_mut() {
            *value = f32::from_bits(upper_bits(*value));
        }
    }
}

/// That the machine multiplies bf16, and with that the operations on pairs: only [`Isa::bf16`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bf16(());

#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
impl Bf16 {
    /// Whether this machine and this set multiply bf16.
    pub(super) fn detect(isa: Isa) -> Option<Self> {
        (isa.set() == Set::Avx512 && is_x86_feature_detected!("avx512bf16")).then_some(Self(()))
    }

    /// `out[i]` = elements `2i` and `2i + 1`.
    pub(crate) fn pair_row(self, values: &[f32], out: &mut [u32]) {
        // SAFETY: this `Bf16` exists, so AVX-512 F, BW and BF16 were detected.
        unsafe { super::x86_bf16::pair_row(values, out) }
    }

    /// `out[h][p][j]` = elements `[2p][j]` and `[2p + 1][j]` of half `h` of the panel.
    pub(crate) fn pair_panel(self, panel: Panel<'_>, out: [&mut [PairRow]; 2]) {
        for (half, out) in [panel.low, panel.high].into_iter().zip(out) {
            // SAFETY: this `Bf16` exists, so AVX-512 F, BW and BF16 were detected.
            unsafe { super::x86_bf16::pair_half(half, out) }
        }
    }

    /// `rows [W, N] (+)= a · b` of pairs: `a` W rows of words, `b` as many rows of a panel's halves, W of 1 to 12, N up to 32.
    pub(crate) fn multiply(self, a: &[&[u32]], b: [&[PairRow]; 2], rows: &mut [&mut [f32]], start: Start) {
        in_whole_rows(rows, |rows| {
            // SAFETY: this `Bf16` exists, so AVX-512 F, BW and BF16 were detected.
            unsafe { super::x86_bf16::multiply(a, b, rows, start) }
        });
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Bf16 {
    /// There is no such code for this architecture.
    pub(super) fn detect(_: Isa) -> Option<Self> {
        None
    }

    pub(crate) fn pair_row(self, _: &[f32], _: &mut [u32]) {}

    pub(crate) fn pair_panel(self, _: Panel<'_>, _: [&mut [PairRow]; 2]) {}

    pub(crate) fn multiply(self, _: &[&[u32]], _: [&[PairRow]; 2], _: &mut [&mut [f32]], _: Start) {}
}
