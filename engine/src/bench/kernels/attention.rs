//! Attention in training and in decoding.
//!
//! Invariant: operations are counted for the half of the scores that causality leaves.

use llamaduo_kernels::{AttentionSpec, Documents, SequenceSpan};

use super::clock::Clock;
use super::{Bench, Work, count, dims};
use crate::error::Result;

/// Tokens of a page of the cache, as generation has it.
const PAGE_LEN: usize = 8;

impl Bench<'_> {
    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.config.heads,
            scale: self.config.attention_scale,
            window: None,
        }
    }

    /// Whole documents, forward and backward.
    pub(super) fn attention(&self, clock: &mut Clock<'_>) -> Result<()> {
        if !clock.wants("attention") && !clock.wants("attention_backward") {
            return Ok(());
        }
        let (heads, spec) = (self.config.heads, self.spec());
        let (n_documents, t) = (self.sizes.documents, self.sizes.tokens);
        let m = self.m();
        let documents = Documents::of_lengths(std::iter::repeat_n(t, n_documents));
        let (queries, keys) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let (q, k, v) = (
            self.acts(2, m * queries)?,
            self.acts(2, m * keys)?,
            self.acts(2, m * keys)?,
        );
        let (mut out, dout) = (self.outs(2, m * queries)?, self.acts(2, m * queries)?);
        let (mut dq, mut dk, mut dv) = (
            self.outs(2, m * queries)?,
            self.outs(2, m * keys)?,
            self.outs(2, m * keys)?,
        );
        let mut lse = self.cuda.alloc_f32(m * heads.n_heads)?;
        let dims = dims([
            ("b", n_documents),
            ("t", t),
            ("h", heads.n_heads),
            ("kv", heads.n_kv_heads),
            ("d", heads.head_dim),
        ]);
        let flops = 2.0 * count([n_documents, t, t, queries]);
        let forward = Work {
            op: "attention",
            dims: dims.clone(),
            flops,
            bytes: 4.0 * count([m, queries + keys]),
        };
        clock.measure(forward, false, 2, &mut |set| {
            let out = &mut out[set];
            self.cuda
                .attention(out, &mut lse, &q[set], &k[set], &v[set], &documents, spec)
        });
        // five products instead of two
        let backward = Work {
            op: "attention_backward",
            dims,
            flops: 2.5 * flops,
            bytes: 8.0 * count([m, queries + keys]),
        };
        clock.measure(backward, false, 2, &mut |set| {
            let (dq, dk, dv) = (&mut dq[set], &mut dk[set], &mut dv[set]);
            let (dout, out, q, k, v) = (&dout[set], &out[set], &q[set], &k[set], &v[set]);
            self.cuda
                .attention_backward(dq, dk, dv, dout, out, &lse, q, k, v, &documents, spec)
        });
        Ok(())
    }

    /// A decoding step of several sequences.
    pub(super) fn attention_paged(&self, clock: &mut Clock<'_>) -> Result<()> {
        if !clock.wants("attention_paged") {
            return Ok(());
        }
        let (heads, spec) = (self.config.heads, self.spec());
        let (b, t) = (self.sizes.sequences, self.sizes.tokens);
        let (queries, keys) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let pages = t.div_ceil(PAGE_LEN);
        let spans = |n_rows: usize| -> Vec<SequenceSpan> {
            (0..b)
                .map(|sequence| SequenceSpan {
                    first_row: sequence * n_rows,
                    n_rows,
                    n_context: t,
                    // spread over the cache, as pages are after a while
                    pages: (0..pages).map(|page| (page * b + sequence) as u32).collect(),
                })
                .collect()
        };
        let bytes = 4.0 * count([b, t, keys]);
        let n_sets = clock.n_sets(bytes as usize);
        let filling = self.acts(1, b * t * keys)?;
        let mut sequences = self.cuda.alloc_sequences(b * pages, PAGE_LEN, &[spec])?;
        self.cuda.write_sequences(&mut sequences, &spans(t))?;
        let mut caches = Vec::new();
        for _ in 0..n_sets {
            let mut cache = self.cuda.alloc_kv_cache(heads, b * pages, PAGE_LEN)?;
            self.cuda
                .write_kv(&mut cache, &filling[0], &filling[0], &sequences)?;
            caches.push(cache);
        }
        let (q, mut out) = (self.acts(1, b * queries)?, self.outs(1, b * queries)?);
        let work = Work {
            op: "attention_paged",
            dims: dims([
                ("b", b),
                ("t", t),
                ("h", heads.n_heads),
                ("kv", heads.n_kv_heads),
                ("d", heads.head_dim),
            ]),
            flops: 4.0 * count([b, t, queries]),
            bytes: bytes + 4.0 * count([b, queries]),
        };
        self.cuda.write_sequences(&mut sequences, &spans(1))?;
        clock.measure(work, false, n_sets, &mut |set| {
            self.cuda
                .attention_paged(&mut out[0], &q[0], &caches[set], &sequences, spec)
        });
        Ok(())
    }
}
