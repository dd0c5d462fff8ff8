//! Products of integers with AVX2 intrinsics, which multiply and add two neighbours of K at once.
//!
//! Invariant: see [`super::integers`].

use std::arch::x86_64::*;

use super::few_rows::{Q8_0TileView, Q8Column};
use super::integers::{
    IntegerLeft, IntegerPanel, IntegerRow, IntegerRows, LEFT_BLOCK_LEN, WEIGHT_UNIT, integer_level,
};
use super::tile::{Start, TileRow};
use super::x86::{load_256, load_bytes_256, load_words_256, store_256, store_words_256};
use super::x86_avx2::{load_row, store_row};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// Rows whose sums, of 16 columns, AVX2's 16 registers hold.
const ROWS: usize = 6;

/// See [`super::multiply_integers`]; rows are 16 or 32 long.
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply(a: IntegerRows<'_>, panel: IntegerPanel<'_>, rows: &mut [&mut [f32]], start: Start) {
    let n_columns = rows.first().map_or(0, |row| row.len());
    for (first, rows) in (0..).step_by(ROWS).zip(rows.chunks_mut(ROWS)) {
        let mut lefts = [IntegerLeft::default(); ROWS];
        for (i, left) in lefts[..rows.len()].iter_mut().enumerate() {
            *left = a.row(first + i, panel.pairs.len());
        }
        let a = &lefts[..rows.len()];
        for half in 0..n_columns / 16 {
            match rows.len() {
                1 => multiply_rows::<1>(a, half, panel, rows, start),
                2 => multiply_rows::<2>(a, half, panel, rows, start),
                3 => multiply_rows::<3>(a, half, panel, rows, start),
                4 => multiply_rows::<4>(a, half, panel, rows, start),
                5 => multiply_rows::<5>(a, half, panel, rows, start),
                _ => multiply_rows::<ROWS>(a, half, panel, rows, start),
            }
        }
    }
}

/// Columns `16 half..` of W rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply_rows<const W: usize>(
    a: &[IntegerLeft<'_>],
    half: usize,
    panel: IntegerPanel<'_>,
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
        return;
    };
    let block_pairs = panel.block_len / 2;
    let n_pairs = panel.pairs.len();
    let mut lefts: [&[i32]; W] = [&[]; W];
    let mut left_scales: [&[f32]; W] = [&[]; W];
    let mut out = [[_mm256_setzero_ps(); 2]; W];
    for i in 0..W {
        lefts[i] = &a[i].pairs[..n_pairs];
        left_scales[i] = a[i].scales;
        if start == Start::Current {
            let Some(parts) = half_of(rows[i].as_chunks().0, half) else {
                return;
            };
            out[i] = [load_256(&parts[0]), load_256(&parts[1])];
        }
    }
    for (block, scales) in panel.scales.iter().enumerate() {
        let pairs = block * block_pairs..(block + 1) * block_pairs;
        if pairs.end > n_pairs {
            break;
        }
        let mut sums = [[_mm256_setzero_si256(); 2]; W];
        for p in pairs {
            let parts = panel.pairs[p].as_chunks::<8>().0;
            let y = [
                load_words_256(&parts[2 * half]),
                load_words_256(&parts[2 * half + 1]),
            ];
            for i in 0..W {
                let x = _mm256_set1_epi32(lefts[i][p]);
                sums[i] = [
                    _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(x, y[0])),
                    _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(x, y[1])),
                ];
            }
        }
        let parts = scales.as_chunks::<8>().0;
        let scales = [load_256(&parts[2 * half]), load_256(&parts[2 * half + 1])];
        let left_block = block * panel.block_len / LEFT_BLOCK_LEN;
        for i in 0..W {
            let by = _mm256_set1_ps(left_scales[i][left_block]);
            for part in 0..2 {
                let scale = _mm256_mul_ps(scales[part], by);
                out[i][part] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][part]), scale, out[i][part]);
            }
        }
    }
    for i in 0..W {
        let Some(parts) = rows[i].as_chunks_mut().0.get_mut(2 * half..2 * half + 2) else {
            return;
        };
        store_256(&mut parts[0], out[i][0]);
        store_256(&mut parts[1], out[i][1]);
    }
}

/// Registers of `half` of a row.
#[inline(always)]
fn half_of(parts: &[[f32; 8]], half: usize) -> Option<&[[f32; 8]; 2]> {
    parts.get(2 * half..).and_then(<[_]>::first_chunk)
}

/// The lower and the upper bytes of the 16 levels as integers, once for each half of a register.
const PLANES: [[u8; 32]; 2] = {
    let mut planes = [[0; 32]; 2];
    let mut at = 0;
    while at < 2 * 32 {
        planes[at / 32][at % 32] = integer_level(CODE_VALUES[at % 16]).to_le_bytes()[at / 32];
        at += 1;
    }
    planes
};

/// The integers of two columns of NF4 codes, pairs of 32 rows in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn nf4_pairs(columns: &[[u8; 16]; 2]) -> [__m256i; 4] {
    let nibble = _mm256_set1_epi8(15);
    // four rows of both columns at a time: interleaving works on each half of a register, and so rows stay in order
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    #[rustfmt::skip]
    let pairs = _mm256_setr_epi8(
        0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,
        0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15,
    );
    let codes = match columns.as_flattened().first_chunk() {
        Some(codes) => load_bytes_256(codes),
        None => _mm256_setzero_si256(),
    };
    let codes = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(codes, order), pairs);
    let first = _mm256_and_si256(codes, nibble);
    let second = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
    let (low_bytes, high_bytes) = (load_bytes_256(&PLANES[0]), load_bytes_256(&PLANES[1]));
    let first = (
        _mm256_shuffle_epi8(low_bytes, first),
        _mm256_shuffle_epi8(high_bytes, first),
    );
    let second = (
        _mm256_shuffle_epi8(low_bytes, second),
        _mm256_shuffle_epi8(high_bytes, second),
    );
    [
        _mm256_unpacklo_epi8(first.0, first.1),
        _mm256_unpackhi_epi8(first.0, first.1),
        _mm256_unpacklo_epi8(second.0, second.1),
        _mm256_unpackhi_epi8(second.0, second.1),
    ]
}

/// [`nf4_pairs`] of Q8_0.
#[inline]
#[target_feature(enable = "avx2")]
fn q8_0_pairs(columns: &[Q8Column; 2]) -> [__m256i; 4] {
    let [first, second] = [load_bytes_256(&columns[0].0), load_bytes_256(&columns[1].0)];
    let (low, high) = (
        _mm256_unpacklo_epi8(first, second),
        _mm256_unpackhi_epi8(first, second),
    );
    [
        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(low)),
        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(high)),
        _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(low)),
        _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(high)),
    ]
}

/// For one form of weight: the panel of a tile's columns, and the product of 1 or 2 rows without one.
macro_rules! form {
    ($panel:ident, $few:ident with $rows:ident, $column:ty, $block_len:expr, $unit:expr, $pairs:ident) => {
        /// `panel[i][j]`: see [`super::integers`].
        #[target_feature(enable = "avx2")]
        pub(super) fn $panel(columns: &[$column], panel: &mut [IntegerRow]) {
            for (pair, out) in columns.as_chunks().0.iter().zip(panel) {
                let [a, b, c, d] = out.as_chunks_mut::<8>().0 else {
                    return;
                };
                let values = $pairs(pair);
                store_words_256(a, values[0]);
                store_words_256(b, values[1]);
                store_words_256(c, values[2]);
                store_words_256(d, values[3]);
            }
        }

        /// `rows [W, 32] (+)= a [W, K] · Wᵀ` of a tile, W 1 or 2.
        #[target_feature(enable = "avx2,fma")]
        pub(super) fn $few(
            columns: &[$column],
            scales: &[TileRow],
            a: &[IntegerLeft<'_>],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            match rows.len() {
                1 => $rows::<1>(columns, scales, a, rows, start),
                _ => $rows::<2>(columns, scales, a, rows, start),
            }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn $rows<const W: usize>(
            columns: &[$column],
            scales: &[TileRow],
            a: &[IntegerLeft<'_>],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            const BLOCK_PAIRS: usize = $block_len / 2;
            let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
                return;
            };
            let mut totals = [[_mm256_setzero_ps(); 4]; W];
            for i in 0..W {
                if let (Start::Current, Some(row)) = (start, rows[i].first_chunk()) {
                    totals[i] = load_row(row);
                }
            }
            let (pairs, _) = columns.as_chunks::<2>();
            let blocks = pairs.as_chunks::<BLOCK_PAIRS>().0.iter().zip(scales);
            for (block, (pairs, scales)) in blocks.enumerate() {
                let mut lefts = [&[0i32; BLOCK_PAIRS]; W];
                for i in 0..W {
                    if let Some(left) = a[i].pairs.as_chunks().0.get(block) {
                        lefts[i] = left;
                    }
                }
                let mut sums = [[_mm256_setzero_si256(); 4]; W];
                for p in 0..BLOCK_PAIRS {
                    let values = $pairs(&pairs[p]);
                    for i in 0..W {
                        let x = _mm256_set1_epi32(lefts[i][p]);
                        for part in 0..4 {
                            let products = _mm256_madd_epi16(x, values[part]);
                            sums[i][part] = _mm256_add_epi32(sums[i][part], products);
                        }
                    }
                }
                let scales = load_row(scales);
                for i in 0..W {
                    let by = _mm256_set1_ps(a[i].scales[block * $block_len / LEFT_BLOCK_LEN]);
                    for part in 0..4 {
                        let scale = _mm256_mul_ps(scales[part], _mm256_set1_ps($unit));
                        let sum = _mm256_cvtepi32_ps(sums[i][part]);
                        totals[i][part] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, by), totals[i][part]);
                    }
                }
            }
            for i in 0..W {
                if let Some(row) = rows[i].first_chunk_mut() {
                    store_row(row, totals[i]);
                }
            }
        }
    };
}

form!(nf4_integers, nf4_few with nf4_few_rows, [u8; 16], BLOCK_LEN, WEIGHT_UNIT, nf4_pairs);
form!(q8_0_integers, q8_0_few with q8_0_few_rows, Q8Column, Q8_0TileView::BLOCK_LEN, 1.0, q8_0_pairs);
