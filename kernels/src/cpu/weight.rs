//! A frozen matrix as the CPU reads it, and its unpacking into the panels of a product.
//!
//! Invariant: the values stay packed in memory; a panel is unpacked just before it is used.

use std::sync::Arc;

use super::gemm::{View, pack_right};
use super::nf4_tiles::Nf4Tiles;
use super::q8_0_tiles::Q8_0Tiles;
use super::simd::{
    FewRows, IntegerLeft, IntegerRow, Isa, PanelMut, Start, TILE_COLUMNS, TileRow, nf4_run, versions,
};
use crate::nf4::BLOCK_LEN;
use crate::quant::decode_row;
use crate::weight::{BlockMatrix, Format, HostWeight, SharedBytes};

/// A frozen matrix `[N, K]`.
pub struct CpuWeight {
    n: usize,
    k: usize,
    values: Values,
}

enum Values {
    Nf4(Nf4Tiles),
    Q8_0(Q8_0Tiles),
    /// NF4 of which a block may lie in two rows.
    Nf4Flat {
        codes: Arc<[u8]>,
        scales: Arc<[f32]>,
    },
    Blocks {
        format: Format,
        bytes: SharedBytes,
        offset: usize,
        row_bytes: usize,
    },
}

impl std::fmt::Debug for CpuWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuWeight[{}, {}]", self.n, self.k)
    }
}

impl From<HostWeight> for CpuWeight {
    fn from(weight: HostWeight) -> Self {
        let (n, k) = weight.shape();
        let values = match weight {
            HostWeight::Nf4(matrix) => match Nf4Tiles::new(&matrix) {
                Some(tiles) => Values::Nf4(tiles),
                None => Values::Nf4Flat {
                    codes: matrix.shared_codes(),
                    scales: matrix.block_scales(),
                },
            },
            HostWeight::Blocks(BlockMatrix {
                format: Format::Q8_0,
                bytes,
                offset,
                ..
            }) => Values::Q8_0(Q8_0Tiles::new(n, k, &bytes, offset)),
            HostWeight::Blocks(BlockMatrix {
                format,
                bytes,
                offset,
                ..
            }) => {
                let row_bytes = k / format.block_len() * format.block_bytes();
                Values::Blocks {
                    format,
                    bytes,
                    offset,
                    row_bytes,
                }
            }
        };
        Self { n, k, values }
    }
}

impl CpuWeight {
    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// `out[i] = W[row, first + i]`; `first` is a multiple of 32 and so is `out.len()`, unless it reaches the row's end.
    pub(super) fn decode(&self, isa: Isa, row: usize, first: usize, out: &mut [f32]) {
        match &self.values {
            Values::Nf4(tiles) => tiles.decode(row, first, out),
            Values::Q8_0(tiles) => tiles.decode(row, first, out),
            Values::Nf4Flat { codes, scales } => nf4_run(isa, codes, scales, row * self.k + first, out),
            Values::Blocks {
                format,
                bytes,
                offset,
                row_bytes,
            } => {
                let start = offset + row * row_bytes;
                decode_blocks(
                    isa,
                    *format,
                    &(**bytes).as_ref()[start..start + row_bytes],
                    first,
                    out,
                );
            }
        }
    }

    /// `panel[i][j] = W[row_first + i, column_first + j]` for `j < n_columns`, 0 beyond.
    pub(super) fn pack_rows(
        &self,
        isa: Isa,
        row_first: usize,
        column_first: usize,
        n_columns: usize,
        mut panel: PanelMut<'_>,
    ) {
        match &self.values {
            Values::Nf4(tiles) => tiles.pack_rows(isa, row_first, column_first, panel),
            Values::Q8_0(tiles) => tiles.pack_rows(isa, row_first, column_first, panel),
            Values::Nf4Flat { .. } => {
                for i in 0..panel.len() {
                    let mut row = [0f32; TILE_COLUMNS];
                    self.decode(isa, row_first + i, column_first, &mut row[..n_columns]);
                    panel.set_row(i, &row);
                }
            }
            Values::Blocks {
                format,
                bytes,
                offset,
                row_bytes,
            } => {
                let matrix = &(**bytes).as_ref()[offset + row_first * row_bytes..];
                block_rows(isa, *format, matrix, *row_bytes, column_first, n_columns, panel);
            }
        }
    }

    /// `rows (+)= a [rows, K] · Wᵀ` of the 32 rows of W from `row_first` on, for forms that are fastest without a panel
    /// where the rows are few; else does nothing and says so.
    pub(super) fn multiply_few(
        &self,
        isa: Isa,
        row_first: usize,
        a: FewRows<'_>,
        rows: &mut [&mut [f32]],
        start: Start,
    ) -> bool {
        match &self.values {
            Values::Nf4(tiles) => tiles.multiply_few(isa, row_first, a, rows, start),
            Values::Q8_0(tiles) => tiles.multiply_few(isa, row_first, a, rows, start),
            Values::Nf4Flat { .. } | Values::Blocks { .. } => false,
        }
    }

    /// Elements that share a scale, for forms that are multiplied as integers.
    pub(super) fn integer_block_len(&self) -> Option<usize> {
        match &self.values {
            Values::Nf4(_) => Some(BLOCK_LEN),
            Values::Q8_0(_) => Some(Format::Q8_0.block_len()),
            Values::Nf4Flat { .. } | Values::Blocks { .. } => None,
        }
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
        match &self.values {
            Values::Nf4(tiles) => tiles.multiply_few_integers(isa, row_first, a, rows, start),
            Values::Q8_0(tiles) => tiles.multiply_few_integers(isa, row_first, a, rows, start),
            Values::Nf4Flat { .. } | Values::Blocks { .. } => false,
        }
    }

    /// Columns `column_first..` of 32 rows of W as integers, for forms that have an [`Self::integer_block_len`].
    pub(super) fn pack_integers(
        &self,
        isa: Isa,
        row_first: usize,
        column_first: usize,
        panel: &mut [IntegerRow],
        scales: &mut [TileRow],
    ) {
        match &self.values {
            Values::Nf4(tiles) => tiles.pack_integers(isa, row_first, column_first, panel, scales),
            Values::Q8_0(tiles) => tiles.pack_integers(isa, row_first, column_first, panel, scales),
            Values::Nf4Flat { .. } | Values::Blocks { .. } => {}
        }
    }

    /// `panel[i][j] = W[row_first + j, column_first + i]` for `j < n_rows`, 0 beyond. `rows` is room for 32 rows of
    /// the panel's length.
    pub(super) fn pack_columns(
        &self,
        isa: Isa,
        row_first: usize,
        n_rows: usize,
        column_first: usize,
        panel: PanelMut<'_>,
        rows: &mut [f32],
    ) {
        let len = panel.len();
        match &self.values {
            Values::Nf4(tiles) => tiles.pack_columns(isa, row_first, column_first, panel),
            Values::Q8_0(tiles) => tiles.pack_columns(isa, row_first, column_first, panel),
            _ => {
                for (j, row) in rows.chunks_exact_mut(len).take(n_rows).enumerate() {
                    self.decode(isa, row_first + j, column_first, row);
                }
                let rows = View::rows(&rows[..n_rows * len], len).transposed();
                pack_right(isa, rows, 0, 0, n_rows, panel);
            }
        }
    }
}

versions! {
    fn decode_blocks(format: Format, row: &[u8], first: usize, out: &mut [f32]) {
        decode_row(format, row, first, out);
    }
}

versions! {
    /// Decodes `n_columns` elements of each of the matrix's first rows.
    fn block_rows(
        format: Format,
        matrix: &[u8],
        row_bytes: usize,
        first: usize,
        n_columns: usize,
        panel: PanelMut<'_>,
    ) {
        let mut panel = panel;
        for (i, row) in (0..panel.len()).zip(matrix.chunks_exact(row_bytes.max(1))) {
            let mut values = [0f32; TILE_COLUMNS];
            decode_row(format, row, first, &mut values[..n_columns]);
            panel.set_row(i, &values);
        }
    }
}
