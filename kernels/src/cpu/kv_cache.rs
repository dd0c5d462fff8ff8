//! One layer's keys and values in pages, as generation grows them.
//!
//! Invariant: within a page keys lie transposed, `[KV][D][page_len]`, and values straight, `[KV][page_len][D]`: both
//! are then copied in runs when a panel is packed.

use super::check;
use crate::dims::{HeadDims, SequenceSpan};
use crate::error::Result;

/// One layer's paged keys and values.
#[derive(Debug)]
pub struct CpuKvCache {
    heads: HeadDims,
    n_pages: usize,
    page_len: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl CpuKvCache {
    pub(super) fn new(heads: HeadDims, n_pages: usize, page_len: usize) -> Result<Self> {
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
            keys: vec![0.0; len],
            values: vec![0.0; len],
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
    pub(super) fn write(&mut self, k: &[f32], v: &[f32], sequences: &[SequenceSpan]) -> Result<()> {
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
                self.write_row(sequence, position, &k[row..row + width], &v[row..row + width]);
            }
        }
        Ok(())
    }

    fn write_row(&mut self, sequence: &SequenceSpan, position: usize, k: &[f32], v: &[f32]) {
        let d = self.heads.head_dim;
        let page = sequence.pages[position / self.page_len] as usize;
        let slot = position % self.page_len;
        for (kv_head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let at = self.start(page, kv_head);
            for (i, value) in k.iter().enumerate() {
                self.keys[at + i * self.page_len + slot] = *value;
            }
            self.values[at + slot * d..][..d].copy_from_slice(v);
        }
    }

    /// The pages that hold the first `n_keys` tokens, in order.
    pub(super) fn runs<'a>(
        &'a self,
        sequence: &'a SequenceSpan,
        kv_head: usize,
        n_keys: usize,
    ) -> impl Iterator<Item = Run<'a>> {
        let d = self.heads.head_dim;
        let starts = (0..n_keys).step_by(self.page_len);
        sequence.pages.iter().zip(starts).map(move |(page, start)| {
            let at = self.start(*page as usize, kv_head);
            let block = at..at + d * self.page_len;
            Run {
                start,
                len: self.page_len.min(n_keys - start),
                page_len: self.page_len,
                keys: &self.keys[block.clone()],
                values: &self.values[block],
            }
        })
    }

    fn start(&self, page: usize, kv_head: usize) -> usize {
        (page * self.heads.n_kv_heads + kv_head) * self.page_len * self.heads.head_dim
    }
}

/// One head's part of a page.
pub(super) struct Run<'a> {
    /// First token.
    pub start: usize,
    /// Tokens in use.
    pub len: usize,
    pub page_len: usize,
    /// `[D][page_len]`.
    pub keys: &'a [f32],
    /// `[page_len][D]`.
    pub values: &'a [f32],
}
