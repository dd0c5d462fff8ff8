//! Products of few rows with weights that go from memory through the registers into the sums, past every cache.
//!
//! Invariant: the same chains as by way of a panel, bit for bit.

use super::nf4_panel::Nf4TileView;
use super::{Bf16, Isa, Start, TILE_COLUMNS, TileRow};
#[cfg(target_arch = "x86_64")]
use super::{Set, x86_avx2, x86_few_rows};

/// Most rows: with more, unpacking a panel once for all of them costs less than their broadcasts here. AVX2's 16
/// registers hold the sums of two.
#[cfg(target_arch = "x86_64")]
fn rows_max(isa: Isa) -> usize {
    match isa.set() {
        Set::Avx512 => 4,
        Set::Avx2 => 2,
        Set::Portable => 0,
    }
}

/// Signed bytes of a column of Q8_0, one for each row of a tile. Aligned, so that none lies across two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Q8Column(pub [u8; TILE_COLUMNS]);

/// A Q8_0 matrix `[N, K]` in tiles of 32 rows.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0TileView<'a> {
    /// `[tiles][K]`.
    pub codes: &'a [Q8Column],
    /// `[tiles][K / 32]`, the scales of the tile's rows.
    pub scales: &'a [TileRow],
    /// Elements of a row, whole blocks.
    pub k: usize,
}

impl<'a> Q8_0TileView<'a> {
    /// Elements of a block.
    pub(crate) const BLOCK_LEN: usize = crate::weight::Format::Q8_0.block_len();

    /// A tile's columns from `k_first` on, the beginning of a block, and the scales of the blocks from there on.
    #[inline(always)]
    pub(crate) fn tile(self, tile: usize, k_first: usize) -> (&'a [Q8Column], &'a [TileRow]) {
        let n_blocks = self.k / Self::BLOCK_LEN;
        (
            &self.codes[tile * self.k + k_first..(tile + 1) * self.k],
            &self.scales[tile * n_blocks + k_first / Self::BLOCK_LEN..(tile + 1) * n_blocks],
        )
    }
}

/// The left rows of such a product, in the form that the backend's operands have.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only code for x86-64 reads them")
)]
pub(crate) enum FewRows<'a> {
    /// `[W][K]`.
    Floats(&'a [&'a [f32]]),
    /// `[W][K / 2]` pairs, and that this machine multiplies them.
    Pairs(Bf16, &'a [&'a [u32]]),
}

/// Defines the product for one form of weight.
macro_rules! few_rows {
    ($name:ident, $weight:ident, $floats:ident, $floats_avx2:ident, $pairs:ident) => {
        /// `rows [W, 32] (+)= a [W, K] · Wᵀ` of one tile, where there is code for that many rows; else does nothing and
        /// says so.
        #[expect(
            unsafe_code,
            reason = "calls code compiled for an instruction set that was detected"
        )]
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn $name(
            isa: Isa,
            weight: $weight<'_>,
            tile: usize,
            a: FewRows<'_>,
            rows: &mut [&mut [f32]],
            start: Start,
        ) -> bool {
            let is_whole = rows.iter().all(|row| row.len() == TILE_COLUMNS);
            if rows.len() > rows_max(isa) || !is_whole {
                return false;
            }
            let (codes, scales) = weight.tile(tile, 0);
            match a {
                // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
                FewRows::Floats(a) if isa.set() == Set::Avx2 => unsafe {
                    x86_avx2::$floats_avx2(codes, scales, a, rows, start)
                },
                // SAFETY: this `Isa` exists, so AVX-512 F and BW were detected.
                FewRows::Floats(a) => unsafe { x86_few_rows::$floats(codes, scales, a, rows, start) },
                // SAFETY: so do this `Isa` and a `Bf16`, so AVX-512 F, BW and BF16 were detected.
                FewRows::Pairs(_, a) => unsafe { x86_few_rows::$pairs(codes, scales, a, rows, start) },
            }
            true
        }

        /// There is no such code for this architecture.
        #[cfg(not(target_arch = "x86_64"))]
        pub(crate) fn $name(
            _: Isa,
            _: $weight<'_>,
            _: usize,
            _: FewRows<'_>,
            _: &mut [&mut [f32]],
            _: Start,
        ) -> bool {
            false
        }
    };
}

few_rows!(nf4_multiply, Nf4TileView, nf4_floats, nf4_floats_avx2, nf4_pairs);
few_rows!(
    q8_0_multiply,
    Q8_0TileView,
    q8_0_floats,
    q8_0_floats_avx2,
    q8_0_pairs
);
