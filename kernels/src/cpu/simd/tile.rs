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

/// What the chains begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// 0: the result is overwritten.
    Zero,
    /// What the result holds: the product is added.
    Current,
}

/// `rows [W, N] (+)= a [K, W]ᵀ · b [K, N]` with W of 1 to [`TILE_ROWS`] and N up to [`TILE_COLUMNS`], the rows' length.
pub(crate) fn multiply_tile(isa: Isa, a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    match rows.first().map_or(0, |row| row.len()) {
        16 | TILE_COLUMNS => multiply_whole(isa, a, b, rows, start),
        _ => multiply_aside(isa, a, b, rows, start),
    }
}

/// [`multiply_tile`] for rows of any length, by way of a tile on the stack.
#[cold]
#[inline(never)]
fn multiply_aside(isa: Isa, a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    let mut tile = Tile([[0f32; TILE_COLUMNS]; TILE_ROWS]);
    let tile = &mut tile.0[..rows.len()];
    for (tile, row) in tile.iter_mut().zip(rows.iter()) {
        tile[..row.len()].copy_from_slice(row);
    }
    let mut whole: [&mut [f32]; TILE_ROWS] = Default::default();
    for (whole, tile) in whole.iter_mut().zip(tile.iter_mut()) {
        *whole = tile;
    }
    multiply_whole(isa, a, b, &mut whole[..rows.len()], start);
    for (tile, row) in tile.iter().zip(rows) {
        row.copy_from_slice(&tile[..row.len()]);
    }
}

/// A tile whose rows begin at cache lines.
#[repr(align(64))]
struct Tile([TileRow; TILE_ROWS]);

/// [`multiply_tile`] for rows of 16 or 32.
#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
fn multiply_whole(isa: Isa, a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    match isa.set() {
        // SAFETY: this `Isa` exists, so AVX-512 F was detected.
        Set::Avx512 => unsafe { super::x86::multiply_tile_avx512(a, b, rows, start) },
        // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
        Set::Avx2 => unsafe { super::x86::multiply_tile_avx2(a, b, rows, start) },
        Set::Portable => multiply_portable(a, b, rows, start),
    }
}

/// [`multiply_tile`] for rows of 16 or 32.
#[cfg(not(target_arch = "x86_64"))]
fn multiply_whole(_: Isa, a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    multiply_portable(a, b, rows, start);
}

fn multiply_portable(a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    if start == Start::Zero {
        rows.iter_mut().for_each(|row| row.fill(0.0));
    }
    for (a, b) in a.chunks_exact(rows.len().max(1)).zip(b) {
        for (row, x) in rows.iter_mut().zip(a) {
            for (c, y) in row.iter_mut().zip(b) {
                *c = x.mul_add(*y, *c);
            }
        }
    }
}
