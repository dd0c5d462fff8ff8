//! Gated feed-forward. The kernels are `kernels/cuda/gated.cu`.
//!
//! Invariant: the activation chooses the kernel; nothing is decided for each element.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::{VECTOR, covering};
use super::{Cuda, CudaAct, Kernel, check};
use crate::backend::GateActivation;
use crate::error::Result;

const OP: &str = "gated";
const OP_BACKWARD: &str = "gated_backward";

impl Cuda {
    /// See [`Backend::gated`](crate::Backend::gated).
    pub fn gated(
        &self,
        out: &mut CudaAct,
        gate: &CudaAct,
        up: &CudaAct,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        check::holds(OP, "out", out, &[len])?;
        check::holds(OP, "gate", gate, &[len])?;
        check::holds(OP, "up", up, &[len])?;
        let kernel = match activation {
            GateActivation::Silu => Kernel::GatedSilu,
            GateActivation::GeluTanh => Kernel::GatedGeluTanh,
        };
        let len_int = len as u64;
        let launch = self.launch(OP, kernel, covering(OP, len, VECTOR)?);
        let launch = launch.with(out).with(gate).with(up).with(&len_int);
        // SAFETY: each buffer holds `len` elements.
        unsafe { launch.run() }
    }

    /// See [`Backend::gated_backward`](crate::Backend::gated_backward).
    pub fn gated_backward(
        &self,
        gate: &mut CudaAct,
        up: &mut CudaAct,
        dout: &CudaAct,
        activation: GateActivation,
        len: usize,
    ) -> Result<()> {
        check::holds(OP_BACKWARD, "gate", gate, &[len])?;
        check::holds(OP_BACKWARD, "up", up, &[len])?;
        check::holds(OP_BACKWARD, "dout", dout, &[len])?;
        let kernel = match activation {
            GateActivation::Silu => Kernel::GatedSiluBackward,
            GateActivation::GeluTanh => Kernel::GatedGeluTanhBackward,
        };
        let len_int = len as u64;
        let launch = self.launch(OP_BACKWARD, kernel, covering(OP_BACKWARD, len, VECTOR)?);
        let launch = launch.with(gate).with(up).with(dout).with(&len_int);
        // SAFETY: each buffer holds `len` elements.
        unsafe { launch.run() }
    }
}
