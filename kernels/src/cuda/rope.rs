//! Rotary position embedding. The kernel is `kernels/cuda/rope.cu`.
//!
//! Invariant: turning back is the same kernel with the sine's sign changed.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::{Cuda, CudaAct, CudaF32, CudaU32, Kernel, check};
use crate::error::Result;

impl Cuda {
    /// See [`Backend::rope`](crate::Backend::rope). Exact to bf16 for angles below 2¹⁷.
    pub fn rope(
        &self,
        x: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        self.rotate("rope", x, positions, frequencies, [n_heads, head_dim, m], 1.0)
    }

    /// See [`Backend::rope_backward`](crate::Backend::rope_backward).
    pub fn rope_backward(
        &self,
        dx: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        n_heads: usize,
        head_dim: usize,
        m: usize,
    ) -> Result<()> {
        self.rotate(
            "rope_backward",
            dx,
            positions,
            frequencies,
            [n_heads, head_dim, m],
            -1.0,
        )
    }

    fn rotate(
        &self,
        op: &'static str,
        x: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        [n_heads, head_dim, m]: [usize; 3],
        direction: f32,
    ) -> Result<()> {
        check::setting(op, "head_dim", "even", head_dim.is_multiple_of(2))?;
        let half = head_dim / 2;
        check::holds(op, "x", x, &[m, n_heads, head_dim])?;
        check::holds(op, "positions", positions.on_device(), &[m])?;
        check::holds(op, "frequencies", frequencies, &[half])?;
        let n_threads = half.next_multiple_of(32).clamp(32, 256) as u32;
        let shape = (check::blocks(op, "rows", m)?, n_threads);
        let [heads_int, half_int] = [
            check::int(op, "n_heads", n_heads)?,
            check::int(op, "head_dim", half)?,
        ];
        check::int(op, "row", check::size(op, "row", &[n_heads, head_dim])?)?;
        let launch = self
            .launch(op, Kernel::Rope, shape)
            .with(x)
            .with(positions.on_device())
            .with(frequencies);
        let launch = launch.with(&direction).with(&heads_int).with(&half_int);
        // SAFETY: m rows of n_heads * head_dim in `x`, m positions, head_dim / 2 frequencies.
        unsafe { launch.run() }
    }
}
