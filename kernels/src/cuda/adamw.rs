//! AdamW and the sum of squares. The kernels are `kernels/cuda/adamw.cu`.
//!
//! Invariant: a step gives the bits of the CPU's.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::{AdamwFactors, covering};
use super::{Cuda, CudaF32, Kernel, check};
use crate::backend::AdamwSpec;
use crate::error::Result;

/// Elements whose squares one block adds: fixed, so that the sum does not depend on the card.
pub(super) const SUM_LEN: usize = 1 << 14;

impl Cuda {
    /// See [`Backend::adamw`](crate::Backend::adamw).
    pub fn adamw(
        &self,
        params: &mut CudaF32,
        grads: &CudaF32,
        first_moment: &mut CudaF32,
        second_moment: &mut CudaF32,
        spec: AdamwSpec,
        len: usize,
    ) -> Result<()> {
        const OP: &str = "adamw";
        check::holds(OP, "params", params, &[len])?;
        check::holds(OP, "grads", grads, &[len])?;
        check::holds(OP, "first_moment", first_moment, &[len])?;
        check::holds(OP, "second_moment", second_moment, &[len])?;
        check::setting(OP, "step", "at least 1", spec.step > 0)?;
        let factors = factors(spec);
        let len_int = len as u64;
        let launch = self.launch(OP, Kernel::Adamw, covering(OP, len, 1)?);
        let launch = launch
            .with(params)
            .with(grads)
            .with(first_moment)
            .with(second_moment);
        let launch = launch.with(&factors).with(&len_int);
        // SAFETY: each buffer holds `len` elements.
        unsafe { launch.run() }
    }

    /// See [`Backend::sum_squares`](crate::Backend::sum_squares).
    pub fn sum_squares(&self, values: &CudaF32, len: usize) -> Result<f64> {
        const OP: &str = "sum_squares";
        check::holds(OP, "values", values, &[len])?;
        let n_blocks = len.div_ceil(SUM_LEN);
        let mut sums = self.scratch::<f64>(n_blocks)?;
        let [len_int, chunk] = [len as u64, SUM_LEN as u64];
        let shape = (check::blocks(OP, "blocks", n_blocks)?, 256);
        let launch = self.launch(OP, Kernel::SumSquares, shape);
        let launch = launch.with(&mut *sums).with(values).with(&len_int).with(&chunk);
        // SAFETY: a sum for each block, and no block reads past `len`.
        unsafe { launch.run() }?;
        let mut out = vec![0.0; n_blocks];
        self.read(OP, &sums, 0..n_blocks, &mut out)?;
        Ok(out.iter().sum())
    }
}

/// As the CPU makes them: in double precision, rounded once.
fn factors(spec: AdamwSpec) -> AdamwFactors {
    let bias = |beta: f64| 1.0 - beta.powf(f64::from(spec.step));
    AdamwFactors {
        gradient_scale: spec.gradient_scale,
        decay: (1.0 - spec.learning_rate * spec.weight_decay) as f32,
        first_rest: (1.0 - spec.beta1) as f32,
        second_decay: spec.beta2 as f32,
        second_rest: (1.0 - spec.beta2) as f32,
        step_size: (spec.learning_rate / bias(spec.beta1)) as f32,
        second_root: bias(spec.beta2).sqrt() as f32,
        epsilon: spec.epsilon as f32,
    }
}
