//! A Q8_0 matrix, the usual form of heads, in the order in which products read it: tiles of 32 rows, column after column.
//!
//! Invariant: an element is `scale * byte`, one multiplication, wherever it is unpacked; the rows that fill up the last
//! tile are zeros.

use super::simd::{
    FewRows, IntegerLeft, IntegerRow, Isa, PanelMut, Q8_0TileView, Q8Column, Start, TILE_COLUMNS, TileRow,
    q8_0_columns, q8_0_few_integers, q8_0_integers, q8_0_multiply, q8_0_rows, transpose_bytes,
};
use crate::quant::half_at;
use crate::weight::{Format, SharedBytes};

/// Elements of a block.
const BLOCK_LEN: usize = Format::Q8_0.block_len();
const BLOCK_BYTES: usize = Format::Q8_0.block_bytes();

/// Tiles after which the file's pages are given back while a matrix is taken over: half a megabyte of a small model's.
const RELEASED_TILES: usize = 32;

/// The matrix `[N, K]`, K a multiple of 32.
pub(super) struct Q8_0Tiles {
    k: usize,
    /// See [`Q8_0TileView`].
    codes: Vec<Q8Column>,
    scales: Vec<TileRow>,
}

impl Q8_0Tiles {
    /// The tiles of the matrix of N rows that lies in `bytes` from `offset` on.
    pub(super) fn new(n: usize, k: usize, bytes: &SharedBytes, offset: usize) -> Self {
        let (n_tiles, row_bytes) = (n.div_ceil(TILE_COLUMNS), k / BLOCK_LEN * BLOCK_BYTES);
        let mut codes = Vec::with_capacity(n_tiles * k);
        let mut scales = Vec::with_capacity(n_tiles * k / BLOCK_LEN);
        let rows_at = |row: usize| offset + row.min(n) * row_bytes;
        for first in (0..n_tiles).step_by(RELEASED_TILES) {
            let last = n_tiles.min(first + RELEASED_TILES);
            for tile in first..last {
                let rows = rows_at(tile * TILE_COLUMNS)..rows_at((tile + 1) * TILE_COLUMNS);
                take_tile(&(**bytes).as_ref()[rows], row_bytes, &mut codes, &mut scales);
            }
            bytes.release(rows_at(first * TILE_COLUMNS)..rows_at(last * TILE_COLUMNS));
        }
        Self { k, codes, scales }
    }

    fn view(&self) -> Q8_0TileView<'_> {
        Q8_0TileView {
            codes: &self.codes,
            scales: &self.scales,
            k: self.k,
        }
    }

    /// `out[i] = W[row, first + i]`.
    pub(super) fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let (codes, scales) = self.view().tile(row / TILE_COLUMNS, 0);
        let row = row % TILE_COLUMNS;
        for (i, (out, codes)) in (first..).zip(out.iter_mut().zip(&codes[first..])) {
            *out = scales[i / BLOCK_LEN][row] * f32::from(codes.0[row] as i8);
        }
    }

    /// `panel[i][j] = W[row_first + j, column_first + i]`; `row_first` begins a tile and `column_first` a block.
    pub(super) fn pack_columns(&self, isa: Isa, row_first: usize, column_first: usize, panel: PanelMut<'_>) {
        let (codes, scales) = self.view().tile(row_first / TILE_COLUMNS, column_first);
        q8_0_columns(isa, codes, scales, panel);
    }

    /// `panel[i][j] = W[row_first + i, column_first + j]`; `row_first` begins a tile and `column_first` a block.
    pub(super) fn pack_rows(&self, isa: Isa, row_first: usize, column_first: usize, mut panel: PanelMut<'_>) {
        for (part, panel) in panel.chunks(TILE_COLUMNS).enumerate() {
            let tile = row_first / TILE_COLUMNS + part;
            let (codes, scales) = self.view().tile(tile, column_first);
            if let (Some(codes), Some(scales)) = (codes.first_chunk(), scales.first()) {
                q8_0_rows(isa, codes, scales, panel);
            }
        }
    }

    /// See [`Nf4Tiles::pack_integers`](super::nf4_tiles::Nf4Tiles::pack_integers).
    pub(super) fn pack_integers(
        &self,
        isa: Isa,
        row_first: usize,
        column_first: usize,
        panel: &mut [IntegerRow],
        scales: &mut [TileRow],
    ) {
        let (columns, block_scales) = self.view().tile(row_first / TILE_COLUMNS, column_first);
        q8_0_integers(isa, &columns[..2 * panel.len()], panel);
        let n_blocks = scales.len().min(block_scales.len());
        scales[..n_blocks].copy_from_slice(&block_scales[..n_blocks]);
    }

    /// `rows (+)= a [rows, K] · Wᵀ` of the tile that `row_first` begins, when the rows are so few that no panel pays.
    pub(super) fn multiply_few(
        &self,
        isa: Isa,
        row_first: usize,
        a: FewRows<'_>,
        rows: &mut [&mut [f32]],
        start: Start,
    ) -> bool {
        q8_0_multiply(isa, self.view(), row_first / TILE_COLUMNS, a, rows, start)
    }

    /// [`Self::multiply_few`] of integers.
    pub(super) fn multiply_few_integers(
        &self,
        isa: Isa,
        row_first: usize,
        a: &[IntegerLeft<'_>],
        rows: &mut [&mut [f32]],
        start: Start,
    ) -> bool {
        q8_0_few_integers(isa, self.view(), row_first / TILE_COLUMNS, a, rows, start)
    }
}

/// Appends up to 32 rows of `row_bytes` as a tile.
fn take_tile(rows: &[u8], row_bytes: usize, codes: &mut Vec<Q8Column>, scales: &mut Vec<TileRow>) {
    for block in 0..row_bytes / BLOCK_BYTES {
        let mut block_scales = [0f32; TILE_COLUMNS];
        // by half of the columns, then half of the rows
        let mut bytes = [[[[0u8; 16]; 16]; 2]; 2];
        for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
            let block = &row[block * BLOCK_BYTES..][..BLOCK_BYTES];
            block_scales[r] = half_at(block, 0);
            for (half, part) in bytes.iter_mut().zip(block[2..].as_chunks::<16>().0) {
                half[r / 16][r % 16] = *part;
            }
        }
        scales.push(block_scales);
        for [low, high] in &bytes {
            for (low, high) in transpose_bytes(low).iter().zip(&transpose_bytes(high)) {
                let mut column = Q8Column([0; TILE_COLUMNS]);
                column.0[..16].copy_from_slice(low);
                column.0[16..].copy_from_slice(high);
                codes.push(column);
            }
        }
    }
}
