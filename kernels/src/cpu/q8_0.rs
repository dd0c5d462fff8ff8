//! Rows of a Q8_0 matrix, the usual form of heads, in a product: blocks of a half-precision scale and 32 signed bytes.
//!
//! Invariant: an element is `scale * byte`, one multiplication, wherever it is unpacked.

use super::simd::{Isa, Start, TILE_COLUMNS, TileRow, prefetch, transpose_bytes, versions};
use crate::quant::half_at;
use crate::weight::Format;

/// Elements of a block.
const BLOCK_LEN: usize = Format::Q8_0.block_len();
const BLOCK_BYTES: usize = Format::Q8_0.block_bytes();

/// Most rows of the left operand that are multiplied without a panel.
const FEW_ROWS: usize = 4;

/// The matrix from one of its rows on.
#[derive(Clone, Copy)]
pub(super) struct Q8_0Rows<'a> {
    pub bytes: &'a [u8],
    pub row_bytes: usize,
}

/// The blocks of 16 rows at one place, each half of the bytes turned: `[half of the block][column][row]`.
struct Turned {
    scales: [f32; 16],
    columns: [[[u8; 16]; 16]; 2],
}

impl Q8_0Rows<'_> {
    /// `panel[i][j] = W[j, first + i]` for `j < n_rows`, 0 beyond; `first` begins a block.
    pub(super) fn pack_columns(self, isa: Isa, n_rows: usize, first: usize, panel: &mut [TileRow]) {
        columns(isa, self, n_rows, first, panel);
    }

    /// `panel[i][j] = W[i, first + j]` for `j < n_columns`, 0 beyond; `first` begins a block.
    pub(super) fn pack_rows(self, isa: Isa, first: usize, n_columns: usize, panel: &mut [TileRow]) {
        rows(isa, self, first, n_columns, panel);
    }

    /// `rows [W, 32] (+)= a [W, K] · Wᵀ` of the first 32 rows, where the left operand has few; else does nothing and says
    /// so.
    pub(super) fn multiply_few(self, isa: Isa, a: &[&[f32]], rows: &mut [&mut [f32]], start: Start) -> bool {
        let is_whole = rows.iter().all(|row| row.len() == TILE_COLUMNS);
        if rows.len() > FEW_ROWS || !is_whole {
            return false;
        }
        few(isa, self, a, rows, start);
        true
    }

    /// Rows `first..first + n` at a block; zeros stand for the rest of the 16.
    #[inline(always)]
    fn turned(self, first: usize, n: usize, block: usize) -> Turned {
        let at = block * BLOCK_BYTES;
        let mut scales = [0f32; 16];
        let mut bytes = [[[0u8; 16]; 16]; 2];
        for (r, scale) in scales.iter_mut().enumerate().take(n) {
            let block = &self.bytes[(first + r) * self.row_bytes + at..][..BLOCK_BYTES];
            *scale = half_at(block, 0);
            // the same place in the next tile, which this thread reads next
            prefetch(self.bytes, (TILE_COLUMNS + first + r) * self.row_bytes + at);
            for (part, half) in bytes.iter_mut().zip(block[2..].as_chunks::<16>().0) {
                part[r] = *half;
            }
        }
        Turned {
            scales,
            columns: [transpose_bytes(&bytes[0]), transpose_bytes(&bytes[1])],
        }
    }
}

versions! {
    fn columns(weight: Q8_0Rows<'_>, n_rows: usize, first: usize, panel: &mut [TileRow]) {
        for (block, panel) in panel.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().enumerate() {
            for half in 0..2 {
                let n = n_rows.saturating_sub(16 * half).min(16);
                let turned = weight.turned(16 * half, n, first / BLOCK_LEN + block);
                for (column, out) in turned.columns.as_flattened().iter().zip(panel.iter_mut()) {
                    let out = &mut out[16 * half..][..16];
                    for ((out, &q), scale) in out.iter_mut().zip(column).zip(&turned.scales) {
                        *out = scale * f32::from(q as i8);
                    }
                }
            }
        }
    }
}

versions! {
    fn rows(weight: Q8_0Rows<'_>, first: usize, n_columns: usize, panel: &mut [TileRow]) {
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

versions! {
    fn few(weight: Q8_0Rows<'_>, a: &[&[f32]], rows: &mut [&mut [f32]], start: Start) {
        match rows.len() {
            1 => few_rows::<1>(weight, a, rows, start),
            2 => few_rows::<2>(weight, a, rows, start),
            3 => few_rows::<3>(weight, a, rows, start),
            _ => few_rows::<FEW_ROWS>(weight, a, rows, start),
        }
    }
}

#[inline(always)]
fn few_rows<const W: usize>(weight: Q8_0Rows<'_>, a: &[&[f32]], rows: &mut [&mut [f32]], start: Start) {
    let (Some(a), Some(rows)) = (a.first_chunk::<W>(), rows.first_chunk_mut::<W>()) else {
        return;
    };
    let mut sums = [[[0f32; 16]; 2]; W];
    if start == Start::Current {
        for (sums, row) in sums.iter_mut().zip(rows.iter()) {
            for (sums, row) in sums.iter_mut().zip(row.as_chunks::<16>().0) {
                *sums = *row;
            }
        }
    }
    let n_blocks = weight.row_bytes / BLOCK_BYTES;
    for block in 0..n_blocks {
        let halves = [0, 16].map(|first| weight.turned(first, 16, block));
        for (half, turned) in halves.iter().enumerate() {
            for (i, column) in turned.columns.as_flattened().iter().enumerate() {
                let mut y = [0f32; 16];
                for ((y, &q), scale) in y.iter_mut().zip(column).zip(&turned.scales) {
                    *y = scale * f32::from(q as i8);
                }
                for w in 0..W {
                    let x = a[w][BLOCK_LEN * block + i];
                    for j in 0..16 {
                        sums[w][half][j] = x.mul_add(y[j], sums[w][half][j]);
                    }
                }
            }
        }
    }
    for (sums, row) in sums.iter().zip(rows) {
        row.copy_from_slice(sums.as_flattened());
    }
}
