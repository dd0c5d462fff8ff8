//! What is written with AVX2 intrinsics beside the tile: columns of codes unpacked in registers, products of few rows with
//! them, and transposes.
//!
//! Invariant: a sum is one chain over K, each step as the tile of a panel takes it: one product `level * scale`, then one
//! fused multiply-add.

use std::arch::x86_64::*;

use super::few_rows::{Q8_0TileView, Q8Column};
use super::panel::HalfRow;
use super::tile::{Start, TileRow};
use super::x86::{load_128, load_256, load_bytes_256, shortest, store_256};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// 32 values: in their order, or as [`nf4_levels`] leaves them.
pub(super) type Row = [__m256; 4];

/// Byte `i` of each of the 16 levels, once for each half of a register.
const PLANES: [[u8; 32]; 4] = {
    let mut planes = [[0; 32]; 4];
    let mut at = 0;
    while at < 4 * 32 {
        planes[at / 32][at % 32] = CODE_VALUES[at % 16].to_le_bytes()[at / 32];
        at += 1;
    }
    planes
};

/// A column's 32 codes, a byte each, of which row `j` is in the low and row `16 + j` in the high half of byte `j`.
#[inline]
#[target_feature(enable = "avx2")]
fn nf4_codes(column: &[u8; 16]) -> __m256i {
    let codes = _mm256_broadcastsi128_si256(load_128(column));
    let codes = _mm256_srlv_epi32(codes, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    _mm256_and_si256(codes, _mm256_set1_epi8(15))
}

/// The levels of 32 codes. A permutation of floats has but 8 of the 16 levels to choose from; a look-up of bytes has them
/// all, so each of a float's four bytes is looked up, for all codes at once, and then they are interleaved. That works on
/// each half of a register: register `i` has the levels of bytes `4 i..` and `16 + 4 i..`.
#[inline]
#[target_feature(enable = "avx2")]
fn nf4_levels(codes: __m256i) -> Row {
    let b0 = _mm256_shuffle_epi8(load_bytes_256(&PLANES[0]), codes);
    let b1 = _mm256_shuffle_epi8(load_bytes_256(&PLANES[1]), codes);
    let b2 = _mm256_shuffle_epi8(load_bytes_256(&PLANES[2]), codes);
    let b3 = _mm256_shuffle_epi8(load_bytes_256(&PLANES[3]), codes);
    let (low, high) = (_mm256_unpacklo_epi8(b0, b1), _mm256_unpackhi_epi8(b0, b1));
    let (low_2, high_2) = (_mm256_unpacklo_epi8(b2, b3), _mm256_unpackhi_epi8(b2, b3));
    [
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, low_2)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, low_2)),
        _mm256_castsi256_ps(_mm256_unpacklo_epi16(high, high_2)),
        _mm256_castsi256_ps(_mm256_unpackhi_epi16(high, high_2)),
    ]
}

/// See [`super::nf4_panel`]: the levels of 32 codes times their scales.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scaled_levels_avx2(codes: &[u8; 16], scales: [&[f32; 16]; 2], out: [&mut [f32; 16]; 2]) {
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let levels = nf4_levels(_mm256_permutevar8x32_epi32(nf4_codes(codes), order));
    // written out: a loop over the parts would keep them in memory
    let [out_low, out_high] = out;
    let ([a, b], [c, d]) = (scales[0].as_chunks::<8>().0, scales[1].as_chunks::<8>().0) else {
        return;
    };
    let [a, b, c, d] = [a, b, c, d].map(|scales| load_256(scales));
    let ([out_a, out_b], [out_c, out_d]) = (out_low.as_chunks_mut::<8>().0, out_high.as_chunks_mut::<8>().0)
    else {
        return;
    };
    store_256(out_a, _mm256_mul_ps(levels[0], a));
    store_256(out_b, _mm256_mul_ps(levels[1], b));
    store_256(out_c, _mm256_mul_ps(levels[2], c));
    store_256(out_d, _mm256_mul_ps(levels[3], d));
}

/// The bytes of a column, signed.
#[inline]
#[target_feature(enable = "avx2")]
fn q8_0_levels(codes: &Q8Column) -> Row {
    let mut row = [_mm256_setzero_ps(); 4];
    for (out, bytes) in row.iter_mut().zip(codes.0.as_chunks::<8>().0) {
        let bytes = _mm_set_epi64x(0, i64::from_le_bytes(*bytes));
        *out = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    row
}

/// See [`super::q8_0_panel`]: 16 signed bytes times their scales.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widen_avx2(codes: &[u8; 16], scales: &[f32; 16], out: &mut HalfRow) {
    let codes = load_128(codes);
    let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes)));
    let ([scales_low, scales_high], [out_low, out_high]) = (scales.as_chunks().0, out.as_chunks_mut().0)
    else {
        return;
    };
    store_256(out_low, _mm256_mul_ps(load_256(scales_low), low));
    store_256(out_high, _mm256_mul_ps(load_256(scales_high), high));
}

/// A product of 1 or 2 rows with a tile of columns of type `$column`, in blocks that have a scale. `$levels` gives the
/// values of a column before they are scaled, in an order in which `$load` takes scales and sums, and `$store` puts them
/// back.
macro_rules! few_rows {
    (
        $(#[$meta:meta])*
        $name:ident with $rows:ident, $column:ty, $block_len:expr,
        |$codes:ident| $levels:expr, $load:ident, $store:ident
    ) => {
        $(#[$meta])*
        #[target_feature(enable = "avx2,fma")]
        pub(super) fn $name(
            codes: &[$column],
            scales: &[TileRow],
            a: &[&[f32]],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            match rows.len() {
                1 => $rows::<1>(codes, scales, a, rows, start),
                _ => $rows::<2>(codes, scales, a, rows, start),
            }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn $rows<const W: usize>(
            codes: &[$column],
            scales: &[TileRow],
            a: &[&[f32]],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
                return;
            };
            let len = shortest(a, codes.len());
            let mut left: [&[f32]; W] = [&[]; W];
            let mut sums = [[_mm256_setzero_ps(); 4]; W];
            for i in 0..W {
                left[i] = &a[i][..len];
                if let (Start::Current, Some(row)) = (start, rows[i].first_chunk()) {
                    sums[i] = $load(row);
                }
            }
            let blocks = codes[..len].chunks($block_len).zip((0..len).step_by($block_len));
            for ((codes, first), scales) in blocks.zip(scales) {
                let scales = $load(scales);
                for (p, $codes) in (first..len).zip(codes) {
                    let levels = $levels;
                    for part in 0..4 {
                        let y = _mm256_mul_ps(levels[part], scales[part]);
                        for i in 0..W {
                            let x = _mm256_set1_ps(left[i][p]);
                            sums[i][part] = _mm256_fmadd_ps(x, y, sums[i][part]);
                        }
                    }
                }
            }
            for i in 0..W {
                if let Some(row) = rows[i].first_chunk_mut() {
                    $store(row, sums[i]);
                }
            }
        }
    };
}

few_rows!(
    /// See [`super::nf4_multiply`].
    nf4_floats_avx2 with nf4_rows_avx2, [u8; 16], BLOCK_LEN,
    |codes| nf4_levels(nf4_codes(codes)), load_halved, store_halved
);
few_rows!(
    /// See [`super::q8_0_multiply`].
    q8_0_floats_avx2 with q8_0_rows_avx2, Q8Column, Q8_0TileView::BLOCK_LEN,
    |codes| q8_0_levels(codes), load_row, store_row
);

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_row(row: &TileRow) -> Row {
    let mut out = [_mm256_setzero_ps(); 4];
    for (out, part) in out.iter_mut().zip(row.as_chunks::<8>().0) {
        *out = load_256(part);
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_row(row: &mut TileRow, values: Row) {
    for (part, values) in row.as_chunks_mut::<8>().0.iter_mut().zip(values) {
        store_256(part, values);
    }
}

/// Register `i` has values `4 i..` and `16 + 4 i..`.
#[inline]
#[target_feature(enable = "avx2")]
fn load_halved(row: &TileRow) -> Row {
    let [a, b, c, d] = load_row(row);
    [
        _mm256_permute2f128_ps::<0x20>(a, c),
        _mm256_permute2f128_ps::<0x31>(a, c),
        _mm256_permute2f128_ps::<0x20>(b, d),
        _mm256_permute2f128_ps::<0x31>(b, d),
    ]
}

/// The opposite of [`load_halved`].
#[inline]
#[target_feature(enable = "avx2")]
fn store_halved(row: &mut TileRow, [a, b, c, d]: Row) {
    let values = [
        _mm256_permute2f128_ps::<0x20>(a, b),
        _mm256_permute2f128_ps::<0x20>(c, d),
        _mm256_permute2f128_ps::<0x31>(a, b),
        _mm256_permute2f128_ps::<0x31>(c, d),
    ];
    store_row(row, values);
}

/// See [`super::transpose_floats`].
#[target_feature(enable = "avx2")]
pub(super) fn transpose_floats_avx2(rows: &[&[f32]], out: &mut [f32], step: usize) {
    let len = rows.first().map_or(0, |row| row.len());
    for (part, rows) in rows.chunks(8).enumerate() {
        for first in (0..len).step_by(8) {
            let mut block = [[0f32; 8]; 8];
            for (block, row) in block.iter_mut().zip(rows) {
                match row.get(first..).and_then(<[f32]>::first_chunk) {
                    Some(full) => *block = *full,
                    None => block[..len - first].copy_from_slice(&row[first..]),
                }
            }
            transpose_8(&mut block);
            for (i, column) in block.iter().enumerate().take(len - first) {
                let out = &mut out[(first + i) * step + 8 * part..];
                match out.first_chunk_mut() {
                    Some(full) if rows.len() == 8 => *full = *column,
                    _ => out[..rows.len()].copy_from_slice(&column[..rows.len()]),
                }
            }
        }
    }
}

/// `block[i][j]` and `block[j][i]` change places.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_8(block: &mut [[f32; 8]; 8]) {
    let mut registers = [_mm256_setzero_ps(); 8];
    for (register, row) in registers.iter_mut().zip(block.iter()) {
        *register = load_256(row);
    }
    // interleaving moves one bit of an element's position within a half of a register from column to row
    for _ in 0..2 {
        let mut next = registers;
        for (pair, next) in next.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let quarter = pair / 2 * 4 + pair % 2;
            let (a, b) = (registers[quarter], registers[quarter + 2]);
            *next = [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
        }
        registers = next;
    }
    // and the halves of rows i and 4 + i belong to columns i and 4 + i
    for i in 0..4 {
        let (a, b) = (registers[i], registers[4 + i]);
        store_256(&mut block[i], _mm256_permute2f128_ps::<0x20>(a, b));
        store_256(&mut block[4 + i], _mm256_permute2f128_ps::<0x31>(a, b));
    }
}

/// `sums += x * values`, each with one rounding.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn add_scaled_avx2(x: f32, values: &[f32; 8], sums: &mut [f32; 8]) {
    let sum = _mm256_fmadd_ps(_mm256_set1_ps(x), load_256(values), load_256(sums));
    store_256(sums, sum);
}
