//! A rectangle of a result: some rows by some columns of a row-major matrix.
//!
//! Invariant: a [`Block`] is the only way to its elements while it lives, since it is made of an exclusive reference and
//! only ever cut into parts that share nothing. Slices could not say so: the rows of two neighbouring blocks lie in turns.
#![expect(unsafe_code, reason = "blocks of one matrix are interleaved in memory")]

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use crate::cpu::simd::TILE_ROWS;

/// Rows and columns of a matrix that nobody else holds.
#[derive(Debug)]
pub(in crate::cpu) struct Block<'a> {
    first: NonNull<f32>,
    /// Elements from row to row; at least `n_columns`.
    row_step: usize,
    n_rows: usize,
    n_columns: usize,
    holds: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for an exclusive reference to floats, which may go to another thread.
unsafe impl Send for Block<'_> {}

impl<'a> Block<'a> {
    /// All of a dense matrix `[n_rows, n_columns]`; what the slice holds beyond it is not touched. With fewer values than
    /// that it has no rows.
    pub(in crate::cpu) fn dense(values: &'a mut [f32], n_rows: usize, n_columns: usize) -> Self {
        let fits = n_rows
            .checked_mul(n_columns)
            .is_some_and(|len| len <= values.len());
        debug_assert!(fits, "{n_rows} rows of {n_columns} in {} values", values.len());
        Self {
            first: NonNull::from(values).cast(),
            row_step: n_columns,
            n_rows: if fits { n_rows } else { 0 },
            n_columns,
            holds: PhantomData,
        }
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// The rows before `at`, and those from there on.
    pub(super) fn split_rows(self, at: usize) -> (Self, Self) {
        let at = at.min(self.n_rows);
        let below = Self {
            first: self.after(at * self.row_step),
            n_rows: self.n_rows - at,
            ..self
        };
        (Self { n_rows: at, ..self }, below)
    }

    /// The columns before `at`, and those from there on.
    pub(super) fn split_columns(self, at: usize) -> (Self, Self) {
        let at = at.min(self.n_columns);
        let right = Self {
            first: self.after(at),
            n_columns: self.n_columns - at,
            ..self
        };
        (
            Self {
                n_columns: at,
                ..self
            },
            right,
        )
    }

    /// Where the element `n` after the first is, or would be: a part without rows or columns may begin behind the matrix.
    fn after(&self, n: usize) -> NonNull<f32> {
        NonNull::new(self.first.as_ptr().wrapping_add(n)).unwrap_or(self.first)
    }

    /// Up to 12 of its rows; beyond them the slices are empty.
    #[inline(always)]
    pub(super) fn rows(&mut self, rows: Range<usize>) -> [&mut [f32]; TILE_ROWS] {
        let mut out: [&mut [f32]; TILE_ROWS] = Default::default();
        let end = rows.end.min(self.n_rows);
        for (out, row) in out.iter_mut().zip(rows.start..end) {
            // SAFETY: the row is below `n_rows`, and all rows were checked to lie in one matrix.
            let first = unsafe { self.first.as_ptr().add(row * self.row_step) };
            // SAFETY: so do the row's columns. They are the block's own while `self` is borrowed, and rows do not overlap,
            // since they are at least their length apart.
            *out = unsafe { std::slice::from_raw_parts_mut(first, self.n_columns) };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `number` into every element of a block.
    fn mark(mut block: Block<'_>, number: f32) {
        for first in (0..block.n_rows()).step_by(TILE_ROWS) {
            let rows = block.rows(first..first + TILE_ROWS);
            rows.into_iter().for_each(|row| row.fill(number));
        }
    }

    #[test]
    fn parts_are_a_blocks_elements_once_each() {
        const ROWS: usize = 29;
        const COLUMNS: usize = 70;
        let mut values = vec![0.0; ROWS * COLUMNS + 3];
        let (above, below) = Block::dense(&mut values, ROWS, COLUMNS).split_rows(13);
        let (left, rest) = above.split_columns(32);
        let (middle, right) = rest.split_columns(32);
        let (all, none) = below.split_columns(COLUMNS + 1);
        let (none_either, all) = all.split_rows(0);
        for (block, number) in [left, middle, right, all].into_iter().zip([1.0, 2.0, 3.0, 4.0]) {
            mark(block, number);
        }
        mark(none, 5.0);
        mark(none_either, 6.0);
        for (at, value) in values.iter().enumerate() {
            let expected = match (at / COLUMNS, at % COLUMNS) {
                (ROWS.., _) => 0.0,
                (13.., _) => 4.0,
                (_, 64..) => 3.0,
                (_, 32..) => 2.0,
                _ => 1.0,
            };
            assert_eq!(*value, expected, "element {at}");
        }
    }

    #[test]
    fn rows_beyond_the_last_are_empty() {
        let mut values = vec![0.0; 6];
        let mut block = Block::dense(&mut values, 2, 3);
        let lengths = block.rows(1..9).map(|row| row.len());
        assert_eq!(lengths[..2], [3, 0]);
    }
}
