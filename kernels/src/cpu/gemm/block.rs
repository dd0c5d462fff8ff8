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
    /// All of a dense matrix `[n_rows, n_columns]`; what the slice holds beyond it is not touched.
    pub(in crate::cpu) fn dense(values: &'a mut [f32], n_rows: usize, n_columns: usize) -> Self {
        Self::apart(values, n_rows, n_columns, n_columns)
    }

    /// All of a matrix whose rows are `row_step` apart. With fewer values than that needs it has no rows.
    pub(in crate::cpu) fn apart(
        values: &'a mut [f32],
        n_rows: usize,
        n_columns: usize,
        row_step: usize,
    ) -> Self {
        let len = n_rows
            .checked_sub(1)
            .and_then(|rows| rows.checked_mul(row_step)?.checked_add(n_columns));
        let fits = n_columns <= row_step && len.is_some_and(|len| len <= values.len());
        debug_assert!(
            fits || n_rows == 0,
            "{n_rows} rows of {n_columns}, {row_step} apart"
        );
        Self {
            first: NonNull::from(values).cast(),
            row_step,
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
        let (above, below) = (at, self.n_rows - at);
        let first = NonNull::new(self.first.as_ptr().wrapping_add(at * self.row_step));
        let first = first.unwrap_or(self.first);
        (
            Self {
                n_rows: above,
                ..self.again()
            },
            Self {
                first,
                n_rows: below,
                ..self
            },
        )
    }

    /// The columns before `at`, and those from there on.
    pub(super) fn split_columns(self, at: usize) -> (Self, Self) {
        let at = at.min(self.n_columns);
        let (left, right) = (at, self.n_columns - at);
        let first = NonNull::new(self.first.as_ptr().wrapping_add(at));
        let first = first.unwrap_or(self.first);
        (
            Self {
                n_columns: left,
                ..self.again()
            },
            Self {
                first,
                n_columns: right,
                ..self
            },
        )
    }

    /// The same rectangle, of which the caller makes one that shares nothing with the other.
    fn again(&self) -> Self {
        Self { ..*self }
    }

    /// Up to 12 of its rows; beyond them the slices are empty.
    #[inline(always)]
    pub(super) fn rows(&mut self, rows: Range<usize>) -> [&mut [f32]; TILE_ROWS] {
        let mut out: [&mut [f32]; TILE_ROWS] = Default::default();
        let end = rows.end.min(self.n_rows);
        for (out, row) in out.iter_mut().zip(rows.start..end) {
            // SAFETY: the row is one of the block's, which are its own while `self` is borrowed, and rows do not overlap,
            // since they are at least their length apart.
            *out = unsafe {
                let first = self.first.as_ptr().add(row * self.row_step);
                std::slice::from_raw_parts_mut(first, self.n_columns)
            };
        }
        out
    }
}
