//! Panels: 32 columns of a right operand side by side, in two halves, as the tile reads them.
//!
//! Invariant: columns that the operand does not have are zeros.

use super::left::{RowGroups, straighten};
use super::{Start, View};
use crate::cpu::simd::{
    HALF_COLUMNS, HalfRow, Isa, Panel, PanelMut, TILE_COLUMNS, TILE_ROWS, multiply_tile, transpose_floats,
    versions,
};

/// `panel[i][j] = b[k_first + i, column_first + j]` for `j < n_columns`, 0 beyond.
pub(in crate::cpu) fn pack_right(
    isa: Isa,
    b: View<'_>,
    k_first: usize,
    column_first: usize,
    n_columns: usize,
    panel: PanelMut<'_>,
) {
    if b.column_step == 1 {
        let rows = &b.values[k_first * b.row_step + column_first..];
        return copy_rows(isa, rows, b.row_step, n_columns, panel);
    }
    let len = panel.len();
    for (first, half) in [0, HALF_COLUMNS].into_iter().zip([panel.low, panel.high]) {
        let n_columns = n_columns.saturating_sub(first).min(HALF_COLUMNS);
        if n_columns < HALF_COLUMNS {
            half.iter_mut().for_each(|out| out[n_columns..].fill(0.0));
        }
        let mut columns: [&[f32]; HALF_COLUMNS] = [&[]; HALF_COLUMNS];
        for (j, column) in columns[..n_columns].iter_mut().enumerate() {
            *column = &b.values[k_first + (column_first + first + j) * b.column_step..][..len];
        }
        transpose_floats(isa, &columns[..n_columns], half.as_flattened_mut(), HALF_COLUMNS);
    }
}

versions! {
    /// `panel[i][j] = values[i * step + j]` for `j < n_columns`, 0 beyond.
    fn copy_rows(values: &[f32], step: usize, n_columns: usize, panel: PanelMut<'_>) {
        let mut panel = panel;
        for i in 0..panel.len() {
            panel.set_row(i, &values[i * step..][..n_columns]);
        }
    }
}

/// A right operand packed whole: `[N / 32][2][K][16]`, the last panel filled up with zeros.
pub(in crate::cpu) fn pack_panels(isa: Isa, b: View<'_>, k: usize, n: usize, panels: &mut [HalfRow]) {
    for (tile, panel) in panels.chunks_exact_mut(2 * k.max(1)).enumerate() {
        let column = tile * TILE_COLUMNS;
        pack_right(
            isa,
            b,
            0,
            column,
            TILE_COLUMNS.min(n.saturating_sub(column)),
            PanelMut::of(panel),
        );
    }
}

/// A right operand packed by [`pack_panels`], of which rows `k_first..k_first + K` are used.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Panels<'a> {
    pub panels: &'a [HalfRow],
    pub k_all: usize,
    pub k_first: usize,
}

/// `c [M, N] (+)= a [M, K] · panels` on this thread, for the small products inside attention.
///
/// `room` is for 12 rows of K; C's rows are `row_step` apart.
#[expect(
    clippy::too_many_arguments,
    reason = "the operands and dimensions of a product"
)]
pub(in crate::cpu) fn multiply_panels(
    isa: Isa,
    c: &mut [f32],
    row_step: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: Panels<'_>,
    start: Start,
    room: &mut [f32],
) {
    let groups = RowGroups::of(m);
    for group in 0..groups.len {
        let range = groups.range(group);
        let (values, step, first) = match a.column_step {
            1 => (a.values, a.row_step, range.start),
            _ => {
                straighten(isa, a, range.clone(), k, room);
                (&*room, k, 0)
            }
        };
        let mut lefts: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (i, left) in lefts[..range.len()].iter_mut().enumerate() {
            *left = &values[(first + i) * step..][..k];
        }
        for (tile, panel) in b
            .panels
            .chunks_exact(2 * b.k_all.max(1))
            .take(n.div_ceil(TILE_COLUMNS))
            .enumerate()
        {
            let column = tile * TILE_COLUMNS;
            let n_columns = TILE_COLUMNS.min(n - column);
            let mut rows: [&mut [f32]; TILE_ROWS] = Default::default();
            let after = c.chunks_mut(row_step).skip(range.start).take(range.len());
            for (slot, row) in rows.iter_mut().zip(after) {
                *slot = &mut row[column..column + n_columns];
            }
            let panel = Panel::rows_of(panel, b.k_first, k);
            multiply_tile(isa, &lefts[..range.len()], panel, &mut rows[..range.len()], start);
        }
    }
}
