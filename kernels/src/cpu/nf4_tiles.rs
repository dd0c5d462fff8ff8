//! An NF4 matrix in the order in which products read it: tiles of 32 rows, column after column.
//!
//! Invariant: holds the same codes and scales as the matrix it was made from, and zeros for the rows that fill up the
//! last tile.

use super::simd::{
    FewRows, IntegerLeft, IntegerRow, Isa, Nf4TileView, PanelMut, Start, TILE_COLUMNS, TileRow, WEIGHT_UNIT,
    nf4_columns, nf4_few_integers, nf4_integers, nf4_multiply, nf4_rows, transpose_bytes,
};
use crate::nf4::{BLOCK_LEN, CODE_VALUES, Nf4Matrix};

/// Columns packed at once: 16 bytes of each row.
const RUN_LEN: usize = 32;

/// The matrix `[N, K]`, K a multiple of 64.
pub(super) struct Nf4Tiles {
    k: usize,
    /// See [`Nf4TileView`].
    codes: Vec<[u8; 16]>,
    scales: Vec<TileRow>,
}

impl Nf4Tiles {
    /// The tiles of a matrix whose rows are whole blocks, else `None`.
    pub(super) fn new(matrix: &Nf4Matrix) -> Option<Self> {
        let (n, k) = matrix.shape();
        if !k.is_multiple_of(BLOCK_LEN) {
            return None;
        }
        let n_tiles = n.div_ceil(TILE_COLUMNS);
        let (n_blocks, block_scales) = (k / BLOCK_LEN, matrix.block_scales());
        let mut scales = vec![[0f32; TILE_COLUMNS]; n_tiles * n_blocks];
        for (i, scale) in block_scales.iter().enumerate() {
            let (row, block) = (i / n_blocks, i % n_blocks);
            scales[row / TILE_COLUMNS * n_blocks + block][row % TILE_COLUMNS] = *scale;
        }
        let mut codes = vec![[0u8; 16]; n_tiles * k];
        for (tile, out) in codes.chunks_exact_mut(k.max(1)).enumerate() {
            let first = tile * TILE_COLUMNS;
            let rows = &matrix.codes()[first * k / 2..(first + TILE_COLUMNS).min(n) * k / 2];
            pack_tile(rows, k / 2, out);
        }
        Some(Self { k, codes, scales })
    }

    #[inline(always)]
    fn view(&self) -> Nf4TileView<'_> {
        Nf4TileView {
            codes: &self.codes,
            scales: &self.scales,
            k: self.k,
        }
    }

    /// `out[i] = W[row, first + i]`.
    pub(super) fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let (tile, row) = (row / TILE_COLUMNS, row % TILE_COLUMNS);
        let codes = &self.codes[tile * self.k + first..];
        for (i, (out, codes)) in out.iter_mut().zip(codes).enumerate() {
            let code = codes[row % 16] >> (row / 16 * 4) & 15;
            let block = tile * (self.k / BLOCK_LEN) + (first + i) / BLOCK_LEN;
            *out = CODE_VALUES[usize::from(code)] * self.scales[block][row];
        }
    }

    /// `panel[i][j] = W[row_first + j, column_first + i]`; `row_first` begins a tile and `column_first` a block.
    pub(super) fn pack_columns(&self, isa: Isa, row_first: usize, column_first: usize, panel: PanelMut<'_>) {
        nf4_columns(isa, self.view(), row_first / TILE_COLUMNS, column_first, panel);
    }

    /// `panel[i][j] = W[row_first + i, column_first + j]`; `row_first` begins a tile, `column_first` is a multiple of 32.
    pub(super) fn pack_rows(&self, isa: Isa, row_first: usize, column_first: usize, panel: PanelMut<'_>) {
        nf4_rows(isa, self.view(), row_first / TILE_COLUMNS, column_first, panel);
    }

    /// Elements `column_first..` of the tile that `row_first` begins, as many as `panel` has pairs of, as integers; in
    /// `scales` what they are to be multiplied with. `column_first` begins a block.
    pub(super) fn pack_integers(
        &self,
        isa: Isa,
        row_first: usize,
        column_first: usize,
        panel: &mut [IntegerRow],
        scales: &mut [TileRow],
    ) {
        let (columns, block_scales) = self.view().tile(row_first / TILE_COLUMNS, column_first);
        nf4_integers(isa, &columns[..2 * panel.len()], panel);
        for (out, scales) in scales.iter_mut().zip(block_scales) {
            *out = scales.map(|scale| scale * WEIGHT_UNIT);
        }
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
        nf4_multiply(isa, self.view(), row_first / TILE_COLUMNS, a, rows, start)
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
        nf4_few_integers(isa, self.view(), row_first / TILE_COLUMNS, a, rows, start)
    }
}

/// Packs up to 32 rows of `row_bytes`, each byte two codes with the even column's in the high nibble.
fn pack_tile(rows: &[u8], row_bytes: usize, out: &mut [[u8; 16]]) {
    for (run, out) in out.chunks_exact_mut(RUN_LEN).enumerate() {
        let mut bytes = [[[0u8; 16]; 16]; 2];
        for (row, bytes) in rows.chunks_exact(row_bytes).zip(bytes.as_flattened_mut()) {
            if let Some(part) = row.as_chunks().0.get(run) {
                *bytes = *part;
            }
        }
        let [low, high] = bytes.map(|bytes| transpose_bytes(&bytes));
        for ((low, high), out) in low.iter().zip(&high).zip(out.as_chunks_mut::<2>().0) {
            for (j, (low, high)) in low.iter().zip(high).enumerate() {
                out[0][j] = low >> 4 | high & 0xf0;
                out[1][j] = low & 15 | high << 4;
            }
        }
    }
}
