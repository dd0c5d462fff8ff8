//! Transposes: rows in memory become columns of a panel. Quantized rows are turned as bytes, before they are widened to
//! floats, when there is the least to move.
//!
//! Invariant: element `j` of row `i` becomes element `i` of row `j`; no value is touched.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m128i;

#[cfg(target_arch = "x86_64")]
use super::x86::{interleave, load_128, store_128};
use super::{Isa, Set};

/// `out[p * step + i] = rows[i][p]` for up to 16 rows of one length; what lies between is left as it is.
#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn transpose_floats(isa: Isa, rows: &[&[f32]], out: &mut [f32], step: usize) {
    match isa.set() {
        // SAFETY: this `Isa` exists, so AVX-512 F was detected.
        Set::Avx512 => unsafe { super::x86::transpose_floats_avx512(rows, out, step) },
        // SAFETY: this `Isa` exists, so AVX2 was detected.
        Set::Avx2 => unsafe { super::x86_avx2::transpose_floats_avx2(rows, out, step) },
        Set::Portable => transpose_floats_portable(rows, out, step),
    }
}

/// `out[p * step + i] = rows[i][p]` for up to 16 rows of one length; what lies between is left as it is.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn transpose_floats(_: Isa, rows: &[&[f32]], out: &mut [f32], step: usize) {
    transpose_floats_portable(rows, out, step);
}

fn transpose_floats_portable(rows: &[&[f32]], out: &mut [f32], step: usize) {
    let len = rows.first().map_or(0, |row| row.len());
    // 16 elements of each row at a time: whole cache lines are read, and written while they are near
    for first in (0..len).step_by(16) {
        for (i, row) in rows.iter().enumerate() {
            for (p, value) in row[first..len.min(first + 16)].iter().enumerate() {
                out[(first + p) * step + i] = *value;
            }
        }
    }
}

/// `out[i][j] = rows[j][i]`.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn transpose_bytes(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    let mut registers: [__m128i; 16] = std::array::from_fn(|i| load_128(&rows[i]));
    for _ in 0..4 {
        registers = interleave_halves(registers);
    }
    let mut out = [[0; 16]; 16];
    for (out, register) in out.iter_mut().zip(registers) {
        store_128(out, register);
    }
    out
}

/// Interleaves the first half with the second, which moves one bit of an element's position from column to row.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn interleave_halves(r: [__m128i; 16]) -> [__m128i; 16] {
    // written out: with indices that vary, the registers would be kept in memory
    [
        interleave(r[0], r[8], 0),
        interleave(r[0], r[8], 1),
        interleave(r[1], r[9], 0),
        interleave(r[1], r[9], 1),
        interleave(r[2], r[10], 0),
        interleave(r[2], r[10], 1),
        interleave(r[3], r[11], 0),
        interleave(r[3], r[11], 1),
        interleave(r[4], r[12], 0),
        interleave(r[4], r[12], 1),
        interleave(r[5], r[13], 0),
        interleave(r[5], r[13], 1),
        interleave(r[6], r[14], 0),
        interleave(r[6], r[14], 1),
        interleave(r[7], r[15], 0),
        interleave(r[7], r[15], 1),
    ]
}

/// `out[i][j] = rows[j][i]`.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn transpose_bytes(rows: &[[u8; 16]; 16]) -> [[u8; 16]; 16] {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}
