//! Rows of a Q8_0 matrix, the usual form of heads, as panels of a product: blocks of a half-precision scale and 32 signed
//! bytes.
//!
//! Invariant: an element is `scale * byte`, one multiplication, wherever it is unpacked.

use super::simd::{TILE_COLUMNS, TileRow, prefetch, transpose_bytes, versions};
use crate::quant::half_at;
use crate::weight::Format;

/// Elements of a block.
const BLOCK_LEN: usize = Format::Q8_0.block_len();
const BLOCK_BYTES: usize = Format::Q8_0.block_bytes();

/// The matrix from one of its rows on.
#[derive(Clone, Copy)]
pub(super) struct Q8_0Rows<'a> {
    pub bytes: &'a [u8],
    pub row_bytes: usize,
}

versions! {
    /// `panel[i][j] = W[j, first + i]` for `j < n_rows`, 0 beyond; `first` begins a block. Transposes bytes, then widens
    /// them.
    pub(super) fn pack_columns(weight: Q8_0Rows<'_>, n_rows: usize, first: usize, panel: &mut [TileRow]) {
        for (block, panel) in panel.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().enumerate() {
            let block_at = (first / BLOCK_LEN + block) * BLOCK_BYTES;
            for half in 0..2 {
                let mut scales = [0f32; 16];
                let mut bytes = [[[0u8; 16]; 16]; 2];
                for r in 0..n_rows.saturating_sub(16 * half).min(16) {
                    let at = (16 * half + r) * weight.row_bytes + block_at;
                    let block = &weight.bytes[at..][..BLOCK_BYTES];
                    scales[r] = half_at(block, 0);
                    // the same place in the next tile, which this thread packs next
                    prefetch(weight.bytes, at + TILE_COLUMNS * weight.row_bytes);
                    for (part, quarter) in bytes.iter_mut().zip(block[2..].as_chunks::<16>().0) {
                        part[r] = *quarter;
                    }
                }
                for (part, bytes) in bytes.iter().enumerate() {
                    for (i, column) in transpose_bytes(bytes).iter().enumerate() {
                        let out = &mut panel[16 * part + i][16 * half..][..16];
                        for ((out, &q), scale) in out.iter_mut().zip(column).zip(&scales) {
                            *out = scale * f32::from(q as i8);
                        }
                    }
                }
            }
        }
    }
}

versions! {
    /// `panel[i][j] = W[i, first + j]` for `j < n_columns`, 0 beyond; `first` begins a block.
    pub(super) fn pack_rows(weight: Q8_0Rows<'_>, first: usize, n_columns: usize, panel: &mut [TileRow]) {
        let at = first / BLOCK_LEN * BLOCK_BYTES;
        for (row, out) in weight.bytes.chunks_exact(weight.row_bytes.max(1)).zip(panel) {
            let block = &row[at..][..BLOCK_BYTES];
            let scale = half_at(block, 0);
            for (out, &q) in out.iter_mut().zip(&block[2..]) {
                *out = scale * f32::from(q as i8);
            }
            out[n_columns..].fill(0.0);
        }
    }
}
