//! The attention block: `o(attention(rope(q(n)), rope(k(n)), v(n)))` with `n = norm(x)` is added to the stream `x`; some
//! families norm what is added once more.
//!
//! As in the feed-forward block, `forward` begins with `n` and ends with what is to be added.
//!
//! Invariant: the packed and the paged form give a row the same keys in the same order; only where they lie differs.

use llamaduo_kernels::{AttentionSpec, Backend, Documents, RmsNormSpec};

use super::activations::{AttentionActivations, Gradients, Scratch, UnnormedHeads};
use super::feed_forward::{norm_spec, norm_stream};
use super::linear::{self, Linear};
use super::post_norm::PostNorm;
use super::{Context, Pass};
use crate::error::Result;

/// One layer's attention block.
#[derive(Debug)]
pub(crate) struct AttentionBlock<B: Backend> {
    pub(crate) norm: B::F32,
    pub(crate) query: Linear<B>,
    pub(crate) key: Linear<B>,
    pub(crate) value: Linear<B>,
    pub(crate) output: Linear<B>,
    /// Norms over each head of queries and keys; only some families.
    pub(crate) head_norms: Option<HeadNorms<B>>,
    /// Over what is added to the stream; only some families.
    pub(crate) post_norm: Option<PostNorm<B>>,
    /// `[D/2]`.
    pub(crate) rope_frequencies: B::F32,
    pub(crate) spec: AttentionSpec,
}

/// Weights `[D]` of the norms over query heads and key heads.
#[derive(Debug)]
pub(crate) struct HeadNorms<B: Backend> {
    pub(crate) query: B::F32,
    pub(crate) key: B::F32,
}

impl<B: Backend> AttentionBlock<B> {
    /// `out [M, C] =` what is added to the stream whose norm is in `scratch.normed`.
    pub(crate) fn forward(
        &self,
        pass: &Pass<'_, B>,
        context: &mut Context<'_, B>,
        kept: &mut AttentionActivations<B>,
        scratch: &mut Scratch<B>,
        out: &mut B::Act,
    ) -> Result<()> {
        let backend = pass.backend;
        self.project(pass, kept, scratch)?;
        match context {
            Context::Packed(documents) => {
                let (mixed, lse) = (&mut kept.mixed, &mut kept.lse);
                backend.attention(mixed, lse, &kept.q, &kept.k, &kept.v, documents, self.spec)?;
            }
            Context::Paged { cache, sequences } => {
                backend.write_kv(cache, &kept.k, &kept.v, sequences)?;
                backend.attention_paged(&mut kept.mixed, &kept.q, cache, sequences, self.spec)?;
            }
        }
        let added = match &mut kept.unnormed_out {
            Some(unnormed) => &mut unnormed.x,
            None => &mut *out,
        };
        linear::forward(pass, &kept.mixed, [(&self.output, added, &mut kept.h[3])])?;
        if let (Some(norm), Some(unnormed)) = (&self.post_norm, &mut kept.unnormed_out) {
            norm.forward(pass, out, unnormed)?;
        }
        Ok(())
    }

    /// Queries, keys and values of `scratch.normed`, normed per head where the family does so, rotated.
    fn project(
        &self,
        pass: &Pass<'_, B>,
        kept: &mut AttentionActivations<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let heads = self.spec.heads;
        let [h_query, h_key, h_value, _] = &mut kept.h;
        let (q, k) = match &mut kept.unnormed {
            Some(unnormed) => (&mut unnormed.q, &mut unnormed.k),
            None => (&mut kept.q, &mut kept.k),
        };
        let all = [
            (&self.query, q, h_query),
            (&self.key, k, h_key),
            (&self.value, &mut kept.v, h_value),
        ];
        linear::forward(pass, &scratch.normed, all)?;
        if let (Some(norms), Some(unnormed)) = (&self.head_norms, &mut kept.unnormed) {
            let UnnormedHeads { q, k, q_rstd, k_rstd } = unnormed;
            let spec = head_norm_spec(pass);
            let (n_q, n_k) = (pass.m * heads.n_heads, pass.m * heads.n_kv_heads);
            pass.backend
                .rms_norm(&mut kept.q, q_rstd, q, &norms.query, spec, n_q)?;
            pass.backend
                .rms_norm(&mut kept.k, k_rstd, k, &norms.key, spec, n_k)?;
        }
        let (positions, frequencies) = (pass.positions, &self.rope_frequencies);
        pass.backend
            .rope_both(&mut kept.q, &mut kept.k, positions, frequencies, heads, pass.m)?;
        Ok(())
    }

    /// `gradients.stream`: from the gradient of the stream after the block to that of the one before, `x`, in place. In the first layer nobody reads the
    /// gradient of `x`, so it is left as it is.
    #[expect(clippy::too_many_arguments, reason = "one borrow per part of the arena")]
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_, B>,
        documents: &Documents,
        kept: &AttentionActivations<B>,
        scratch: &mut Scratch<B>,
        gradients: &mut Gradients<B>,
        grads: &mut B::F32,
        x: &B::Act,
    ) -> Result<()> {
        let backend = pass.backend;
        let heads = self.spec.heads;
        let Gradients {
            stream,
            normed,
            q,
            k,
            v,
            mixed,
            ..
        } = gradients;
        let [h_query, h_key, h_value, h_output] = &kept.h;
        backend.zero_act(mixed, pass.m * heads.n_heads * heads.head_dim)?;
        let dy = match (&self.post_norm, &kept.unnormed_out) {
            (Some(norm), Some(unnormed)) => norm.backward(pass, normed, stream, unnormed)?,
            _ => &*stream,
        };
        self.output
            .backward(pass, Some(mixed), grads, dy, &kept.mixed, h_output)?;
        backend.attention_backward(
            q,
            k,
            v,
            mixed,
            &kept.mixed,
            &kept.lse,
            &kept.q,
            &kept.k,
            &kept.v,
            documents,
            self.spec,
        )?;
        self.unrotate(pass, kept, (q, k), mixed)?;

        norm_stream(pass, scratch, x, &self.norm)?;
        let is_first = self.query.layer == 0;
        backend.zero_act(normed, pass.m * pass.config.hidden)?;
        let mut dx = |linear: &Linear<B>, dy: &B::Act, h: &B::F32| {
            let target = if is_first { None } else { Some(&mut *normed) };
            linear.backward(pass, target, grads, dy, &scratch.normed, h)
        };
        dx(&self.query, q, h_query)?;
        dx(&self.key, k, h_key)?;
        dx(&self.value, v, h_value)?;
        if !is_first {
            let spec = norm_spec(pass);
            backend.rms_norm_backward(stream, normed, x, &scratch.rstd, &self.norm, spec, pass.m)?;
        }
        Ok(())
    }

    /// Takes the gradients of queries and keys back through the rotation and the norms before it, in place, by way of
    /// `spare [M, H, D]`.
    fn unrotate(
        &self,
        pass: &Pass<'_, B>,
        kept: &AttentionActivations<B>,
        (q, k): (&mut B::Act, &mut B::Act),
        spare: &mut B::Act,
    ) -> Result<()> {
        let (positions, frequencies) = (pass.positions, &self.rope_frequencies);
        pass.backend
            .rope_both_backward(q, k, positions, frequencies, self.spec.heads, pass.m)?;
        if let (Some(norms), Some(unnormed)) = (&self.head_norms, &kept.unnormed) {
            norms.backward(pass, unnormed, (q, k), spare)?;
        }
        Ok(())
    }
}

impl<B: Backend> HeadNorms<B> {
    /// Takes `dq [M, H, D]` and `dk [M, KV, D]` back through the norms, in place, by way of `spare [M, H, D]`.
    fn backward(
        &self,
        pass: &Pass<'_, B>,
        unnormed: &UnnormedHeads<B>,
        (dq, dk): (&mut B::Act, &mut B::Act),
        spare: &mut B::Act,
    ) -> Result<()> {
        let heads = pass.config.heads;
        let UnnormedHeads { q, k, q_rstd, k_rstd } = unnormed;
        let sides = [
            (dq, q, q_rstd, &self.query, pass.m * heads.n_heads),
            (dk, k, k_rstd, &self.key, pass.m * heads.n_kv_heads),
        ];
        for (dy, x, rstd, weight, m) in sides {
            let len = m * heads.head_dim;
            pass.backend.zero_act(spare, len)?;
            pass.backend
                .rms_norm_backward(spare, dy, x, rstd, weight, head_norm_spec(pass), m)?;
            pass.backend.copy_act(dy, spare, len)?;
        }
        Ok(())
    }
}

/// The norm over one head.
fn head_norm_spec<B: Backend>(pass: &Pass<'_, B>) -> RmsNormSpec {
    RmsNormSpec {
        width: pass.config.heads.head_dim,
        epsilon: pass.config.rms_norm_epsilon,
        weight_offset: pass.config.norm_weight_offset,
    }
}
