//! The tile of a product of bf16 pairs, with AVX-512's instruction for them.
//!
//! Invariant: every pointer comes from a reference to at least as many values as are loaded or stored.
#![expect(unsafe_code, reason = "loads of vector registers go through pointers")]

use std::arch::x86_64::*;

use super::bf16::PairRow;
use super::panel::HalfRow;
use super::tile::{Start, TILE_COLUMNS, TILE_ROWS};
use super::x86::{by_rows, load_512, load_from_512, shortest, store_512, tile_512};

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn load_pairs(words: &[u32; 16]) -> __m512bh {
    // SAFETY: the reference is to 16 words.
    let bits = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
    // SAFETY: any bits are pairs of bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn broadcast_pair(word: u32) -> __m512bh {
    let bits = _mm512_set1_epi32(word.cast_signed());
    // SAFETY: any bits are pairs of bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// Rounds 32 floats, the first 16 into the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round(first: __m512, second: __m512) -> __m512i {
    let rounded = _mm512_cvtne2ps_pbh(second, first);
    // SAFETY: both types are any 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(rounded) }
}

/// 16-bit elements 0, 16, 1, 17, ...: what [`interleave`] wants to be given.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn pair_order() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, i as u16 + 16);
            i += 1;
        }
        order
    };
    // SAFETY: the array is 64 bytes.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}

/// Rounds two rows and puts their elements of a column beside each other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn interleave(even: __m512, odd: __m512, order: __m512i) -> __m512i {
    _mm512_permutexvar_epi16(order, round(even, odd))
}

/// [`interleave`] as a factor.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn join_pairs(even: __m512, odd: __m512, order: __m512i) -> __m512bh {
    let pairs = interleave(even, odd, order);
    // SAFETY: any bits are pairs of bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) }
}

/// See [`super::Bf16::pair_row`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair_row(values: &[f32], out: &mut [u32]) {
    for (words, first) in out.chunks_mut(16).zip((0..values.len()).step_by(32)) {
        let rounded = round(load_from_512(values, first), load_from_512(values, first + 16));
        store_words(words, rounded);
    }
}

/// See [`super::Bf16::pair_panel`]: one half.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn pair_half(half: &[HalfRow], out: &mut [PairRow]) {
    let order = pair_order();
    for (rows, words) in half.chunks(2).zip(out) {
        let odd = match rows.get(1) {
            Some(odd) => load_512(odd),
            None => _mm512_setzero_ps(),
        };
        store_words(words, interleave(load_512(&rows[0]), odd, order));
    }
}

/// Overwrites up to 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_words(words: &mut [u32], register: __m512i) {
    let mask = 0xffff_u16 >> (16 - words.len().min(16));
    // SAFETY: only as many words are written as there are.
    unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), mask, register) }
}

tile_512! {
    /// See [`super::Bf16::multiply`]; rows are 16 or 32 long.
    multiply with pairs_avx512, "avx512f,avx512bf16",
    u32 => broadcast_pair, PairRow => load_pairs,
    |x, y, sum| _mm512_dpbf16_ps(sum, x, y)
}
