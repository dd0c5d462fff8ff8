//! What few-row products are with AVX-512 intrinsics: a weight's columns are unpacked in registers.
//!
//! Invariant: a sum is one chain over K, each step one product `level * scale` and one fused multiply-add.

use std::arch::x86_64::*;

use super::few_rows::{Q8_0TileView, Q8Column};
use super::tile::{Start, TileRow};
use super::x86::{load_128, load_512, shortest, store_512};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// The sums of W rows of 32.
type Sums<const W: usize> = [[__m512; 2]; W];

/// Compiles a product for 1 to 4 rows.
macro_rules! by_few_rows {
    ($(#[$meta:meta])* $name:ident, $codes:ty, $rows:ident) => {
        $(#[$meta])*
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(super) fn $name(
            codes: &[$codes],
            scales: &[TileRow],
            a: &[&[f32]],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            match rows.len() {
                1 => $rows::<1>(codes, scales, a, rows, start),
                2 => $rows::<2>(codes, scales, a, rows, start),
                3 => $rows::<3>(codes, scales, a, rows, start),
                _ => $rows::<4>(codes, scales, a, rows, start),
            }
        }
    };
}

by_few_rows!(
    /// See [`super::nf4_multiply`]: 1 to 4 rows of 32.
    nf4_multiply,
    [u8; 16],
    nf4_rows
);

by_few_rows!(
    /// See [`super::q8_0_multiply`]: 1 to 4 rows of 32.
    q8_0_multiply,
    Q8Column,
    q8_0_rows
);

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nf4_rows<const W: usize>(
    codes: &[[u8; 16]],
    scales: &[TileRow],
    a: &[&[f32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let Some((a, mut sums)) = begin::<W>(a, rows, codes.len(), start) else {
        return;
    };
    let levels = load_512(&CODE_VALUES);
    let len = a[0].len();
    let blocks = codes[..len].chunks(BLOCK_LEN).zip((0..len).step_by(BLOCK_LEN));
    for ((codes, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, codes) in (first..len).zip(codes) {
            // the permutation looks at the low 4 bits of an index only
            let low = _mm512_cvtepu8_epi32(load_128(codes));
            let high = _mm512_srli_epi32::<4>(low);
            let y = [
                _mm512_mul_ps(_mm512_permutexvar_ps(low, levels), scales[0]),
                _mm512_mul_ps(_mm512_permutexvar_ps(high, levels), scales[1]),
            ];
            add(&a, p, y, &mut sums);
        }
    }
    end(rows, &sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q8_0_rows<const W: usize>(
    codes: &[Q8Column],
    scales: &[TileRow],
    a: &[&[f32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    const BLOCK_LEN: usize = Q8_0TileView::BLOCK_LEN;
    let Some((a, mut sums)) = begin::<W>(a, rows, codes.len(), start) else {
        return;
    };
    let len = a[0].len();
    let blocks = codes[..len].chunks(BLOCK_LEN).zip((0..len).step_by(BLOCK_LEN));
    for ((codes, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, codes) in (first..len).zip(codes) {
            let (bytes, _) = codes.0.as_chunks::<16>();
            let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(&bytes[0])));
            let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(&bytes[1])));
            let y = [_mm512_mul_ps(low, scales[0]), _mm512_mul_ps(high, scales[1])];
            add(&a, p, y, &mut sums);
        }
    }
    end(rows, &sums);
}

/// The rows of `a` cut to one length, at most `len`, and the sums so far.
#[inline]
#[target_feature(enable = "avx512f")]
fn begin<'a, const W: usize>(
    a: &[&'a [f32]],
    rows: &[&mut [f32]],
    len: usize,
    start: Start,
) -> Option<([&'a [f32]; W], Sums<W>)> {
    let (a, rows) = (a.first_chunk::<W>()?, rows.first_chunk::<W>()?);
    let len = shortest(a, len);
    let mut left: [&[f32]; W] = [&[]; W];
    let mut sums = [[_mm512_setzero_ps(); 2]; W];
    for i in 0..W {
        left[i] = &a[i][..len];
        if start == Start::Current {
            let [low, high] = rows[i].as_chunks().0.first_chunk()?;
            sums[i] = [load_512(low), load_512(high)];
        }
    }
    Some((left, sums))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves(row: &TileRow) -> [__m512; 2] {
    let (halves, _) = row.as_chunks::<16>();
    [load_512(&halves[0]), load_512(&halves[1])]
}

/// `sums[i] += a[i][p] * y`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add<const W: usize>(a: &[&[f32]; W], p: usize, y: [__m512; 2], sums: &mut Sums<W>) {
    for i in 0..W {
        let x = _mm512_set1_ps(a[i][p]);
        sums[i] = [
            _mm512_fmadd_ps(x, y[0], sums[i][0]),
            _mm512_fmadd_ps(x, y[1], sums[i][1]),
        ];
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn end<const W: usize>(rows: &mut [&mut [f32]], sums: &Sums<W>) {
    for (row, sums) in rows.iter_mut().zip(sums) {
        let Some([low, high]) = row.as_chunks_mut().0.first_chunk_mut() else {
            return;
        };
        store_512(low, sums[0]);
        store_512(high, sums[1]);
    }
}
