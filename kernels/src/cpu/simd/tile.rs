//! The innermost loop of every matrix product: a tile `C [W, 32] += A · B` of packed operands.
//!
//! Invariant: `c[i][j]` becomes `fma(a[k][i], b[k][j], c[i][j])` for `k` in increasing order, on every instruction
//! set; nothing else is ever added to the chain.

use super::{Isa, Set};

/// Columns of a tile: two AVX-512 registers.
pub(crate) const TILE_COLUMNS: usize = 32;

/// Most rows of a tile: 24 accumulators of AVX-512's 32 registers, and room for the operands.
pub(crate) const TILE_ROWS: usize = 12;

/// One row of a tile.
pub(crate) type TileRow = [f32; TILE_COLUMNS];

/// `c [W, 32] += a [K, W]ᵀ · b [K, 32]` with `W = c.len()`, 1 to [`TILE_ROWS`].
#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn multiply_tile(isa: Isa, a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    match isa.set() {
        // SAFETY: this `Isa` exists, so AVX-512 F was detected.
        Set::Avx512 => unsafe { super::x86::multiply_tile_avx512(a, b, c) },
        // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
        Set::Avx2 => unsafe { super::x86::multiply_tile_avx2(a, b, c) },
        Set::Portable => multiply_tile_portable(a, b, c),
    }
}

/// `c [W, 32] += a [K, W]ᵀ · b [K, 32]` with `W = c.len()`.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn multiply_tile(_: Isa, a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    multiply_tile_portable(a, b, c);
}

fn multiply_tile_portable(a: &[f32], b: &[TileRow], c: &mut [TileRow]) {
    for (a, b) in a.chunks_exact(c.len().max(1)).zip(b) {
        for (c, x) in c.iter_mut().zip(a) {
            for (c, y) in c.iter_mut().zip(b) {
                *c = x.mul_add(*y, *c);
            }
        }
    }
}
