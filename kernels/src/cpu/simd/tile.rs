//! The innermost loop of every matrix product: a tile `C [W, 32] += A · B` of packed operands.
//!
//! Invariant: `c[i][j]` becomes `fma(a[i][k], b[k][j], c[i][j])` for `k` in increasing order, on every instruction
//! set; nothing else is ever added to the chain.

use super::panel::{HALF_COLUMNS, Panel};
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

/// `rows [W, N] (+)= a [W, K] · b [K, N]` with W of 1 to [`TILE_ROWS`] and N up to [`TILE_COLUMNS`], the rows' length.
pub(crate) fn multiply_tile(isa: Isa, a: &[&[f32]], b: Panel<'_>, rows: &mut [&mut [f32]], start: Start) {
    // a rank that adapters often have, and one of AVX2's registers
    let is_register = isa.set() != Set::Portable && rows.first().is_some_and(|row| row.len() == 8);
    match is_register {
        true => multiply_whole(isa, a, b, rows, start),
        false => in_whole_rows(rows, |rows| multiply_whole(isa, a, b, rows, start)),
    }
}

/// Calls `run` with the rows where they are 16 or 32 long, else with a tile on the stack in their place, as narrow as
/// holds them.
#[inline(always)]
pub(super) fn in_whole_rows(rows: &mut [&mut [f32]], run: impl FnOnce(&mut [&mut [f32]])) {
    match rows.first().map_or(0, |row| row.len()) {
        HALF_COLUMNS | TILE_COLUMNS => run(rows),
        _ => aside(rows, run),
    }
}

#[cold]
#[inline(never)]
fn aside(rows: &mut [&mut [f32]], run: impl FnOnce(&mut [&mut [f32]])) {
    let mut tile = Tile([[0f32; TILE_COLUMNS]; TILE_ROWS]);
    let tile = &mut tile.0[..rows.len()];
    let n_columns = match rows.first() {
        Some(row) if row.len() <= HALF_COLUMNS => HALF_COLUMNS,
        _ => TILE_COLUMNS,
    };
    for (tile, row) in tile.iter_mut().zip(rows.iter()) {
        tile[..row.len()].copy_from_slice(row);
    }
    let mut whole: [&mut [f32]; TILE_ROWS] = Default::default();
    for (whole, tile) in whole.iter_mut().zip(tile.iter_mut()) {
        *whole = &mut tile[..n_columns];
    }
    run(&mut whole[..rows.len()]);
    for (tile, row) in tile.iter().zip(rows) {
        row.copy_from_slice(&tile[..row.len()]);
    }
}

/// A tile whose rows begin at cache lines.
#[repr(align(64))]
struct Tile([TileRow; TILE_ROWS]);

/// [`multiply_tile`] for rows of 16 or 32, or with AVX2 and AVX-512 of 8.
#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
fn multiply_whole(isa: Isa, a: &[&[f32]], b: Panel<'_>, rows: &mut [&mut [f32]], start: Start) {
    match isa.set() {
        // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
        Set::Avx512 if rows.first().is_some_and(|row| row.len() == 8) => unsafe {
            super::x86::multiply_tile_avx2(a, b, rows, start)
        },
        // SAFETY: this `Isa` exists, so AVX-512 F was detected.
        Set::Avx512 => unsafe { super::x86::multiply_tile_avx512(a, [b.low, b.high], rows, start) },
        // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
        Set::Avx2 => unsafe { super::x86::multiply_tile_avx2(a, b, rows, start) },
        Set::Portable => multiply_portable(a, b, rows, start),
    }
}

/// [`multiply_tile`] for rows of 16 or 32, or with AVX2 and AVX-512 of 8.
#[cfg(not(target_arch = "x86_64"))]
fn multiply_whole(_: Isa, a: &[&[f32]], b: Panel<'_>, rows: &mut [&mut [f32]], start: Start) {
    multiply_portable(a, b, rows, start);
}

fn multiply_portable(a: &[&[f32]], b: Panel<'_>, rows: &mut [&mut [f32]], start: Start) {
    if start == Start::Zero {
        rows.iter_mut().for_each(|row| row.fill(0.0));
    }
    for (a, row) in a.iter().zip(rows) {
        for (half, c) in [b.low, b.high].into_iter().zip(row.chunks_mut(HALF_COLUMNS)) {
            for (x, b) in a.iter().zip(half) {
                for (c, y) in c.iter_mut().zip(b) {
                    *c = x.mul_add(*y, *c);
                }
            }
        }
    }
}
