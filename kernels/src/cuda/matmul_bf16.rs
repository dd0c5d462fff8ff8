//! Weights in bf16 on the device, and their products. The kernels are `kernels/cuda/matmul_bf16.cu`.
//!
//! Invariant: any shape is taken; where a width is no multiple of 8 elements are read singly.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::matmul_nf4::{PRODUCT_THREADS, dims, rows};
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::error::Result;
use crate::weight::HostWeight;

/// Columns of a forward block.
const FORWARD_COLUMNS: usize = 32;
/// Columns of a backward block.
const BACKWARD_COLUMNS: usize = 64;

/// A weight `[N, K]` in bf16 on the device.
#[derive(Debug)]
pub struct CudaBf16 {
    n: usize,
    k: usize,
    values: CudaAct,
}

impl CudaBf16 {
    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }
}

impl Cuda {
    /// A copy of a matrix, each value rounded to the nearest bf16.
    pub fn load_bf16(&self, weight: &HostWeight) -> Result<CudaBf16> {
        let (n, k) = weight.shape();
        let values = self.upload_act(&weight.to_f32())?;
        Ok(CudaBf16 { n, k, values })
    }

    /// `y [M, N] = x [M, K] · Wᵀ`.
    pub fn matmul_bf16(&self, y: &mut CudaAct, x: &CudaAct, weight: &CudaBf16, m: usize) -> Result<()> {
        const OP: &str = "matmul_bf16";
        let (n, k) = weight.shape();
        check::holds(OP, "y", y, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let (kernel, blocks_y) = rows(OP, [Kernel::MatmulBf16Rows16, Kernel::MatmulBf16Rows32], m)?;
        let blocks_x = check::blocks(OP, "columns", n.div_ceil(FORWARD_COLUMNS))?;
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.launch_grid(OP, kernel, (blocks_x, blocks_y), PRODUCT_THREADS);
        let launch = launch.with(y).with(x).with(&weight.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `y` holds m rows of n, `x` m rows of k, the weight n rows of k.
        unsafe { launch.run() }
    }

    /// See [`Backend::logits`](crate::Backend::logits).
    pub fn logits(&self, logits: &mut CudaF32, x: &CudaAct, head: &CudaBf16, m: usize) -> Result<()> {
        const OP: &str = "logits";
        let (n, k) = head.shape();
        check::holds(OP, "logits", logits, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let (kernel, blocks_y) = rows(OP, [Kernel::LogitsRows16, Kernel::LogitsRows32], m)?;
        let blocks_x = check::blocks(OP, "columns", n.div_ceil(FORWARD_COLUMNS))?;
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.launch_grid(OP, kernel, (blocks_x, blocks_y), PRODUCT_THREADS);
        let launch = launch.with(logits).with(x).with(&head.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `logits` holds m rows of n, `x` m rows of k, the head n rows of k.
        unsafe { launch.run() }
    }

    /// `dx [M, K] += dy [M, N] · W`.
    pub fn matmul_bf16_backward(
        &self,
        dx: &mut CudaAct,
        dy: &CudaAct,
        weight: &CudaBf16,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "matmul_bf16_backward";
        let (n, k) = weight.shape();
        check::holds(OP, "dx", dx, &[m, k])?;
        check::holds(OP, "dy", dy, &[m, n])?;
        let kernels = [Kernel::MatmulBf16BackwardRows16, Kernel::MatmulBf16BackwardRows32];
        let (kernel, blocks_y) = rows(OP, kernels, m)?;
        let blocks_x = check::blocks(OP, "columns", k.div_ceil(BACKWARD_COLUMNS))?;
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.launch_grid(OP, kernel, (blocks_x, blocks_y), PRODUCT_THREADS);
        let launch = launch.with(dx).with(dy).with(&weight.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `dx` holds m rows of k, `dy` m rows of n, the weight n rows of k.
        unsafe { launch.run() }
    }
}
