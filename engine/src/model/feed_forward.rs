//! The feed-forward block: `down(activation(gate(n)) * up(n))` with `n = norm(x)` is added to the stream `x`; some families
//! norm what is added once more.
//!
//! The sum and the norm that follows it are one operation of the caller's, so `forward` begins with `n` and ends with
//! what is to be added.
//!
//! Invariant: `backward` makes the norm and the gated product again, so only `gate` and `up` are kept; it leaves their
//! gradients in their place.

use llamaduo_kernels::{Backend, RmsNormSpec};

use super::Pass;
use super::activations::{FeedForwardActivations, Gradients, Scratch};
use super::linear::{self, Linear};
use super::post_norm::PostNorm;
use crate::error::Result;

/// One layer's feed-forward block.
#[derive(Debug)]
pub(crate) struct FeedForwardBlock<B: Backend> {
    pub(crate) norm: B::F32,
    /// Over what is added to the stream; only some families.
    pub(crate) post_norm: Option<PostNorm<B>>,
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
    pub(crate) down: Linear<B>,
}

impl<B: Backend> FeedForwardBlock<B> {
    /// `out [M, C] =` what is added to the stream whose norm is in `scratch.normed`.
    pub(crate) fn forward(
        &self,
        pass: &Pass<'_, B>,
        kept: &mut FeedForwardActivations<B>,
        scratch: &mut Scratch<B>,
        out: &mut B::Act,
    ) -> Result<()> {
        let [h_gate, h_up, h_down] = &mut kept.h;
        let both = [
            (&self.gate, &mut kept.gate, h_gate),
            (&self.up, &mut kept.up, h_up),
        ];
        linear::forward(pass, &scratch.normed, both)?;
        let (activation, len) = (pass.config.activation, pass.m * pass.config.ffn);
        pass.backend
            .gated(&mut scratch.gated, &kept.gate, &kept.up, activation, len)?;
        let added = match &mut kept.unnormed_out {
            Some(unnormed) => &mut unnormed.x,
            None => &mut *out,
        };
        linear::forward(pass, &scratch.gated, [(&self.down, added, h_down)])?;
        if let (Some(norm), Some(unnormed)) = (&self.post_norm, &mut kept.unnormed_out) {
            norm.forward(pass, out, unnormed)?;
        }
        Ok(())
    }

    /// `gradients.stream`: from the gradient of the stream after the block to that of the one before, `x`, in place.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_, B>,
        kept: &mut FeedForwardActivations<B>,
        scratch: &mut Scratch<B>,
        gradients: &mut Gradients<B>,
        grads: &mut B::F32,
        x: &B::Act,
    ) -> Result<()> {
        let Gradients {
            stream,
            normed,
            gated,
            ..
        } = gradients;
        let FeedForwardActivations {
            gate,
            up,
            h: [h_gate, h_up, h_down],
            unnormed_out,
        } = kept;
        let (activation, len) = (pass.config.activation, pass.m * pass.config.ffn);
        pass.backend
            .gated(&mut scratch.gated, gate, up, activation, len)?;
        pass.backend.zero_act(gated, len)?;
        let dy = match (&self.post_norm, unnormed_out) {
            (Some(norm), Some(unnormed)) => norm.backward(pass, normed, stream, unnormed)?,
            _ => &*stream,
        };
        self.down
            .backward(pass, Some(gated), grads, dy, &scratch.gated, h_down)?;
        pass.backend.gated_backward(gate, up, gated, activation, len)?;

        norm_stream(pass, scratch, x, &self.norm)?;
        pass.backend.zero_act(normed, pass.m * pass.config.hidden)?;
        self.gate
            .backward(pass, Some(normed), grads, gate, &scratch.normed, h_gate)?;
        self.up
            .backward(pass, Some(normed), grads, up, &scratch.normed, h_up)?;
        pass.backend.rms_norm_backward(
            stream,
            normed,
            x,
            &scratch.rstd,
            &self.norm,
            norm_spec(pass),
            pass.m,
        )?;
        Ok(())
    }
}

/// `scratch.normed [M, C]`: the stream `x [M, C]` normed.
pub(crate) fn norm_stream<B: Backend>(
    pass: &Pass<'_, B>,
    scratch: &mut Scratch<B>,
    x: &B::Act,
    weight: &B::F32,
) -> Result<()> {
    let Scratch { normed, rstd, .. } = scratch;
    pass.backend
        .rms_norm(normed, rstd, x, weight, norm_spec(pass), pass.m)?;
    Ok(())
}

/// `y [M, C] += x`, and `scratch.normed [M, C]`: the sum normed.
pub(crate) fn add_norm_stream<B: Backend>(
    pass: &Pass<'_, B>,
    scratch: &mut Scratch<B>,
    y: &mut B::Act,
    x: &B::Act,
    weight: &B::F32,
) -> Result<()> {
    let Scratch { normed, rstd, .. } = scratch;
    pass.backend
        .add_rms_norm(y, normed, rstd, x, weight, norm_spec(pass), pass.m)?;
    Ok(())
}

/// The norm over a row of the residual stream.
pub(crate) fn norm_spec<B: Backend>(pass: &Pass<'_, B>) -> RmsNormSpec {
    RmsNormSpec {
        width: pass.config.hidden,
        epsilon: pass.config.rms_norm_epsilon,
        weight_offset: pass.config.norm_weight_offset,
    }
}
