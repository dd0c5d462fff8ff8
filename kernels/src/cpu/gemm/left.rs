//! The left operand of a product, as the tile reads it: row after row.
//!
//! Invariant: row `i` holds `factor * A[i, 0..K]`, as floats, as floats rounded to bf16, or as pairs of bf16, as the
//! backend's [`Operands`] say; an odd last element is paired with 0.

use std::ops::Range;

use super::{Operands, View};
use crate::cpu::Cpu;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{
    IntegerLeft, IntegerRows, Isa, LEFT_BLOCK_LEN, TILE_ROWS, round_left, round_row, transpose_floats,
};

/// Rows that are a multiple of this many words apart lie in the same sets of the first cache, where 12 of them do not
/// find room: 4 KiB is as far as its index reaches.
const SAME_SET_LEN: usize = 1024;

/// Put between such rows: a cache line.
const APART: usize = 16;

/// A left operand `[M, K]`.
pub(in crate::cpu) struct Left<'a> {
    values: Values<'a>,
    /// Beside the floats, where the backend multiplies integers and K is whole blocks.
    pub(super) integers: Option<Integers<'a>>,
    /// Words from row to row.
    step: usize,
    pub(super) groups: RowGroups,
    pub(super) k: usize,
}

/// A left operand `[M, K]` as integers.
pub(super) struct Integers<'a> {
    /// `[M, K / 2]` words.
    pairs: Scratch<'a>,
    /// `[M, K / 64]`.
    scales: Scratch<'a>,
    k: usize,
}

impl Integers<'_> {
    /// A row, whole.
    pub(super) fn row(&self, row: usize) -> IntegerLeft<'_> {
        let IntegerRows {
            pairs,
            pairs_step,
            scales,
            scales_step,
        } = self.rows(row, 0);
        IntegerLeft {
            pairs: &pairs[..pairs_step],
            scales: &scales[..scales_step],
        }
    }

    /// The rows from `row` on, each from `element` on, the beginning of a block.
    pub(super) fn rows(&self, row: usize, element: usize) -> IntegerRows<'_> {
        let pairs: &[i32] = bytemuck::cast_slice(&self.pairs);
        let (pairs_step, scales_step) = (self.k / 2, self.k / LEFT_BLOCK_LEN);
        IntegerRows {
            pairs: &pairs[row * pairs_step + element / 2..],
            pairs_step,
            scales: &self.scales[row * scales_step + element / LEFT_BLOCK_LEN..],
            scales_step,
        }
    }
}

enum Values<'a> {
    /// Floats as they lie in memory.
    Lying(&'a [f32]),
    Packed(Scratch<'a>),
}

/// The rows of A in groups of at most 12, all about equally wide, so that no row is padded.
#[derive(Clone, Copy)]
pub(super) struct RowGroups {
    m: usize,
    pub(super) len: usize,
}

impl RowGroups {
    pub(super) fn of(m: usize) -> Self {
        Self {
            m,
            len: m.div_ceil(TILE_ROWS),
        }
    }

    pub(super) fn start(self, group: usize) -> usize {
        group * self.m / self.len.max(1)
    }

    pub(super) fn range(self, group: usize) -> Range<usize> {
        self.start(group)..self.start(group + 1)
    }
}

impl Left<'_> {
    /// Elements `part` of each of `rows`, which are at most 12.
    #[inline(always)]
    pub(super) fn floats(&self, rows: Range<usize>, part: Range<usize>) -> [&[f32]; TILE_ROWS] {
        let values: &[f32] = match &self.values {
            Values::Lying(values) => values,
            Values::Packed(values) => values,
        };
        self.pieces(values, rows, part)
    }

    /// The pairs of elements `part`, which begins with an even one.
    #[inline(always)]
    pub(super) fn pairs(&self, rows: Range<usize>, part: Range<usize>) -> [&[u32]; TILE_ROWS] {
        match &self.values {
            Values::Packed(values) => {
                let words = bytemuck::cast_slice(values);
                self.pieces(words, rows, part.start / 2..part.end.div_ceil(2))
            }
            Values::Lying(_) => Default::default(),
        }
    }

    fn pieces<'v, T>(&self, values: &'v [T], rows: Range<usize>, part: Range<usize>) -> [&'v [T]; TILE_ROWS] {
        let mut pieces: [&[T]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (piece, row) in pieces.iter_mut().zip(rows) {
            *piece = &values[row * self.step..][part.clone()];
        }
        pieces
    }
}

impl Cpu {
    /// Makes `a [M, K]` ready once for all the products it is in.
    pub(in crate::cpu) fn pack<'a>(&'a self, a: View<'a>, m: usize, k: usize) -> Left<'a> {
        self.pack_scaled(a, m, k, 1.0)
    }

    /// [`Cpu::pack`] of `factor * a`.
    pub(in crate::cpu) fn pack_scaled<'a>(
        &'a self,
        a: View<'a>,
        m: usize,
        k: usize,
        factor: f32,
    ) -> Left<'a> {
        let groups = RowGroups::of(m);
        let lies_well = a.column_step == 1 && (m < 2 || !a.row_step.is_multiple_of(SAME_SET_LEN));
        let floats = matches!(self.operands, Operands::F32 | Operands::Integers);
        if lies_well && factor == 1.0 && floats {
            return Left {
                values: Values::Lying(a.values),
                integers: self.round_rows(a, m, k),
                step: a.row_step,
                groups,
                k,
            };
        }
        let n_words = match self.operands {
            Operands::Pairs(_) => k.div_ceil(2),
            Operands::F32 | Operands::Rounded | Operands::Integers => k,
        };
        let step = match n_words.is_multiple_of(SAME_SET_LEN) {
            true => n_words + APART,
            false => n_words,
        };
        let mut packed = self.scratch(m * step);
        let pieces = (0..groups.len)
            .map(|group| groups.range(group))
            .scan(&mut packed[..], |rest, rows| {
                let (piece, after) = std::mem::take(rest).split_at_mut(rows.len() * step);
                *rest = after;
                Some((rows, piece))
            })
            .collect();
        self.each(pieces, m * k, |(rows, piece)| {
            self.pack_rows(a, rows, k, factor, piece)
        });
        let dense = View {
            values: &packed,
            row_step: step,
            column_step: 1,
        };
        let integers = self.round_rows(dense, m, k);
        Left {
            values: Values::Packed(packed),
            integers,
            step,
            groups,
            k,
        }
    }

    /// Rows of floats as integers, where the backend multiplies them.
    fn round_rows(&self, a: View<'_>, m: usize, k: usize) -> Option<Integers<'_>> {
        if self.operands != Operands::Integers || k == 0 || !k.is_multiple_of(LEFT_BLOCK_LEN) {
            return None;
        }
        let (pairs_len, scales_len) = (k / 2, k / LEFT_BLOCK_LEN);
        let (mut pairs, mut scales) = (self.scratch(m * pairs_len), self.scratch(m * scales_len));
        let words: &mut [i32] = bytemuck::cast_slice_mut(&mut pairs);
        let rows = words
            .chunks_exact_mut(pairs_len)
            .zip(scales.chunks_exact_mut(scales_len));
        self.each(rows.enumerate().collect(), m * k, |(row, (pairs, scales))| {
            round_left(self.isa, &a.values[row * a.row_step..][..k], pairs, scales);
        });
        Some(Integers { pairs, scales, k })
    }

    fn pack_rows(&self, a: View<'_>, rows: Range<usize>, k: usize, factor: f32, out: &mut [f32]) {
        let mut room;
        let (lying, row_step) = if a.column_step == 1 && factor == 1.0 {
            (&a.values[rows.start * a.row_step..], a.row_step)
        } else {
            room = self.scratch(rows.len() * k);
            straighten(self.isa, a, rows.clone(), k, &mut room);
            room.iter_mut().for_each(|value| *value *= factor);
            (&room[..], k)
        };
        let step = out.len() / rows.len().max(1);
        for (i, out) in out.chunks_exact_mut(step.max(1)).enumerate() {
            let row = &lying[i * row_step..][..k];
            match self.operands {
                Operands::F32 | Operands::Integers => out[..k].copy_from_slice(row),
                Operands::Rounded => round_row(self.isa, row, &mut out[..k]),
                Operands::Pairs(bf16) => {
                    bf16.pair_row(row, bytemuck::cast_slice_mut(&mut out[..k.div_ceil(2)]))
                }
            }
        }
    }
}

/// `out [rows, K] = a[rows, 0..K]`.
pub(super) fn straighten(isa: Isa, a: View<'_>, rows: Range<usize>, k: usize, out: &mut [f32]) {
    if a.column_step == 1 {
        for (row, out) in rows.zip(out.chunks_exact_mut(k.max(1))) {
            out.copy_from_slice(&a.values[row * a.row_step..][..k]);
        }
        return;
    }
    for first in (0..k).step_by(16) {
        let mut columns: [&[f32]; 16] = [&[]; 16];
        let n = 16.min(k - first);
        for (p, column) in columns[..n].iter_mut().enumerate() {
            *column = &a.values[(first + p) * a.column_step..][rows.clone()];
        }
        transpose_floats(isa, &columns[..n], &mut out[first..], k);
    }
}
