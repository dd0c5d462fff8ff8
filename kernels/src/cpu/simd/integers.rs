//! Products of integers: left rows and weights of up to 14 bits with their scales, two neighbours of K in a word.
//!
//! Invariant: within a block the sum of the products is an exact integer, below 2³¹ by the widths of the operands; then
//! `c = fma(sum, weight scale * row scale, c)`, block after block. So neither M nor the instruction set shows.

use super::isa::versions;
use super::tile::{Start, TILE_COLUMNS, TileRow};
use super::{Isa, Nf4TileView, Q8_0TileView, Q8Column, Set};

/// Elements of a left row that share a scale: a block of NF4.
pub(crate) const LEFT_BLOCK_LEN: usize = crate::nf4::BLOCK_LEN;

/// Largest magnitude of a left element. With a weight's `WEIGHT_MAX`, 64 products stay below 2³¹:
/// `8191 * 4095 * 64 = 2,146,697,280`.
pub(crate) const LEFT_MAX: f32 = 8191.0;

/// Largest magnitude of an NF4 level as an integer. Elements of Q8_0 are the integers that they are.
const WEIGHT_MAX: f32 = 4095.0;

/// What an NF4 block's scale is multiplied with.
pub(crate) const WEIGHT_UNIT: f32 = 1.0 / WEIGHT_MAX;

/// Two neighbours of K, the first in the lower half, of 32 rows of a weight.
pub(crate) type IntegerRow = [i32; TILE_COLUMNS];

/// A left row: pairs `[K / 2]` and scales `[K / 64]`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IntegerLeft<'a> {
    pub pairs: &'a [i32],
    pub scales: &'a [f32],
}

/// Left rows that lie behind one another.
#[derive(Clone, Copy)]
pub(crate) struct IntegerRows<'a> {
    /// From the first row's first pair on.
    pub pairs: &'a [i32],
    /// Pairs from row to row.
    pub pairs_step: usize,
    /// From the scale of its first block on.
    pub scales: &'a [f32],
    /// Scales from row to row.
    pub scales_step: usize,
}

impl<'a> IntegerRows<'a> {
    /// The first `n_pairs` of a row.
    #[inline(always)]
    pub(super) fn row(self, row: usize, n_pairs: usize) -> IntegerLeft<'a> {
        IntegerLeft {
            pairs: &self.pairs[row * self.pairs_step..][..n_pairs],
            scales: &self.scales[row * self.scales_step..][..(2 * n_pairs).div_ceil(LEFT_BLOCK_LEN)],
        }
    }
}

/// Rows of a weight, `[K / 2]`, and the scales of each of its blocks of `block_len`, which divides 64.
#[derive(Clone, Copy)]
pub(crate) struct IntegerPanel<'a> {
    pub pairs: &'a [IntegerRow],
    pub scales: &'a [TileRow],
    pub block_len: usize,
}

/// How floats become integers of up to 16 bits: `round(value / scale)`, ties to even.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    /// NaN where a value is not finite, so that whatever it is multiplied with shows it.
    pub scale: f32,
    /// The inverse, or 0 where that is no number, as of a subnormal.
    by: f32,
}

impl Rounding {
    /// Lets the largest of `values` become `max`.
    #[inline(always)]
    pub(crate) fn of(values: &[f32], max: f32) -> Self {
        let mut largest = 0u32;
        for value in values {
            largest = largest.max(value.to_bits() & 0x7fff_ffff); // of magnitudes the order is that of their bits
        }
        let largest = f32::from_bits(largest);
        let scale = if largest.is_finite() {
            largest / max
        } else {
            f32::NAN
        };
        let by = if scale >= f32::MIN_POSITIVE {
            1.0 / scale
        } else {
            0.0
        };
        Self { scale, by }
    }

    /// The integer of one of them, in the lower 16 bits.
    #[inline(always)]
    pub(crate) fn integer(self, value: f32) -> i32 {
        /// Adding it leaves a small number's nearest integer, ties to even, in the lower bits.
        const TO_INTEGER: f32 = 12_582_912.0;
        (value * self.by + TO_INTEGER).to_bits() as i32
    }
}

versions! {
    /// `row[i] = round(x[i] / scale)` with `scale = max|x| / 8191` for each block of 64. A block with a value that is not
    /// finite has the scale NaN, so that whatever it is multiplied with shows it.
    fn round_left_row(row: &[f32], pairs: &mut [i32], scales: &mut [f32]) {
        let blocks = row.as_chunks::<LEFT_BLOCK_LEN>().0;
        let out = pairs.as_chunks_mut::<{ LEFT_BLOCK_LEN / 2 }>().0;
        for ((block, out), scale) in blocks.iter().zip(out).zip(scales) {
            let rounding = Rounding::of(block, LEFT_MAX);
            *scale = rounding.scale;
            for (out, pair) in out.iter_mut().zip(block.as_chunks::<2>().0) {
                let [first, second] = pair.map(|value| rounding.integer(value));
                *out = (first & 0xffff) | (second << 16);
            }
        }
    }
}

/// [`round_left_row`] for `row [K]`, K a multiple of 64.
pub(crate) fn round_left(isa: Isa, row: &[f32], pairs: &mut [i32], scales: &mut [f32]) {
    round_left_row(isa, row, pairs, scales);
}

/// Whether integers are multiplied by AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni(isa: Isa) -> bool {
    isa.set() == Set::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// There is no such code for this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_vnni(_: Isa) -> bool {
    false
}

/// `rows [W, N] (+)= a [W, K] · panel` with W of at most 12 and N up to 32, the rows' length; of `a` the first rows and
/// pairs.
#[cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls code compiled for an instruction set that was detected"
    )
)]
pub(crate) fn multiply_integers(
    isa: Isa,
    a: IntegerRows<'_>,
    panel: IntegerPanel<'_>,
    rows: &mut [&mut [f32]],
    start: Start,
) {
    super::tile::in_whole_rows(rows, |rows| match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists, so AVX-512 F and BW were detected, and VNNI was here.
        Set::Avx512 if has_vnni(isa) => unsafe { super::x86_vnni::multiply(a, panel, rows, start) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
        Set::Avx512 | Set::Avx2 => unsafe { super::x86_integers::multiply(a, panel, rows, start) },
        _ => multiply_portable(a, panel, rows, start),
    });
}

fn multiply_portable(a: IntegerRows<'_>, panel: IntegerPanel<'_>, rows: &mut [&mut [f32]], start: Start) {
    if start == Start::Zero {
        rows.iter_mut().for_each(|row| row.fill(0.0));
    }
    let block_pairs = panel.block_len / 2;
    for (i, row) in rows.iter_mut().enumerate() {
        let a = a.row(i, panel.pairs.len());
        let blocks = panel.pairs.chunks(block_pairs).zip(a.pairs.chunks(block_pairs));
        for (block, ((weights, lefts), scales)) in blocks.zip(panel.scales).enumerate() {
            let mut sums = [0i32; TILE_COLUMNS];
            for (weights, left) in weights.iter().zip(lefts) {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += low(*left) * low(*weight) + (left >> 16) * (weight >> 16);
                }
            }
            let left_scale = a.scales[block * panel.block_len / LEFT_BLOCK_LEN];
            for ((c, sum), scale) in row.iter_mut().zip(sums).zip(scales) {
                *c = (sum as f32).mul_add(scale * left_scale, *c);
            }
        }
    }
}

/// The lower of two integers.
fn low(pair: i32) -> i32 {
    i32::from(pair as i16)
}

/// An NF4 level as an integer.
pub(super) const fn integer_level(level: f32) -> i16 {
    let scaled = level * WEIGHT_MAX;
    // a cast cuts off what is behind the point
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i16
}

/// `panel[i][j]` = the integers of rows `j` of a tile's columns `2 i` and `2 i + 1`; see [`super::Nf4TileView`].
#[cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls code compiled for an instruction set that was detected"
    )
)]
pub(crate) fn nf4_integers(isa: Isa, columns: &[[u8; 16]], panel: &mut [IntegerRow]) {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists, so AVX2 was detected.
        Set::Avx512 | Set::Avx2 => unsafe { super::x86_integers::nf4_integers(columns, panel) },
        _ => {
            for (pair, out) in columns.as_chunks::<2>().0.iter().zip(panel) {
                for (j, out) in out.iter_mut().enumerate() {
                    let [first, second] = pair.map(|column| {
                        let code = column[j % 16] >> (j / 16 * 4) & 15;
                        i32::from(integer_level(crate::nf4::CODE_VALUES[usize::from(code)]))
                    });
                    *out = (first & 0xffff) | (second << 16);
                }
            }
        }
    }
}

/// [`nf4_integers`] of Q8_0, an element of which is its own integer.
#[cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls code compiled for an instruction set that was detected"
    )
)]
pub(crate) fn q8_0_integers(isa: Isa, columns: &[Q8Column], panel: &mut [IntegerRow]) {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists, so AVX2 was detected.
        Set::Avx512 | Set::Avx2 => unsafe { super::x86_integers::q8_0_integers(columns, panel) },
        _ => {
            for ([first, second], out) in columns.as_chunks().0.iter().zip(panel) {
                for (out, (first, second)) in out.iter_mut().zip(first.0.iter().zip(&second.0)) {
                    *out = i32::from(*first as i8) & 0xffff | i32::from(*second as i8) << 16;
                }
            }
        }
    }
}

/// Most rows that are multiplied without a panel, by the registers of AVX2.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 2;

/// Defines `rows [W, 32] (+)= a [W, K] · Wᵀ` of one tile for one form of weight, where there is code for that many rows;
/// else it does nothing and says so.
macro_rules! few_integers {
    ($name:ident, $weight:ident, $few:ident) => {
        #[expect(
            unsafe_code,
            reason = "calls code compiled for an instruction set that was detected"
        )]
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn $name(
            isa: Isa,
            weight: $weight<'_>,
            tile: usize,
            a: &[IntegerLeft<'_>],
            rows: &mut [&mut [f32]],
            start: Start,
        ) -> bool {
            let is_whole = rows.iter().all(|row| row.len() == TILE_COLUMNS);
            if isa.set() == Set::Portable || rows.len() > FEW_ROWS || !is_whole {
                return false;
            }
            let (columns, scales) = weight.tile(tile, 0);
            // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
            unsafe { super::x86_integers::$few(columns, scales, a, rows, start) };
            true
        }

        /// There is no such code for this architecture.
        #[cfg(not(target_arch = "x86_64"))]
        pub(crate) fn $name(
            _: Isa,
            _: $weight<'_>,
            _: usize,
            _: &[IntegerLeft<'_>],
            _: &mut [&mut [f32]],
            _: Start,
        ) -> bool {
            false
        }
    };
}

few_integers!(nf4_few_integers, Nf4TileView, nf4_few);
few_integers!(q8_0_few_integers, Q8_0TileView, q8_0_few);
