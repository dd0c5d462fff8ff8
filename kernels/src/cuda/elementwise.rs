//! The residual stream, and biases. The kernels are `kernels/cuda/elementwise.cu`.
//!
//! Invariant: a sum is taken in f32 and rounded once.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::{VECTOR, covering};
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::error::Result;

impl Cuda {
    /// See [`Backend::add`](crate::Backend::add).
    pub fn add(&self, y: &mut CudaAct, x: &CudaAct, len: usize) -> Result<()> {
        const OP: &str = "add";
        check::holds(OP, "y", y, &[len])?;
        check::holds(OP, "x", x, &[len])?;
        let len_int = len as u64;
        let launch = self.launch(OP, Kernel::Add, covering(OP, len, VECTOR)?);
        let launch = launch.with(y).with(x).with(&len_int);
        // SAFETY: both hold `len` elements.
        unsafe { launch.run() }
    }

    /// See [`Backend::add_bias`](crate::Backend::add_bias).
    pub fn add_bias(&self, y: &mut CudaAct, bias: &CudaF32, n: usize, m: usize) -> Result<()> {
        const OP: &str = "add_bias";
        check::holds(OP, "y", y, &[m, n])?;
        check::holds(OP, "bias", bias, &[n])?;
        let n_int = check::int(OP, "n", n)?;
        let n_threads = n.next_multiple_of(32).clamp(32, 256) as u32;
        let shape = (check::blocks(OP, "rows", m)?, n_threads);
        let launch = self
            .launch(OP, Kernel::AddBias, shape)
            .with(y)
            .with(bias)
            .with(&n_int);
        // SAFETY: m rows of n in `y`, n in `bias`.
        unsafe { launch.run() }
    }
}
