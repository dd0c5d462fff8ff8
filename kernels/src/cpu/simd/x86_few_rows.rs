//! What few-row products are with AVX-512 intrinsics: a weight's columns are unpacked in registers.
//!
//! Invariant: a sum is one chain over K, each step as the tile of a panel takes it: one product `level * scale`, then one
//! fused multiply-add, or the rounding to bf16 and the product of a pair.

use std::arch::x86_64::*;

use super::few_rows::{Q8_0TileView, Q8Column};
use super::tile::{Start, TileRow};
use super::x86::{load_128, load_512, shortest, store_512};
use super::x86_bf16::{broadcast_pair, join_pairs, pair_order};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// The sums of W rows of 32.
type Sums<const W: usize> = [[__m512; 2]; W];

/// Compiles a product for 1 to 4 rows of `a`.
macro_rules! by_few_rows {
    ($(#[$meta:meta])* $name:ident, $codes:ty, $element:ty, $rows:ident, $features:literal) => {
        $(#[$meta])*
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            codes: &[$codes],
            scales: &[TileRow],
            a: &[&[$element]],
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
    /// See [`super::nf4_multiply`].
    nf4_floats, [u8; 16], f32, nf4_float_rows, "avx512f,avx512bw"
);
by_few_rows!(
    /// See [`super::nf4_multiply`].
    nf4_pairs, [u8; 16], u32, nf4_pair_rows, "avx512f,avx512bw,avx512bf16"
);
by_few_rows!(
    /// See [`super::q8_0_multiply`].
    q8_0_floats, Q8Column, f32, q8_0_float_rows, "avx512f,avx512bw"
);
by_few_rows!(
    /// See [`super::q8_0_multiply`].
    q8_0_pairs, Q8Column, u32, q8_0_pair_rows, "avx512f,avx512bw,avx512bf16"
);

/// `level * scale` of a column's 32 codes.
#[inline]
#[target_feature(enable = "avx512f")]
fn nf4_column(codes: &[u8; 16], levels: __m512, scales: [__m512; 2]) -> [__m512; 2] {
    // the permutation looks at the low 4 bits of an index only
    let low = _mm512_cvtepu8_epi32(load_128(codes));
    let high = _mm512_srli_epi32::<4>(low);
    [
        _mm512_mul_ps(_mm512_permutexvar_ps(low, levels), scales[0]),
        _mm512_mul_ps(_mm512_permutexvar_ps(high, levels), scales[1]),
    ]
}

/// `byte * scale` of a column's 32 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn q8_0_column(codes: &Q8Column, scales: [__m512; 2]) -> [__m512; 2] {
    let (bytes, _) = codes.0.as_chunks::<16>();
    let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(&bytes[0])));
    let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(&bytes[1])));
    [_mm512_mul_ps(low, scales[0]), _mm512_mul_ps(high, scales[1])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nf4_float_rows<const W: usize>(
    codes: &[[u8; 16]],
    scales: &[TileRow],
    a: &[&[f32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let Some((a, mut sums)) = begin::<f32, W>(a, rows, codes.len(), start) else {
        return;
    };
    let levels = load_512(&CODE_VALUES);
    let len = a[0].len();
    let blocks = codes[..len].chunks(BLOCK_LEN).zip((0..len).step_by(BLOCK_LEN));
    for ((codes, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, codes) in (first..len).zip(codes) {
            add(&a, p, nf4_column(codes, levels, scales), &mut sums);
        }
    }
    end(rows, &sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn nf4_pair_rows<const W: usize>(
    codes: &[[u8; 16]],
    scales: &[TileRow],
    a: &[&[u32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    const N_PAIRS: usize = BLOCK_LEN / 2;
    let (pairs, _) = codes.as_chunks::<2>();
    let Some((a, mut sums)) = begin::<u32, W>(a, rows, pairs.len(), start) else {
        return;
    };
    let (levels, order) = (load_512(&CODE_VALUES), pair_order());
    let len = a[0].len();
    let blocks = pairs[..len].chunks(N_PAIRS).zip((0..len).step_by(N_PAIRS));
    for ((pairs, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, [even, odd]) in (first..len).zip(pairs) {
            let (even, odd) = (nf4_column(even, levels, scales), nf4_column(odd, levels, scales));
            add_pairs(&a, p, even, odd, order, &mut sums);
        }
    }
    end(rows, &sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q8_0_float_rows<const W: usize>(
    codes: &[Q8Column],
    scales: &[TileRow],
    a: &[&[f32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    const BLOCK_LEN: usize = Q8_0TileView::BLOCK_LEN;
    let Some((a, mut sums)) = begin::<f32, W>(a, rows, codes.len(), start) else {
        return;
    };
    let len = a[0].len();
    let blocks = codes[..len].chunks(BLOCK_LEN).zip((0..len).step_by(BLOCK_LEN));
    for ((codes, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, codes) in (first..len).zip(codes) {
            add(&a, p, q8_0_column(codes, scales), &mut sums);
        }
    }
    end(rows, &sums);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn q8_0_pair_rows<const W: usize>(
    codes: &[Q8Column],
    scales: &[TileRow],
    a: &[&[u32]],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    const N_PAIRS: usize = Q8_0TileView::BLOCK_LEN / 2;
    let (pairs, _) = codes.as_chunks::<2>();
    let Some((a, mut sums)) = begin::<u32, W>(a, rows, pairs.len(), start) else {
        return;
    };
    let order = pair_order();
    let len = a[0].len();
    let blocks = pairs[..len].chunks(N_PAIRS).zip((0..len).step_by(N_PAIRS));
    for ((pairs, first), scales) in blocks.zip(scales) {
        let scales = halves(scales);
        for (p, [even, odd]) in (first..len).zip(pairs) {
            let (even, odd) = (q8_0_column(even, scales), q8_0_column(odd, scales));
            add_pairs(&a, p, even, odd, order, &mut sums);
        }
    }
    end(rows, &sums);
}

/// The rows of `a` cut to one length, at most `len`, and the sums so far.
#[inline]
#[target_feature(enable = "avx512f")]
fn begin<'a, T, const W: usize>(
    a: &[&'a [T]],
    rows: &[&mut [f32]],
    len: usize,
    start: Start,
) -> Option<([&'a [T]; W], Sums<W>)> {
    debug_assert_eq!((a.len(), rows.len()), (W, W));
    let (a, rows) = (a.first_chunk::<W>()?, rows.first_chunk::<W>()?);
    let len = shortest(a, len);
    let mut left: [&[T]; W] = [&[]; W];
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

/// `sums[i] += ` the pair `a[i][p]` times the pairs of two columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn add_pairs<const W: usize>(
    a: &[&[u32]; W],
    p: usize,
    even: [__m512; 2],
    odd: [__m512; 2],
    order: __m512i,
    sums: &mut Sums<W>,
) {
    let y = [
        join_pairs(even[0], odd[0], order),
        join_pairs(even[1], odd[1], order),
    ];
    for i in 0..W {
        let x = broadcast_pair(a[i][p]);
        sums[i] = [
            _mm512_dpbf16_ps(sums[i][0], x, y[0]),
            _mm512_dpbf16_ps(sums[i][1], x, y[1]),
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
