//! Attention over a document, and over the cache.
//!
//! Invariant: a file holds all that its operation read.

use llamaduo_kernels::{AttentionSpec, Documents, SequenceSpan};

use super::Saver;
use crate::error::Result;

/// Tokens of a page of the cache, as generation has it.
const PAGE_LEN: usize = 8;

impl Saver<'_> {
    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.config.heads,
            scale: self.config.attention_scale,
            window: None,
        }
    }

    /// One document, forward and backward.
    pub(super) fn attention(&mut self) -> Result<()> {
        let (heads, spec, t) = (self.config.heads, self.spec(), self.sizes.tokens);
        let (n_heads, kv, d) = (heads.n_heads, heads.n_kv_heads, heads.head_dim);
        let (queries, keys) = (t * n_heads * d, t * kv * d);
        let documents = Documents::of_lengths([t]);
        let (q, q_card) = self.acts(queries)?;
        let (k, k_card) = self.acts(keys)?;
        let (v, v_card) = self.acts(keys)?;
        let (mut out, mut lse) = (self.cuda.alloc_act(queries)?, self.cuda.alloc_f32(t * n_heads)?);
        self.cuda
            .attention(&mut out, &mut lse, &q_card, &k_card, &v_card, &documents, spec)?;
        let out_values = self.read_act(&out, queries)?;
        let settings = [("scale", spec.scale.to_string())];
        let (of_q, of_k) = (vec![t, n_heads, d], vec![t, kv, d]);
        let tensors = [
            ("q", of_q.clone(), &q[..]),
            ("k", of_k.clone(), &k),
            ("v", of_k.clone(), &v),
            ("out.out", of_q.clone(), &out_values),
        ];
        self.save("attention", &settings, &tensors)?;

        let (dout, dout_card) = self.acts(queries)?;
        let mut dq = self.cuda.alloc_act(queries)?;
        let (mut dk, mut dv) = (self.cuda.alloc_act(keys)?, self.cuda.alloc_act(keys)?);
        self.cuda.attention_backward(
            &mut dq, &mut dk, &mut dv, &dout_card, &out, &lse, &q_card, &k_card, &v_card, &documents, spec,
        )?;
        let dq = self.read_act(&dq, queries)?;
        let (dk, dv) = (self.read_act(&dk, keys)?, self.read_act(&dv, keys)?);
        let tensors = [
            ("q", of_q.clone(), &q[..]),
            ("k", of_k.clone(), &k),
            ("v", of_k.clone(), &v),
            ("dout", of_q.clone(), &dout),
            ("out.dq", of_q, &dq),
            ("out.dk", of_k.clone(), &dk),
            ("out.dv", of_k, &dv),
        ];
        self.save("attention_backward", &settings, &tensors)
    }

    /// A decoding step.
    pub(super) fn attention_paged(&mut self) -> Result<()> {
        let (heads, spec) = (self.config.heads, self.spec());
        let (b, t) = (self.sizes.sequences, self.sizes.tokens);
        let (n_heads, kv, d) = (heads.n_heads, heads.n_kv_heads, heads.head_dim);
        let n_pages = t.div_ceil(PAGE_LEN);
        let spans = |n_rows: usize| -> Vec<SequenceSpan> {
            let span = |sequence: usize| SequenceSpan {
                first_row: sequence * n_rows,
                n_rows,
                n_context: t,
                pages: (0..n_pages).map(|page| (page * b + sequence) as u32).collect(),
            };
            (0..b).map(span).collect()
        };
        let (k, k_card) = self.acts(b * t * kv * d)?;
        let (v, v_card) = self.acts(b * t * kv * d)?;
        let (q, q_card) = self.acts(b * n_heads * d)?;
        let mut cache = self.cuda.alloc_kv_cache(heads, b * n_pages, PAGE_LEN)?;
        let mut sequences = self.cuda.alloc_sequences(b * n_pages, PAGE_LEN, &[spec])?;
        self.cuda.write_sequences(&mut sequences, &spans(t))?;
        self.cuda.write_kv(&mut cache, &k_card, &v_card, &sequences)?;
        self.cuda.write_sequences(&mut sequences, &spans(1))?;
        let mut out = self.cuda.alloc_act(q.len())?;
        self.cuda
            .attention_paged(&mut out, &q_card, &cache, &sequences, spec)?;
        let out = self.read_act(&out, q.len())?;
        let of_keys = vec![b, t, kv, d];
        let tensors = [
            ("q", vec![b, n_heads, d], &q[..]),
            ("k", of_keys.clone(), &k),
            ("v", of_keys, &v),
            ("out.out", vec![b, n_heads, d], &out),
        ];
        self.save("attention_paged", &[("scale", spec.scale.to_string())], &tensors)
    }
}
