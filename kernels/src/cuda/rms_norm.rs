//! RMSNorm. The kernels are `kernels/cuda/rms_norm.cu`.
//!
//! Invariant: rows whose width is no multiple of 8 take the kernel that reads singly: a vector must be aligned.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::{VECTOR, row_threads};
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::backend::RmsNormSpec;
use crate::error::Result;

const OP: &str = "rms_norm";
const OP_ADD: &str = "add_rms_norm";
const OP_BACKWARD: &str = "rms_norm_backward";

impl Cuda {
    /// See [`Backend::rms_norm`](crate::Backend::rms_norm).
    pub fn rms_norm(
        &self,
        out: &mut CudaAct,
        rstd: &mut CudaF32,
        x: &CudaAct,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        let width = spec.width;
        check::setting(OP, "width", "at least 1", width > 0)?;
        check::holds(OP, "out", out, &[m, width])?;
        check::holds(OP, "rstd", rstd, &[m])?;
        check::holds(OP, "x", x, &[m, width])?;
        check::holds(OP, "weight", weight, &[width])?;
        let shape = (check::blocks(OP, "rows", m)?, row_threads(width, 256));
        let width_int = check::int(OP, "width", width)?;
        let kernel = match width.is_multiple_of(VECTOR) {
            true => Kernel::RmsNorm,
            false => Kernel::RmsNormNarrow,
        };
        let launch = self
            .launch(OP, kernel, shape)
            .with(out)
            .with(rstd)
            .with(x)
            .with(weight);
        let launch = launch
            .with(&spec.epsilon)
            .with(&spec.weight_offset)
            .with(&width_int);
        // SAFETY: m rows of `width` in `out` and `x`, m values in `rstd`, `width` in `weight`.
        unsafe { launch.run() }
    }

    /// See [`Backend::add_rms_norm`](crate::Backend::add_rms_norm): the bits of the two operations one after the other.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    pub fn add_rms_norm(
        &self,
        y: &mut CudaAct,
        out: &mut CudaAct,
        rstd: &mut CudaF32,
        x: &CudaAct,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        let width = spec.width;
        check::setting(OP_ADD, "width", "at least 1", width > 0)?;
        check::holds(OP_ADD, "y", y, &[m, width])?;
        check::holds(OP_ADD, "out", out, &[m, width])?;
        check::holds(OP_ADD, "rstd", rstd, &[m])?;
        check::holds(OP_ADD, "x", x, &[m, width])?;
        check::holds(OP_ADD, "weight", weight, &[width])?;
        let shape = (check::blocks(OP_ADD, "rows", m)?, row_threads(width, 256));
        let width_int = check::int(OP_ADD, "width", width)?;
        let kernel = match width.is_multiple_of(VECTOR) {
            true => Kernel::AddRmsNorm,
            false => Kernel::AddRmsNormNarrow,
        };
        let launch = self.launch(OP_ADD, kernel, shape);
        let launch = launch.with(y).with(out).with(rstd).with(x).with(weight);
        let launch = launch
            .with(&spec.epsilon)
            .with(&spec.weight_offset)
            .with(&width_int);
        // SAFETY: m rows of `width` in `y`, `out` and `x`, m values in `rstd`, `width` in `weight`.
        unsafe { launch.run() }
    }

    /// See [`Backend::rms_norm_backward`](crate::Backend::rms_norm_backward).
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    pub fn rms_norm_backward(
        &self,
        dx: &mut CudaAct,
        dy: &CudaAct,
        x: &CudaAct,
        rstd: &CudaF32,
        weight: &CudaF32,
        spec: RmsNormSpec,
        m: usize,
    ) -> Result<()> {
        let width = spec.width;
        check::setting(OP_BACKWARD, "width", "at least 1", width > 0)?;
        check::holds(OP_BACKWARD, "dx", dx, &[m, width])?;
        check::holds(OP_BACKWARD, "dy", dy, &[m, width])?;
        check::holds(OP_BACKWARD, "x", x, &[m, width])?;
        check::holds(OP_BACKWARD, "rstd", rstd, &[m])?;
        check::holds(OP_BACKWARD, "weight", weight, &[width])?;
        let shape = (check::blocks(OP_BACKWARD, "rows", m)?, row_threads(width, 256));
        let width_int = check::int(OP_BACKWARD, "width", width)?;
        let kernel = match width.is_multiple_of(VECTOR) {
            true => Kernel::RmsNormBackward,
            false => Kernel::RmsNormBackwardNarrow,
        };
        let launch = self.launch(OP_BACKWARD, kernel, shape);
        let launch = launch.with(dx).with(dy).with(x).with(rstd).with(weight);
        let launch = launch.with(&spec.weight_offset).with(&width_int);
        // SAFETY: m rows of `width` in `dx`, `dy` and `x`, m values in `rstd`, `width` in `weight`.
        unsafe { launch.run() }
    }
}
