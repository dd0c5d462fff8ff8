//! Weights in bf16 on the device, and their products. The kernels are `kernels/cuda/matmul_bf16.cu` and
//! `matmul_bf16_tiles.cu`.
//!
//! Invariant: any shape is taken; where a width is no multiple of 8 elements are read singly.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::linear::PairEnd;
use super::product::{BACKWARD_TILE, FORWARD_TILE, dims};
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::error::Result;
use crate::weight::BlockMatrix;

/// Columns of a block of the kernels for few rows.
const BLOCK_COLUMNS: usize = 32;

/// Elements that are converted at once while loading.
const LOADED_AT_ONCE: usize = 1 << 22;

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

    pub(super) fn values(&self) -> &CudaAct {
        &self.values
    }
}

impl Cuda {
    /// A copy of a matrix, each value rounded to the nearest bf16. Some rows at a time, so that the values of a large
    /// matrix are never all on the host.
    pub(super) fn load_bf16(&self, matrix: &BlockMatrix) -> Result<CudaBf16> {
        let (n, k) = matrix.shape();
        let mut values = self.alloc_act(check::size("load_weight", "weight", &[n, k])?)?;
        let n_rows = (LOADED_AT_ONCE / k.max(1)).max(1);
        for first in (0..n).step_by(n_rows) {
            let rows = matrix.rows_to_f32(first..first + n_rows);
            self.write_act(&mut values, first * k, &rows)?;
        }
        Ok(CudaBf16 { n, k, values })
    }

    /// `y [M, N] = x [M, K] · Wᵀ`, and what a pair adds.
    pub(super) fn forward_bf16(
        &self,
        y: &mut CudaAct,
        x: &CudaAct,
        weight: &CudaBf16,
        pair: Option<&PairEnd<'_>>,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "matmul_bf16";
        let (n, k) = weight.shape();
        check::holds(OP, "y", y, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let kernels = [Kernel::MatmulBf16Rows16, Kernel::MatmulBf16Rows32];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product(OP, kernels, m, n.div_ceil(BLOCK_COLUMNS))?;
        let launch = launch.with(y).with(x).with(&weight.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int).with_pair(pair);
        // SAFETY: `y` holds m rows of n, `x` m rows of k, the weight n rows of k; the pair was checked.
        unsafe { launch.run() }
    }

    /// `logits [M, N] = x [M, K] · Wᵀ` in f32.
    pub(super) fn logits_bf16(
        &self,
        logits: &mut CudaF32,
        x: &CudaAct,
        head: &CudaBf16,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "logits";
        let (n, k) = head.shape();
        check::holds(OP, "logits", logits, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let kernels = [Kernel::LogitsRows16, Kernel::LogitsRows32];
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.product(OP, kernels, m, n.div_ceil(BLOCK_COLUMNS))?;
        let launch = launch.with(logits).with(x).with(&head.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `logits` holds m rows of n, `x` m rows of k, the head n rows of k.
        unsafe { launch.run() }
    }

    /// The same by tiles, whatever `m` is, with another order of additions.
    pub(super) fn loss_logits_bf16(
        &self,
        logits: &mut CudaF32,
        x: &CudaAct,
        head: &CudaBf16,
        m: usize,
    ) -> Result<()> {
        const OP: &str = "logits";
        let (n, k) = head.shape();
        check::holds(OP, "logits", logits, &[m, n])?;
        check::holds(OP, "x", x, &[m, k])?;
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.tiles(OP, Kernel::LogitsRows128, [m, n], FORWARD_TILE)?;
        let launch = launch.with(logits).with(x).with(&head.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `logits` holds m rows of n, `x` m rows of k, the head n rows of k.
        unsafe { launch.run() }
    }

    /// `dx [M, K] += dy [M, N] · W`.
    pub(super) fn matmul_bf16_backward(
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
        let [m_int, n_int, k_int] = dims(OP, [m, n, k])?;
        let launch = self.tiles(OP, Kernel::MatmulBf16Backward, [m, k], BACKWARD_TILE)?;
        let launch = launch.with(dx).with(dy).with(&weight.values);
        let launch = launch.with(&m_int).with(&n_int).with(&k_int);
        // SAFETY: `dx` holds m rows of k, `dy` m rows of n, the weight n rows of k.
        unsafe { launch.run() }
    }
}
