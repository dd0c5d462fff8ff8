//! [`random::block`](crate::random::block) of eight counters at once, in AVX2's lanes.
//!
//! Invariant: the same words as one counter after the other.

use std::arch::x86_64::*;

use super::keep::DRAWN;
use super::x86::store_bytes_256;
use crate::backend::Dropout;
use crate::random::{MULTIPLIER_A, MULTIPLIER_B, N_ROUNDS, WEYL_A, WEYL_B};

/// The lower and the upper halves of the products of eight words with one.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply(words: __m256i, by: u32) -> [__m256i; 2] {
    let by = _mm256_set1_epi32(by.cast_signed());
    // a product takes two lanes, so the odd lanes go by themselves
    let even = _mm256_mul_epu32(words, by);
    let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(words), by);
    [
        _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd)),
        _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(even), odd),
    ]
}

/// Word `j` of counters `counter..counter + 8` in register `j`; `counter` is a multiple of 8.
#[inline]
#[target_feature(enable = "avx2")]
fn blocks(key: u64, counter: u64) -> [__m256i; 4] {
    // the first is a multiple of 8, so the lower halves of the others do not carry
    let low = _mm256_set1_epi32((counter as u32).cast_signed());
    let low = _mm256_or_si256(low, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    let high = _mm256_set1_epi32(((counter >> 32) as u32).cast_signed());
    let zero = _mm256_setzero_si256();
    let mut words = [low, high, zero, zero];
    let mut key = [key as u32, (key >> 32) as u32];
    for _ in 0..N_ROUNDS {
        let [a_low, a_high] = multiply(words[0], MULTIPLIER_A);
        let [b_low, b_high] = multiply(words[2], MULTIPLIER_B);
        let first = _mm256_xor_si256(words[1], _mm256_set1_epi32(key[0].cast_signed()));
        let second = _mm256_xor_si256(words[3], _mm256_set1_epi32(key[1].cast_signed()));
        words = [
            _mm256_xor_si256(b_high, first),
            b_low,
            _mm256_xor_si256(a_high, second),
            a_low,
        ];
        key = [key[0].wrapping_add(WEYL_A), key[1].wrapping_add(WEYL_B)];
    }
    words
}

/// See [`super::draw_kept`].
#[target_feature(enable = "avx2")]
pub(super) fn draw_runs_avx2(dropout: Dropout, first: u64, kept: &mut [[u8; DRAWN]]) {
    // `(word >> 8) / 2^24 >= rate` of integers: the quotient and a rate from 0 to 1 times 2^24 are exact, so the least
    // integer that is large enough decides
    let least = (f64::from(dropout.rate) * 16_777_216.0).ceil() as i32;
    let below = _mm256_set1_epi32(least - 1);
    for (run, kept) in kept.iter_mut().enumerate() {
        let words = blocks(dropout.key, first / 4 + (run * DRAWN / 4) as u64);
        let mut large = [_mm256_setzero_si256(); 4];
        for j in 0..4 {
            large[j] = _mm256_cmpgt_epi32(_mm256_srli_epi32::<8>(words[j]), below);
        }
        // words of one counter side by side: counters 0 and 4, 1 and 5, 2 and 6, 3 and 7
        let (low_a, low_b) = (
            _mm256_unpacklo_epi32(large[0], large[1]),
            _mm256_unpacklo_epi32(large[2], large[3]),
        );
        let (high_a, high_b) = (
            _mm256_unpackhi_epi32(large[0], large[1]),
            _mm256_unpackhi_epi32(large[2], large[3]),
        );
        let zero_one = _mm256_packs_epi32(
            _mm256_unpacklo_epi64(low_a, low_b),
            _mm256_unpackhi_epi64(low_a, low_b),
        );
        let two_three = _mm256_packs_epi32(
            _mm256_unpacklo_epi64(high_a, high_b),
            _mm256_unpackhi_epi64(high_a, high_b),
        );
        let bytes = _mm256_packs_epi16(zero_one, two_three);
        store_bytes_256(kept, _mm256_and_si256(bytes, _mm256_set1_epi8(1)));
    }
}
