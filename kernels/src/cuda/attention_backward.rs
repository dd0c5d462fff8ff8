//! The gradients of attention. The kernels are `kernels/cuda/attention_backward.cu`.
//!
//! Invariant: each sum is made by one block in a fixed order, and tiles begin at the documents' beginnings: a document's
//! gradients are the same on every run, whatever else the step holds.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::attention::{TILE_LEN, TILE_ROWS, check_heads, sizes, tiles};
use super::scratch::Scratch;
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::backend::AttentionSpec;
use crate::dims::{Documents, HeadDims};
use crate::error::Result;

const OP: &str = "attention_backward";

/// Threads of a block of [`Kernel::AttentionDelta`]; a warp takes a row.
const DELTA_THREADS: u32 = 256;

impl Cuda {
    /// See [`Backend::attention_backward`](crate::Backend::attention_backward). Head dimensions 64, 96, 128 and 256.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    pub fn attention_backward(
        &self,
        dq: &mut CudaAct,
        dk: &mut CudaAct,
        dv: &mut CudaAct,
        dout: &CudaAct,
        out: &CudaAct,
        lse: &CudaF32,
        q: &CudaAct,
        k: &CudaAct,
        v: &CudaAct,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        let HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        } = spec.heads;
        let m = documents.n_tokens();
        check_heads(OP, spec.heads)?;
        check::setting(OP, "window", "at least 1", spec.window != Some(0))?;
        let (of_queries, of_keys) = ([m, n_heads, head_dim], [m, n_kv_heads, head_dim]);
        check::holds(OP, "dq", dq, &of_queries)?;
        check::holds(OP, "dk", dk, &of_keys)?;
        check::holds(OP, "dv", dv, &of_keys)?;
        check::holds(OP, "dout", dout, &of_queries)?;
        check::holds(OP, "out", out, &of_queries)?;
        check::holds(OP, "lse", lse, &[m, n_heads])?;
        check::holds(OP, "q", q, &of_queries)?;
        check::holds(OP, "k", k, &of_keys)?;
        check::holds(OP, "v", v, &of_keys)?;
        check::int(OP, "rows", m)?;
        let delta = self.delta(dout, out, m * n_heads, head_dim)?;
        let (for_keys, for_queries, n_rows) = kernels(head_dim);
        let sizes = sizes(spec, m);
        let tiles = tiles(documents, n_rows);
        let n_tiles = check::blocks(OP, "tiles", tiles.len() / TILE_LEN)?;
        let tiles = self.scratch_of(OP, &tiles)?;

        let launch = self.launch_grid(OP, for_keys, (n_tiles, n_kv_heads as u32), 128);
        let launch = launch.with(dk).with(dv).with(dout).with(lse).with(&*delta);
        let launch = launch.with(q).with(k).with(v).with(&*tiles).with(&sizes);
        // SAFETY: the tiles' rows are below m, of which each tensor holds as many.
        unsafe { launch.run() }?;
        let launch = self.launch_grid(OP, for_queries, (n_tiles, n_heads as u32), 128);
        let launch = launch.with(dq).with(dout).with(lse).with(&*delta);
        let launch = launch.with(q).with(k).with(v).with(&*tiles).with(&sizes);
        // SAFETY: the same.
        unsafe { launch.run() }
    }

    /// `[n_rows] = rowsum(dout * out)` of rows of one head each.
    fn delta(&self, dout: &CudaAct, out: &CudaAct, n_rows: usize, head_dim: usize) -> Result<Scratch<f32>> {
        let mut delta = self.scratch::<f32>(n_rows)?;
        let rows_int = check::int(OP, "rows and heads", n_rows)?;
        let dim_int = check::int(OP, "head_dim", head_dim)?;
        let n_blocks = rows_int.unsigned_abs().div_ceil(DELTA_THREADS / 32);
        let launch = self.launch(OP, Kernel::AttentionDelta, (n_blocks, DELTA_THREADS));
        let launch = launch.with(&mut *delta).with(dout).with(out);
        let launch = launch.with(&rows_int).with(&dim_int);
        // SAFETY: both hold n_rows rows of head_dim, which is at most 256 and a multiple of 32.
        unsafe { launch.run() }?;
        Ok(delta)
    }
}

/// The kernels of a head dimension, and the rows of their tiles.
fn kernels(head_dim: usize) -> (Kernel, Kernel, usize) {
    match head_dim {
        64 => (
            Kernel::BackwardKeysHead64,
            Kernel::BackwardQueriesHead64,
            TILE_ROWS,
        ),
        96 => (
            Kernel::BackwardKeysHead96,
            Kernel::BackwardQueriesHead96,
            TILE_ROWS,
        ),
        128 => (
            Kernel::BackwardKeysHead128,
            Kernel::BackwardQueriesHead128,
            TILE_ROWS,
        ),
        // two warps share 16 rows
        _ => (
            Kernel::BackwardKeysHead256,
            Kernel::BackwardQueriesHead256,
            TILE_ROWS / 2,
        ),
    }
}
