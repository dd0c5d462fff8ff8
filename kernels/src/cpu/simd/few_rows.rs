//! A product of few rows with NF4 codes that go from memory through the registers into the sums, past every cache.
//!
//! Invariant: the same chains as by way of a panel, bit for bit.

use super::nf4_panel::Nf4TileView;
use super::{Isa, Start};
#[cfg(target_arch = "x86_64")]
use super::{Set, TILE_COLUMNS};

/// Most rows: with more, unpacking a panel once for all of them costs less than their broadcasts here.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 4;

/// `rows [W, 32] (+)= a [W, K] · Wᵀ` of one tile, where there is code for that many rows; else does nothing and says so.
#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn nf4_multiply(
    isa: Isa,
    weight: Nf4TileView<'_>,
    tile: usize,
    a: &[&[f32]],
    rows: &mut [&mut [f32]],
    start: Start,
) -> bool {
    let is_whole = rows.iter().all(|row| row.len() == TILE_COLUMNS);
    if isa.set() != Set::Avx512 || rows.len() > FEW_ROWS || !is_whole {
        return false;
    }
    let (codes, scales) = weight.tile(tile, 0);
    // SAFETY: this `Isa` exists, so AVX-512 F was detected.
    unsafe { super::x86::nf4_multiply_avx512(codes, scales, a, rows, start) }
    true
}

/// There is no such code for this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn nf4_multiply(
    _: Isa,
    _: Nf4TileView<'_>,
    _: usize,
    _: &[&[f32]],
    _: &mut [&mut [f32]],
    _: Start,
) -> bool {
    false
}
