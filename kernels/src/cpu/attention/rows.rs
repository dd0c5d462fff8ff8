//! Attention of some query rows of one head over packed keys and values.
//!
//! Invariant: a row's scores, softmax and output are the same whatever rows it is computed with.

use super::{HalfRows, Shape};
use crate::cpu::Cpu;
use crate::cpu::gemm::{Panels, Start, View, multiply_panels};
use crate::cpu::math;
use crate::cpu::simd::{TILE_COLUMNS, TILE_ROWS, versions};

/// Rows computed together: their scores over 2048 keys stay in the second cache.
pub(super) const BLOCK_ROWS: usize = 4 * TILE_ROWS;

/// Keys `[ceil(S / 32)][2][D][16]` and values `[ceil(D / 32)][2][S][16]` of one key head.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct KeyPanels<'a> {
    pub keys: &'a HalfRows,
    pub values: &'a HalfRows,
    pub n_keys: usize,
}

/// Query rows `[len, D]`; row `i` stands at `position + i`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct QueryRows<'a> {
    pub view: View<'a>,
    pub len: usize,
    pub position: usize,
}

/// Where the rows' results go: row `i` to `out[first + i * step]`.
pub(in crate::cpu) struct RowsOut<'a, 'b> {
    pub out: &'a mut [&'b mut [f32]],
    pub lse: Option<&'a mut [&'b mut f32]>,
    pub first: usize,
    pub step: usize,
}

/// The rows of a block and the keys that any of them sees.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First row.
    pub row: usize,
    pub n_rows: usize,
    /// First key, a multiple of 32.
    pub key: usize,
    pub n_keys: usize,
    /// Distance of score rows: the keys in whole tiles.
    pub row_step: usize,
}

impl Block {
    pub(super) fn of(row: usize, queries: QueryRows<'_>, shape: Shape) -> Self {
        let n_rows = BLOCK_ROWS.min(queries.len - row);
        let first = queries.position + row;
        let last = first + n_rows - 1;
        let key = shape.first_key(first) / TILE_COLUMNS * TILE_COLUMNS;
        let n_keys = last + 1 - key;
        Self {
            row,
            n_rows,
            key,
            n_keys,
            row_step: n_keys.next_multiple_of(TILE_COLUMNS),
        }
    }

    /// The keys that row `i` of the block sees, counted from the block's first key.
    pub(super) fn visible(self, i: usize, queries: QueryRows<'_>, shape: Shape) -> std::ops::Range<usize> {
        let position = queries.position + self.row + i;
        shape.first_key(position) - self.key..position + 1 - self.key
    }

    /// `scores [rows, row_step] = rows · panelsᵀ` with panels `[ceil(S / 32)][2][D][16]`.
    pub(super) fn scores(
        self,
        cpu: &Cpu,
        rows: View<'_>,
        panels: &HalfRows,
        scores: &mut [f32],
        packed: &mut [f32],
        shape: Shape,
    ) {
        let d = shape.head_dim;
        let panels = &panels[2 * (self.key / TILE_COLUMNS) * d..];
        let rows = View {
            values: &rows.values[self.row * rows.row_step..],
            ..rows
        };
        let b = Panels {
            panels,
            k_all: d,
            k_first: 0,
        };
        let dims = (self.n_rows, self.row_step, d);
        multiply_panels(cpu.isa, scores, self.row_step, dims, rows, b, Start::Zero, packed);
    }
}

/// `out = softmax(scale * q · keysᵀ) · values` for each row.
pub(in crate::cpu) fn attend(
    cpu: &Cpu,
    queries: QueryRows<'_>,
    panels: KeyPanels<'_>,
    mut results: RowsOut<'_, '_>,
    shape: Shape,
) {
    let d = shape.head_dim;
    let key_columns = panels.n_keys.next_multiple_of(TILE_COLUMNS);
    let block_rows = BLOCK_ROWS.min(queries.len);
    let mut score_room = cpu.scratch(block_rows * key_columns);
    let mut packed = cpu.scratch(TILE_ROWS * d.max(key_columns));
    let mut product = cpu.scratch(block_rows * d);
    for row in (0..queries.len).step_by(BLOCK_ROWS) {
        let block = Block::of(row, queries, shape);
        let scores = &mut score_room[..block.n_rows * block.row_step];
        block.scores(cpu, queries.view, panels.keys, scores, &mut packed, shape);
        let mut sums = [[0f32; 2]; BLOCK_ROWS];
        for (i, (scores, sum)) in scores.chunks_exact_mut(block.row_step).zip(&mut sums).enumerate() {
            let visible = block.visible(i, queries, shape);
            softmax_row(cpu.isa, scores, visible, shape.scale, sum);
        }
        let b = Panels {
            panels: panels.values,
            k_all: panels.n_keys,
            k_first: block.key,
        };
        let dims = (block.n_rows, d, block.n_keys);
        let a = View::rows(scores, block.row_step);
        multiply_panels(cpu.isa, &mut product, d, dims, a, b, Start::Zero, &mut packed);
        for (i, (product, [sum, shift])) in product.chunks_exact(d).zip(&sums).take(block.n_rows).enumerate()
        {
            let at = results.first + (row + i) * results.step;
            scale_row(cpu.isa, results.out[at], product, 1.0 / sum);
            if let Some(lse) = &mut results.lse {
                *lse[at] = shift + f64::from(*sum).ln() as f32;
            }
        }
    }
}

versions! {
    /// Leaves `e^(scale * score - shift)` of the visible keys and 0 elsewhere, and the sum and the shift.
    pub(in crate::cpu) fn softmax_row(scores: &mut [f32], visible: std::ops::Range<usize>, scale: f32, sum: &mut [f32; 2]) {
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let scores = &mut scores[visible];
        let shift = scale * math::max(scores);
        *sum = [math::exp_in_place(scores, scale, shift), shift];
    }
}

versions! {
    pub(in crate::cpu) fn scale_row(out: &mut [f32], values: &[f32], factor: f32) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = value * factor;
        }
    }
}
