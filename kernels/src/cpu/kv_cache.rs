//! One layer's keys and values in pages, as generation grows them.
//!
//! Invariant: within a page keys lie transposed, `[KV][D][page_len]`, and values straight, `[KV][page_len][D]`: both
//! are then copied in runs when a panel is packed. What is read of a token does not depend on what else its page holds.

use std::ops::Range;

use super::check;
use super::simd::{Isa, Rounding, prefetch, versions};
use crate::dims::{HeadDims, SequenceSpan};
use crate::error::Result;

/// Largest magnitude of an integer: of a token's largest element in a head.
const INTEGER_MAX: f32 = 32_767.0;

/// One layer's paged keys and values.
#[derive(Debug)]
pub struct CpuKvCache {
    heads: HeadDims,
    n_pages: usize,
    page_len: usize,
    keys: Stored,
    values: Stored,
}

/// Keys or values of all pages.
#[derive(Debug)]
enum Stored {
    Floats(Vec<f32>),
    /// With a scale for each token of each head, `[n_pages][KV][page_len]`.
    Integers(Vec<i16>, Vec<f32>),
}

impl Stored {
    fn new(len: usize, head_dim: usize, as_integers: bool) -> Self {
        match as_integers {
            true => Self::Integers(vec![0; len], vec![0.0; len / head_dim.max(1)]),
            false => Self::Floats(vec![0.0; len]),
        }
    }

    /// Stores a token's `row [D]` of one head: element `i` at `at + i * step`.
    fn write(&mut self, isa: Isa, row: &[f32], at: usize, step: usize, token: usize) {
        match self {
            Self::Floats(all) => {
                for (i, value) in row.iter().enumerate() {
                    all[at + i * step] = *value;
                }
            }
            Self::Integers(all, scales) => {
                round_row(isa, row, &mut all[at..], step, &mut scales[token]);
            }
        }
    }

    fn prefetch(&self, block: Range<usize>) {
        match self {
            Self::Floats(all) => prefetch(&all[block]),
            Self::Integers(all, _) => prefetch(&all[block]),
        }
    }
}

impl CpuKvCache {
    /// `as_integers`: each token's keys and values of a head as integers of 16 bits with a scale.
    pub(super) fn new(heads: HeadDims, n_pages: usize, page_len: usize, as_integers: bool) -> Result<Self> {
        const OP: &str = "alloc_kv_cache";
        check::group_len(OP, heads)?;
        check::setting(OP, "page_len", "at least 1", page_len > 0)?;
        let len = check::size(
            OP,
            "cache",
            &[n_pages, page_len, heads.n_kv_heads, heads.head_dim],
        )?;
        check::size(OP, "cache", &[len, 16])?;
        Ok(Self {
            heads,
            n_pages,
            page_len,
            keys: Stored::new(len, heads.head_dim, as_integers),
            values: Stored::new(len, heads.head_dim, as_integers),
        })
    }

    /// The heads it was made for.
    pub(super) fn heads(&self) -> HeadDims {
        self.heads
    }

    /// Tokens of a page.
    pub(super) fn page_len(&self) -> usize {
        self.page_len
    }

    /// Checks that a sequence's rows and pages exist.
    pub(super) fn check(&self, op: &'static str, sequence: &SequenceSpan) -> Result<()> {
        let SequenceSpan {
            n_rows,
            n_context,
            pages,
            ..
        } = sequence;
        check::setting(op, "n_rows", "at most n_context", n_rows <= n_context)?;
        check::part(op, "pages", pages, &[n_context.div_ceil(self.page_len)])?;
        check::below(op, "page", pages, self.n_pages)
    }

    /// Stores `k, v [M, KV, D]` at each sequence's last positions.
    pub(super) fn write(&mut self, isa: Isa, k: &[f32], v: &[f32], sequences: &[SequenceSpan]) -> Result<()> {
        const OP: &str = "write_kv";
        let HeadDims {
            n_kv_heads, head_dim, ..
        } = self.heads;
        let width = n_kv_heads * head_dim;
        for sequence in sequences {
            self.check(OP, sequence)?;
            let m = sequence.first_row.saturating_add(sequence.n_rows);
            check::part(OP, "k", k, &[m, width])?;
            check::part(OP, "v", v, &[m, width])?;
        }
        for sequence in sequences {
            for j in 0..sequence.n_rows {
                let position = sequence.n_context - sequence.n_rows + j;
                let row = (sequence.first_row + j) * width;
                self.write_row(
                    isa,
                    sequence,
                    position,
                    &k[row..row + width],
                    &v[row..row + width],
                );
            }
        }
        Ok(())
    }

    fn write_row(&mut self, isa: Isa, sequence: &SequenceSpan, position: usize, k: &[f32], v: &[f32]) {
        let d = self.heads.head_dim;
        let page = sequence.pages[position / self.page_len] as usize;
        let slot = position % self.page_len;
        for (kv_head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let at = self.start(page, kv_head);
            let token = at / d + slot;
            self.keys.write(isa, k, at + slot, self.page_len, token);
            self.values.write(isa, v, at + slot * d, 1, token);
        }
    }

    /// The pages that hold the first `n_keys` tokens, in order.
    pub(super) fn runs<'a>(
        &'a self,
        sequence: &'a SequenceSpan,
        kv_head: usize,
        n_keys: usize,
    ) -> impl Iterator<Item = Run<'a>> {
        let starts = (0..n_keys).step_by(self.page_len);
        sequence.pages.iter().zip(starts).map(move |(page, start)| Run {
            start,
            len: self.page_len.min(n_keys - start),
            at: self.start(*page as usize, kv_head),
            cache: self,
        })
    }

    fn start(&self, page: usize, kv_head: usize) -> usize {
        (page * self.heads.n_kv_heads + kv_head) * self.page_len * self.heads.head_dim
    }
}

/// One head's part of a page.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// First token.
    pub start: usize,
    /// Tokens in use.
    pub len: usize,
    /// First element.
    at: usize,
    cache: &'a CpuKvCache,
}

impl<'a> Run<'a> {
    pub(super) fn page_len(self) -> usize {
        self.cache.page_len
    }

    /// `[D][page_len]`, in `room`, which is as long, where they are not floats.
    #[inline(always)]
    pub(super) fn keys<'r>(self, isa: Isa, room: &'r mut [f32]) -> &'r [f32]
    where
        'a: 'r,
    {
        match &self.cache.keys {
            Stored::Floats(all) => &all[self.block()],
            Stored::Integers(all, scales) => {
                let (integers, scales) = (&all[self.block()], &scales[self.tokens()]);
                let room = &mut room[..integers.len()];
                match scales.first_chunk() {
                    Some(scales) if self.cache.page_len == 8 => unpack_keys(isa, integers, scales, room),
                    _ => unpack_keys_any(isa, integers, scales, room),
                }
                room
            }
        }
    }

    /// `[page_len][D]`, in `room`, which is as long, where they are not floats.
    #[inline(always)]
    pub(super) fn values<'r>(self, isa: Isa, room: &'r mut [f32]) -> &'r [f32]
    where
        'a: 'r,
    {
        match &self.cache.values {
            Stored::Floats(all) => &all[self.block()],
            Stored::Integers(all, scales) => {
                let integers = &all[self.block()];
                let room = &mut room[..integers.len()];
                unpack_values(isa, integers, &scales[self.tokens()], room);
                room
            }
        }
    }

    pub(super) fn prefetch_keys(self) {
        self.cache.keys.prefetch(self.block());
    }

    pub(super) fn prefetch_values(self) {
        self.cache.values.prefetch(self.block());
    }

    fn block(self) -> Range<usize> {
        self.at..self.at + self.cache.heads.head_dim * self.cache.page_len
    }

    fn tokens(self) -> Range<usize> {
        let first = self.at / self.cache.heads.head_dim;
        first..first + self.cache.page_len
    }
}

versions! {
    /// `out[i * step] = round(row[i] / scale)` with `scale = max|row| / 32767`; see [`Rounding`].
    fn round_row(row: &[f32], out: &mut [i16], step: usize, scale: &mut f32) {
        let rounding = Rounding::of(row, INTEGER_MAX);
        *scale = rounding.scale;
        for (i, values) in row.chunks(16).enumerate() {
            let mut integers = [0i16; 16];
            for (integer, value) in integers.iter_mut().zip(values) {
                *integer = rounding.integer(*value) as i16;
            }
            let first = 16 * i * step;
            for (j, integer) in integers[..values.len()].iter().enumerate() {
                out[first + j * step] = *integer;
            }
        }
    }
}

versions! {
    /// `out[i][j] = integers[i][j] * scales[j]` for pages of 8 tokens, the engine's.
    fn unpack_keys(integers: &[i16], scales: &[f32; 8], out: &mut [f32]) {
        for (out, integers) in out.as_chunks_mut::<8>().0.iter_mut().zip(integers.as_chunks::<8>().0) {
            for j in 0..8 {
                out[j] = f32::from(integers[j]) * scales[j];
            }
        }
    }
}

versions! {
    /// The same for pages of any length.
    fn unpack_keys_any(integers: &[i16], scales: &[f32], out: &mut [f32]) {
        let n = scales.len().max(1);
        for (out, integers) in out.chunks_exact_mut(n).zip(integers.chunks_exact(n)) {
            for ((out, integer), scale) in out.iter_mut().zip(integers).zip(scales) {
                *out = f32::from(*integer) * scale;
            }
        }
    }
}

versions! {
    /// `out[token][i] = integers[token][i] * scales[token]`.
    fn unpack_values(integers: &[i16], scales: &[f32], out: &mut [f32]) {
        let d = (integers.len() / scales.len().max(1)).max(1);
        for ((out, integers), scale) in out.chunks_exact_mut(d).zip(integers.chunks_exact(d)).zip(scales) {
            for (out, integer) in out.iter_mut().zip(integers) {
                *out = f32::from(*integer) * scale;
            }
        }
    }
}
