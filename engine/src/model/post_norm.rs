//! The norm over what a block adds to the residual stream, which some families have.
//!
//! Invariant: what went into the norm is kept with its row statistics, so `backward` computes nothing of the forward again.

use llamaduo_kernels::Backend;

use super::Pass;
use super::activations::UnnormedOut;
use super::feed_forward::norm_spec;
use crate::error::Result;

/// The norm of one block.
#[derive(Debug)]
pub(crate) struct PostNorm<B: Backend> {
    /// `[C]`.
    pub(crate) weight: B::F32,
}

impl<B: Backend> PostNorm<B> {
    /// `out [M, C] =` the norm of `unnormed.x`.
    pub(crate) fn forward(
        &self,
        pass: &Pass<'_, B>,
        out: &mut B::Act,
        unnormed: &mut UnnormedOut<B>,
    ) -> Result<()> {
        let UnnormedOut { x, rstd } = unnormed;
        pass.backend
            .rms_norm(out, rstd, x, &self.weight, norm_spec(pass), pass.m)?;
        Ok(())
    }

    /// `dx [M, C] =` the gradient of what went in, from that of what came out; gives it back to read.
    pub(crate) fn backward<'a>(
        &self,
        pass: &Pass<'_, B>,
        dx: &'a mut B::Act,
        dy: &B::Act,
        unnormed: &UnnormedOut<B>,
    ) -> Result<&'a B::Act> {
        let UnnormedOut { x, rstd } = unnormed;
        pass.backend.zero_act(dx, pass.m * pass.config.hidden)?;
        pass.backend
            .rms_norm_backward(dx, dy, x, rstd, &self.weight, norm_spec(pass), pass.m)?;
        Ok(dx)
    }
}
