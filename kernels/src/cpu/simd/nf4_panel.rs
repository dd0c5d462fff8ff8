//! Looks up the levels of NF4 codes while panels are packed.
//!
//! Invariant: an element is `level * scale`, one multiplication, wherever it is unpacked.

use super::isa::with_step;
use super::{HALF_COLUMNS, PanelMut, TileRow, transpose_bytes};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// Codes of a matrix `[N, K]` in tiles of 32 rows: 16 bytes for each of the K columns, byte `j` with the code of row `j`
/// in its low and of row `16 + j` in its high nibble.
#[derive(Clone, Copy)]
pub(crate) struct Nf4TileView<'a> {
    /// `[tiles][K]`.
    pub codes: &'a [[u8; 16]],
    /// `[tiles][K / 64]`, the scales of the tile's rows.
    pub scales: &'a [TileRow],
    /// Elements of a row, whole blocks.
    pub k: usize,
}

impl<'a> Nf4TileView<'a> {
    /// A tile's codes from column `k_first` on, the beginning of a block, and the scales of the blocks from there on.
    #[inline(always)]
    pub(crate) fn tile(self, tile: usize, k_first: usize) -> (&'a [[u8; 16]], &'a [TileRow]) {
        let n_blocks = self.k / BLOCK_LEN;
        (
            &self.codes[tile * self.k + k_first..(tile + 1) * self.k],
            &self.scales[tile * n_blocks + k_first / BLOCK_LEN..(tile + 1) * n_blocks],
        )
    }
}

with_step!(
    [super::x86::scaled_levels_avx512, super::x86_avx2::scaled_levels_avx2, levels_portable],
    /// `panel[i][j] = W[32 tile + j, k_first + i]`; `k_first` is the beginning of a block.
    fn nf4_columns, columns_body,
    (weight: Nf4TileView<'_>, tile: usize, k_first: usize, panel: PanelMut<'_>)
);

with_step!(
    [super::x86::scaled_levels_avx512, super::x86_avx2::scaled_levels_avx2, levels_portable],
    /// `panel[i][j] = W[32 tile + i, k_first + j]` for as many rows as the panel has; `k_first` is a multiple of 32.
    fn nf4_rows, rows_body,
    (weight: Nf4TileView<'_>, tile: usize, k_first: usize, panel: PanelMut<'_>)
);

with_step!(
    [super::x86::scaled_levels_avx512, super::x86_avx2::scaled_levels_avx2, levels_portable],
    /// `out[i] = ` element `first + i` of a flattened matrix whose bytes hold two codes each, the even element's in the
    /// high nibble, with a scale for each block.
    fn nf4_run, run_body,
    (codes: &[u8], scales: &[f32], first: usize, out: &mut [f32])
);

#[inline(always)]
fn columns_body(
    weight: Nf4TileView<'_>,
    tile: usize,
    k_first: usize,
    mut panel: PanelMut<'_>,
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    let (codes, scales) = weight.tile(tile, k_first);
    let blocks = codes.chunks(BLOCK_LEN).zip(panel.chunks(BLOCK_LEN));
    for ((codes, mut panel), scales) in blocks.zip(scales) {
        let [low, high] = scales.as_chunks::<16>().0 else {
            return;
        };
        for (codes, out) in codes.iter().zip(panel.rows()) {
            levels(codes, [low, high], out);
        }
    }
}

#[inline(always)]
fn rows_body(
    weight: Nf4TileView<'_>,
    tile: usize,
    k_first: usize,
    mut panel: PanelMut<'_>,
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    for (part, panel) in panel.chunks(32).enumerate() {
        let block_first = k_first / BLOCK_LEN * BLOCK_LEN;
        let (codes, scales) = weight.tile(tile + part, block_first);
        let columns = codes[k_first - block_first..].as_chunks::<16>().0;
        for (half, codes) in [panel.low, panel.high].into_iter().zip(columns) {
            let rows = transpose_bytes(codes);
            let (first, rest) = half.split_at_mut(half.len().min(16));
            let mut beyond = [[0f32; HALF_COLUMNS]; 16];
            for (i, (codes, out)) in rows.iter().zip(first).enumerate() {
                let scales = [&[scales[0][i]; 16], &[scales[0][16 + i]; 16]];
                // the last tile may have fewer rows
                levels(codes, scales, [out, rest.get_mut(i).unwrap_or(&mut beyond[i])]);
            }
        }
    }
}

#[inline(always)]
fn run_body(
    codes: &[u8],
    scales: &[f32],
    first: usize,
    out: &mut [f32],
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    let element = |i: usize| {
        let byte = codes[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        CODE_VALUES[usize::from(code)] * scales[i / BLOCK_LEN]
    };
    // runs of 32 that begin at a multiple of 32 lie in one block
    let n_before = first.next_multiple_of(32).saturating_sub(first).min(out.len());
    let (before, aligned) = out.split_at_mut(n_before);
    for (i, out) in before.iter_mut().enumerate() {
        *out = element(first + i);
    }
    let first = first + n_before;
    let (runs, after) = aligned.as_chunks_mut::<32>();
    let n_runs = runs.len();
    for (run, out) in runs.iter_mut().enumerate() {
        let start = first + 32 * run;
        let scale = [scales[start / BLOCK_LEN]; 16];
        // elements 0 to 15 are in the first 8 bytes, 16 to 31 in the others
        let bytes = &codes[start / 2..][..16];
        let mut paired = [0u8; 16];
        for (pair, (low, high)) in paired
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(bytes[..8].iter().zip(&bytes[8..]))
        {
            *pair = [low >> 4 | high & 0xf0, low & 15 | high << 4];
        }
        let [low, high] = out.as_chunks_mut::<16>().0 else {
            return;
        };
        levels(&paired, [&scale, &scale], [low, high]);
    }
    for (i, out) in after.iter_mut().enumerate() {
        *out = element(first + 32 * n_runs + i);
    }
}

/// `out[h][j] = level * scales[h][j]` of the code in the low half, for `h` 1 in the high half, of byte `j`.
#[inline(always)]
fn levels_portable(codes: &[u8; 16], scales: [&[f32; 16]; 2], out: [&mut [f32; 16]; 2]) {
    for (half, (scales, out)) in scales.into_iter().zip(out).enumerate() {
        for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
            *out = CODE_VALUES[usize::from(code >> (4 * half) & 15)] * scale;
        }
    }
}
