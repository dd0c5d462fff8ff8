//! What is written with AVX-512 and AVX2 intrinsics: the tile of a matrix product and the look-up of NF4 levels.
//!
//! Invariant: every pointer comes from a reference to an array of exactly the width that is loaded or stored.
#![expect(
    unsafe_code,
    reason = "loads and stores of vector registers go through pointers"
)]

use std::arch::x86_64::*;

use super::tile::{TILE_ROWS, TileRow};
use crate::nf4::CODE_VALUES;

#[inline]
#[target_feature(enable = "avx512f")]
fn load_512(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference is to 16 floats.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_512(values: &mut [f32; 16], register: __m512) {
    // SAFETY: the reference is to 16 floats that nobody else holds.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), register) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_256(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to 8 floats.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_256(values: &mut [f32; 8], register: __m256) {
    // SAFETY: the reference is to 8 floats that nobody else holds.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), register) }
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

/// Asks for the cache line of `values[at]`, which may lie beyond the end.
#[inline(always)]
pub(super) fn prefetch(values: &[u8], at: usize) {
    let address = values.as_ptr().wrapping_add(at);
    // SAFETY: a prefetch reads nothing that the program could see, and SSE is part of the x86-64 architecture.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
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

/// See [`super::multiply_tile`].
#[target_feature(enable = "avx512f")]
pub(super) fn multiply_tile_avx512(a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    match c.len() {
        1 => rows_avx512::<1>(a, b, c),
        2 => rows_avx512::<2>(a, b, c),
        3 => rows_avx512::<3>(a, b, c),
        4 => rows_avx512::<4>(a, b, c),
        5 => rows_avx512::<5>(a, b, c),
        6 => rows_avx512::<6>(a, b, c),
        7 => rows_avx512::<7>(a, b, c),
        8 => rows_avx512::<8>(a, b, c),
        9 => rows_avx512::<9>(a, b, c),
        10 => rows_avx512::<10>(a, b, c),
        11 => rows_avx512::<11>(a, b, c),
        _ => rows_avx512::<TILE_ROWS>(a, b, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rows_avx512<const W: usize>(a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    let Some(c) = c.first_chunk_mut::<W>() else { return };
    let mut sums = [[_mm512_setzero_ps(); 2]; W];
    for (sum, c) in sums.iter_mut().zip(c.iter()) {
        let (halves, _) = c.as_chunks::<16>();
        *sum = [load_512(&halves[0]), load_512(&halves[1])];
    }
    for (a, b) in a.as_chunks::<W>().0.iter().zip(b) {
        let (halves, _) = b.as_chunks::<16>();
        let b = [load_512(&halves[0]), load_512(&halves[1])];
        for i in 0..W {
            let x = _mm512_set1_ps(a[i]);
            sums[i] = [
                _mm512_fmadd_ps(x, b[0], sums[i][0]),
                _mm512_fmadd_ps(x, b[1], sums[i][1]),
            ];
        }
    }
    for (sum, c) in sums.iter().zip(c.iter_mut()) {
        let (halves, _) = c.as_chunks_mut::<16>();
        store_512(&mut halves[0], sum[0]);
        store_512(&mut halves[1], sum[1]);
    }
}

/// See [`super::multiply_tile`]. AVX2's 16 registers hold 6 rows of 16 columns, so a tile goes in up to four parts.
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply_tile_avx2(a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    let width = c.len();
    for (part, c) in c.chunks_mut(6).enumerate() {
        for half in 0..2 {
            let first = 6 * part;
            match c.len() {
                1 => rows_avx2::<1>(a, width, first, b, half, c),
                2 => rows_avx2::<2>(a, width, first, b, half, c),
                3 => rows_avx2::<3>(a, width, first, b, half, c),
                4 => rows_avx2::<4>(a, width, first, b, half, c),
                5 => rows_avx2::<5>(a, width, first, b, half, c),
                _ => rows_avx2::<6>(a, width, first, b, half, c),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2<const W: usize>(
    a: &[f32],
    width: usize,
    first: usize,
    b: &[TileRow],
    half: usize,
    c: &mut [TileRow],
) {
    let Some(c) = c.first_chunk_mut::<W>() else { return };
    let mut sums = [[_mm256_setzero_ps(); 2]; W];
    for (sum, c) in sums.iter_mut().zip(c.iter()) {
        let (quarters, _) = c.as_chunks::<8>();
        *sum = [load_256(&quarters[2 * half]), load_256(&quarters[2 * half + 1])];
    }
    for (a, b) in a.chunks_exact(width).zip(b) {
        let (quarters, _) = b.as_chunks::<8>();
        let b = [load_256(&quarters[2 * half]), load_256(&quarters[2 * half + 1])];
        let Some(a) = a[first..].first_chunk::<W>() else {
            return;
        };
        for i in 0..W {
            let x = _mm256_set1_ps(a[i]);
            sums[i] = [
                _mm256_fmadd_ps(x, b[0], sums[i][0]),
                _mm256_fmadd_ps(x, b[1], sums[i][1]),
            ];
        }
    }
    for (sum, c) in sums.iter().zip(c.iter_mut()) {
        let (quarters, _) = c.as_chunks_mut::<8>();
        store_256(&mut quarters[2 * half], sum[0]);
        store_256(&mut quarters[2 * half + 1], sum[1]);
    }
}

/// `out[i] = level(codes[i] & 15) * scales[i]`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn levels_avx512(codes: &[u8; 16], scales: &[f32; 16], out: &mut [f32; 16]) {
    let indices = _mm512_cvtepu8_epi32(load_128(codes));
    // the permutation looks at the low 4 bits of an index only
    let levels = _mm512_permutexvar_ps(indices, load_512(&CODE_VALUES));
    store_512(out, _mm512_mul_ps(levels, load_512(scales)));
}

/// `out[i] = level(codes[i] & 15) * scales[i]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn levels_avx2(codes: &[u8; 16], scales: &[f32; 16], out: &mut [f32; 16]) {
    let (levels, _) = CODE_VALUES.as_chunks::<8>();
    let (scales, _) = scales.as_chunks::<8>();
    let (out, _) = out.as_chunks_mut::<8>();
    let codes = load_128(codes);
    for (codes, (scales, out)) in [codes, _mm_unpackhi_epi64(codes, codes)]
        .into_iter()
        .zip(scales.iter().zip(out))
    {
        let indices = _mm256_cvtepu8_epi32(codes);
        // a permutation looks at the low 3 bits of an index; bit 3, moved to the sign, chooses the table
        let low = _mm256_permutevar8x32_ps(load_256(&levels[0]), indices);
        let high = _mm256_permutevar8x32_ps(load_256(&levels[1]), indices);
        let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices));
        let level = _mm256_blendv_ps(low, high, choice);
        store_256(out, _mm256_mul_ps(level, load_256(scales)));
    }
}
