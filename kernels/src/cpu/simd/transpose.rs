//! Transposes 16 rows of 16 bytes: how quantized rows become columns before they are widened to floats, when there
//! is the least to move.
//!
//! Invariant: `out[i][j] = rows[j][i]`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;

#[cfg(target_arch = "x86_64")]
use super::x86::{interleave, load_128, store_128};

/// `out[i][j] = rows[j][i]`.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn transpose_bytes(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    let mut registers: [__m128i; 16] = std::array::from_fn(|i| load_128(&rows[i]));
    // interleaving the first half with the second moves one bit of an element's position from column to row
    for _ in 0..4 {
        registers = std::array::from_fn(|i| interleave(registers[i / 2], registers[i / 2 + 8], i % 2));
    }
    let mut out = [[0; 16]; 16];
    for (out, register) in out.iter_mut().zip(registers) {
        store_128(out, register);
    }
    out
}

/// `out[i][j] = rows[j][i]`.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn transpose_bytes(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

/// Asks for the cache line of `values[at]`, which may lie beyond the end.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn prefetch(values: &[u8], at: usize) {
    super::x86::prefetch(values, at);
}

/// Does nothing on this architecture.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch(_: &[u8], _: usize) {}
