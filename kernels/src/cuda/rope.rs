//! Rotary position embedding. The kernel is `kernels/cuda/rope.cu`.
//!
//! Invariant: turning back is the same kernel with the sine's sign changed.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::product::GRID_Y_MAX;
use super::{Cuda, CudaAct, CudaF32, CudaU32, Kernel, check};
use crate::dims::HeadDims;
use crate::error::Result;

/// Heads of one block.
const HEADS_OF_BLOCK: usize = 4;

/// Angles of each row, and which way to turn.
#[derive(Clone, Copy, Debug)]
struct Turn<'a> {
    op: &'static str,
    positions: &'a CudaU32,
    frequencies: &'a CudaF32,
    head_dim: usize,
    m: usize,
    /// 1, or -1 for back.
    direction: f32,
}

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
        let turn = Turn {
            op: "rope",
            positions,
            frequencies,
            head_dim,
            m,
            direction: 1.0,
        };
        self.rotate(turn, x, n_heads, None)
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
        let turn = Turn {
            op: "rope_backward",
            positions,
            frequencies,
            head_dim,
            m,
            direction: -1.0,
        };
        self.rotate(turn, dx, n_heads, None)
    }

    /// See [`Backend::rope_both`](crate::Backend::rope_both): one launch.
    pub fn rope_both(
        &self,
        q: &mut CudaAct,
        k: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        let turn = Turn {
            op: "rope_both",
            positions,
            frequencies,
            head_dim: heads.head_dim,
            m,
            direction: 1.0,
        };
        self.rotate(turn, q, heads.n_heads, Some((k, heads.n_kv_heads)))
    }

    /// See [`Backend::rope_both_backward`](crate::Backend::rope_both_backward): one launch.
    pub fn rope_both_backward(
        &self,
        dq: &mut CudaAct,
        dk: &mut CudaAct,
        positions: &CudaU32,
        frequencies: &CudaF32,
        heads: HeadDims,
        m: usize,
    ) -> Result<()> {
        let turn = Turn {
            op: "rope_both_backward",
            positions,
            frequencies,
            head_dim: heads.head_dim,
            m,
            direction: -1.0,
        };
        self.rotate(turn, dq, heads.n_heads, Some((dk, heads.n_kv_heads)))
    }

    fn rotate(
        &self,
        turn: Turn<'_>,
        q: &mut CudaAct,
        n_q: usize,
        k: Option<(&mut CudaAct, usize)>,
    ) -> Result<()> {
        let Turn {
            op,
            positions,
            frequencies,
            head_dim,
            m,
            direction,
        } = turn;
        check::setting(op, "head_dim", "even", head_dim.is_multiple_of(2))?;
        let half = head_dim / 2;
        check::holds(op, "x", q, &[m, n_q, head_dim])?;
        let n_k = match &k {
            Some((k, n_k)) => {
                check::holds(op, "k", k, &[m, *n_k, head_dim])?;
                *n_k
            }
            None => 0,
        };
        positions.first(op, "positions", m)?;
        check::holds(op, "frequencies", frequencies, &[half])?;
        let n_blocks = n_q.saturating_add(n_k).div_ceil(HEADS_OF_BLOCK);
        let expected = "no more than CUDA's grids hold; run this model on the CPU";
        check::setting(op, "the number of heads", expected, n_blocks <= GRID_Y_MAX)?;
        let grid = (check::blocks(op, "rows", m)?, n_blocks as u32);
        let n_threads = half.next_multiple_of(32).clamp(32, 256) as u32;
        let [q_int, k_int] = [check::int(op, "n_heads", n_q)?, check::int(op, "n_heads", n_k)?];
        let half_int = check::int(op, "head_dim", half)?;
        let launch = self.launch_grid(op, Kernel::Rope, grid, n_threads).with(q);
        // nothing is read at the address of no heads
        let launch = match k {
            Some((k, _)) => launch.with(k),
            None => launch.with(&0u64),
        };
        let launch = launch.with(positions.on_device()).with(frequencies);
        let launch = launch.with(&direction).with(&q_int).with(&k_int).with(&half_int);
        // SAFETY: m rows of n_q heads in `q` and of n_k in `k`, m positions, head_dim / 2 frequencies.
        unsafe { launch.run() }
    }
}
