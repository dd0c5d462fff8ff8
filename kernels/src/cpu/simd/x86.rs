//! What is written with AVX-512 intrinsics, transposes and the look-up of NF4 levels, and the tile of a matrix product
//! for AVX-512 and AVX2.
//!
//! Invariant: every pointer comes from a reference to at least as many values as are loaded or stored.
#![expect(
    unsafe_code,
    reason = "loads and stores of vector registers go through pointers"
)]

use std::arch::x86_64::*;

use super::panel::{HalfRow, Panel};
use super::tile::{Start, TILE_COLUMNS, TILE_ROWS};
use crate::nf4::CODE_VALUES;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_512(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is to 16 floats.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_512(values: &mut [f32; 16], register: __m512) {
    // SAFETY: the reference is to 16 floats that nobody else holds.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), register) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_words_512(words: &[i32; 16]) -> __m512i {
    // SAFETY: the reference is to 16 words.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_256(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to 8 floats.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_256(values: &mut [f32; 8], register: __m256) {
    // SAFETY: the reference is to 8 floats that nobody else holds.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), register) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_bytes_256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is to 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_bytes_256(bytes: &mut [u8; 32], register: __m256i) {
    // SAFETY: the reference is to 32 bytes that nobody else holds.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), register) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_words_256(words: &[i32; 8]) -> __m256i {
    // SAFETY: the reference is to 8 words.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_words_256(words: &mut [i32; 8], register: __m256i) {
    // SAFETY: the reference is to 8 words that nobody else holds.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), register) }
}

#[inline(always)]
pub(super) fn load_128(values: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is to 16 bytes.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

#[inline(always)]
pub(super) fn store_128(values: &mut [u8; 16], register: __m128i) {
    // SAFETY: the reference is to 16 bytes that nobody else holds.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), register) }
}

/// Asks for the cache lines of `values`.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T]) {
    for line in values.chunks(64 / size_of::<T>().clamp(1, 64)) {
        // SAFETY: a prefetch reads nothing that the program could see, and SSE is part of the x86-64 architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
}

/// Bytes of two registers in turn, from their lower or, for `half` 1, their upper halves.
#[inline(always)]
pub(super) fn interleave(first: __m128i, second: __m128i, half: usize) -> __m128i {
    if half == 0 {
        // SAFETY: SSE2 is part of the x86-64 architecture.
        unsafe { _mm_unpacklo_epi8(first, second) }
    } else {
        // SAFETY: SSE2 is part of the x86-64 architecture.
        unsafe { _mm_unpackhi_epi8(first, second) }
    }
}

/// The values from `first` on, up to 16, and zeros beyond the last.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_from_512(values: &[f32], first: usize) -> __m512 {
    let values = values.get(first..).unwrap_or_default();
    match values.first_chunk() {
        Some(full) => load_512(full),
        // SAFETY: fewer than 16 are left, and only those are read.
        None => unsafe { _mm512_maskz_loadu_ps((1 << values.len()) - 1, values.as_ptr()) },
    }
}

/// Overwrites the values from `first` on, up to 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_from_512(values: &mut [f32], first: usize, register: __m512) {
    let values = values.get_mut(first..).unwrap_or_default();
    match values.first_chunk_mut() {
        Some(full) => store_512(full, register),
        // SAFETY: fewer than 16 are left, and only those are written.
        None => unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), (1 << values.len()) - 1, register) },
    }
}

/// The shortest row's length, at most `len`: where an index is below it, no row needs to be asked again.
#[inline(always)]
pub(super) fn shortest<T>(rows: &[&[T]], mut len: usize) -> usize {
    for row in rows {
        len = len.min(row.len());
    }
    len
}

/// Calls a function of the number of rows, 1 to 12.
macro_rules! by_rows {
    ($function:ident, $registers:literal, $args:tt, $n:expr, [$($rows:literal)*]) => {
        match $n {
            $($rows => $function::<$rows, $registers> $args,)*
            _ => $function::<TILE_ROWS, $registers> $args,
        }
    };
}
pub(super) use by_rows;

/// A tile's function and that of W of its rows, each of R registers. They take the type of an element of the left operand
/// and how it fills a register, that of a row of the right one and how a part of it becomes a register, and what is
/// added to a sum. A macro, because a closure or a function's value would not be compiled for the set of instructions.
macro_rules! tile_512 {
    (
        $(#[$documented:meta])*
        $tile:ident with $rows_of:ident, $features:tt,
        $left:ty => $fill:ident, $right:ty => $load:ident,
        |$x:ident, $y:ident, $sum:ident| $added:expr
    ) => {
        $(#[$documented])*
        #[target_feature(enable = $features)]
        pub(super) fn $tile(a: &[&[$left]], b: [&[$right]; 2], rows: &mut [&mut [f32]], start: Start) {
            let n = rows.len();
            if rows.first().is_some_and(|row| row.len() < TILE_COLUMNS) {
                by_rows!($rows_of, 1, (a, b, rows, start), n, [1 2 3 4 5 6 7 8 9 10 11]);
            } else {
                by_rows!($rows_of, 2, (a, b, rows, start), n, [1 2 3 4 5 6 7 8 9 10 11]);
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn $rows_of<const W: usize, const R: usize>(
            a: &[&[$left]],
            b: [&[$right]; 2],
            rows: &mut [&mut [f32]],
            start: Start,
        ) {
            let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
                return;
            };
            let len = shortest(a, b[0].len().min(b[1].len()));
            let mut left: [&[$left]; W] = [&[]; W];
            for i in 0..W {
                left[i] = &a[i][..len];
            }
            let (a, b) = (left, [&b[0][..len], &b[1][..len]]);
            let mut sums = [[_mm512_setzero_ps(); R]; W];
            if start == Start::Current {
                for i in 0..W {
                    let Some(parts) = rows[i].as_chunks().0.first_chunk::<R>() else {
                        return;
                    };
                    for part in 0..R {
                        sums[i][part] = load_512(&parts[part]);
                    }
                }
            }
            for p in 0..len {
                let mut y = [$fill(<$left>::default()); R];
                for part in 0..R {
                    y[part] = $load(&b[part][p]);
                }
                for i in 0..W {
                    let $x = $fill(a[i][p]);
                    for part in 0..R {
                        let ($y, $sum) = (y[part], sums[i][part]);
                        sums[i][part] = $added;
                    }
                }
            }
            for i in 0..W {
                let Some(parts) = rows[i].as_chunks_mut().0.first_chunk_mut::<R>() else {
                    return;
                };
                for part in 0..R {
                    store_512(&mut parts[part], sums[i][part]);
                }
            }
        }
    };
}
pub(super) use tile_512;

tile_512! {
    /// See [`super::multiply_tile`]; rows are 16 or 32 long.
    multiply_tile_avx512 with rows_avx512, "avx512f",
    f32 => _mm512_set1_ps, HalfRow => load_512,
    |x, y, sum| _mm512_fmadd_ps(x, y, sum)
}

/// See [`super::multiply_tile`]; rows are 8, 16 or 32 long. AVX2's 16 registers hold the sums of 6 rows of 16 columns, so a
/// wide tile goes in up to four parts, of about equally many rows: with few, the sums' chains would wait for one another.
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_tile_avx2(a: &[&[f32]], b: Panel<'_>, rows: &mut [&mut [f32]], start: Start) {
    let n_columns = rows.first().map_or(0, |row| row.len());
    if n_columns == 8 {
        let n = rows.len();
        return by_rows!(rows_avx2, 1, (a, 0, b.low, rows, start), n, [1 2 3 4 5 6 7 8 9 10 11]);
    }
    let n_rows = rows.len().div_ceil(rows.len().div_ceil(6).max(1)).max(1);
    for (a, rows) in a.chunks(n_rows).zip(rows.chunks_mut(n_rows)) {
        for (half, b) in [b.low, b.high].into_iter().enumerate().take(n_columns / 16) {
            match rows.len() {
                1 => rows_avx2::<1, 2>(a, half, b, rows, start),
                2 => rows_avx2::<2, 2>(a, half, b, rows, start),
                3 => rows_avx2::<3, 2>(a, half, b, rows, start),
                4 => rows_avx2::<4, 2>(a, half, b, rows, start),
                5 => rows_avx2::<5, 2>(a, half, b, rows, start),
                _ => rows_avx2::<6, 2>(a, half, b, rows, start),
            }
        }
    }
}

/// W rows of R registers, those of `half`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2<const W: usize, const R: usize>(
    a: &[&[f32]],
    half: usize,
    b: &[HalfRow],
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
        return;
    };
    let len = shortest(a, b.len());
    let mut left: [&[f32]; W] = [&[]; W];
    for i in 0..W {
        left[i] = &a[i][..len];
    }
    let (a, b) = (left, &b[..len]);
    let mut sums = [[_mm256_setzero_ps(); R]; W];
    if start == Start::Current {
        for i in 0..W {
            let after = rows[i].as_chunks().0.get(R * half..);
            let Some(parts) = after.and_then(<[_]>::first_chunk::<R>) else {
                return;
            };
            for part in 0..R {
                sums[i][part] = load_256(&parts[part]);
            }
        }
    }
    for p in 0..len {
        let Some(parts) = b[p].as_chunks().0.first_chunk::<R>() else {
            return;
        };
        let mut y = [_mm256_setzero_ps(); R];
        for part in 0..R {
            y[part] = load_256(&parts[part]);
        }
        for i in 0..W {
            let x = _mm256_set1_ps(a[i][p]);
            for part in 0..R {
                sums[i][part] = _mm256_fmadd_ps(x, y[part], sums[i][part]);
            }
        }
    }
    for i in 0..W {
        let after = rows[i].as_chunks_mut().0.get_mut(R * half..);
        let Some(parts) = after.and_then(<[_]>::first_chunk_mut::<R>) else {
            return;
        };
        for part in 0..R {
            store_256(&mut parts[part], sums[i][part]);
        }
    }
}

/// See [`super::transpose_floats`].
#[target_feature(enable = "avx512f")]
pub(super) fn transpose_floats_avx512(rows: &[&[f32]], out: &mut [f32], step: usize) {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let len = rows.first().map_or(0, |row| row.len());
    for first in (0..len).step_by(16) {
        let mut registers = [_mm512_setzero_ps(); 16];
        for (register, row) in registers.iter_mut().zip(rows) {
            *register = load_from_512(row, first);
        }
        // as with bytes: interleaving the halves moves one bit of an element's position from column to row
        for _ in 0..4 {
            let mut next = [_mm512_setzero_ps(); 16];
            for (pair, next) in next.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let (a, b) = (registers[pair], registers[pair + 8]);
                *next = [
                    _mm512_permutex2var_ps(a, low, b),
                    _mm512_permutex2var_ps(a, high, b),
                ];
            }
            registers = next;
        }
        for (i, register) in registers.iter().enumerate().take(len - first) {
            store_from_512(&mut out[(first + i) * step..][..rows.len().min(16)], 0, *register);
        }
    }
}

/// See [`super::q8_0_panel`]: 16 signed bytes times their scales.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn widen_avx512(codes: &[u8; 16], scales: &[f32; 16], out: &mut HalfRow) {
    let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(codes)));
    store_512(out, _mm512_mul_ps(load_512(scales), values));
}

/// See [`super::nf4_panel`]: the levels of 32 codes times their scales.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn scaled_levels_avx512(codes: &[u8; 16], scales: [&[f32; 16]; 2], out: [&mut [f32; 16]; 2]) {
    // the permutation looks at the low 4 bits of an index only
    let low = _mm512_cvtepu8_epi32(load_128(codes));
    let high = _mm512_srli_epi32::<4>(low);
    let table = load_512(&CODE_VALUES);
    for ((indices, scales), out) in [low, high].into_iter().zip(scales).zip(out) {
        let levels = _mm512_permutexvar_ps(indices, table);
        store_512(out, _mm512_mul_ps(levels, load_512(scales)));
    }
}
