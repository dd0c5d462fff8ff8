//! Attention within documents. The kernels are `kernels/cuda/attention.cu`.
//!
//! Invariant: tiles of rows begin at the documents' beginnings, so a document's result does not depend on what else the
//! step holds.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::AttentionSizes;
use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::backend::AttentionSpec;
use crate::dims::{Documents, HeadDims};
use crate::error::Result;

/// Rows of a tile: 16 for each warp.
pub(super) const TILE_ROWS: usize = 64;

impl Cuda {
    /// See [`Backend::attention`](crate::Backend::attention). Head dimensions 64, 96, 128 and 256.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    pub fn attention(
        &self,
        out: &mut CudaAct,
        lse: &mut CudaF32,
        q: &CudaAct,
        k: &CudaAct,
        v: &CudaAct,
        documents: &Documents,
        spec: AttentionSpec,
    ) -> Result<()> {
        const OP: &str = "attention";
        let HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        } = spec.heads;
        let m = documents.n_tokens();
        check_heads(OP, spec.heads)?;
        check::setting(OP, "window", "at least 1", spec.window != Some(0))?;
        check::holds(OP, "out", out, &[m, n_heads, head_dim])?;
        check::holds(OP, "lse", lse, &[m, n_heads])?;
        check::holds(OP, "q", q, &[m, n_heads, head_dim])?;
        check::holds(OP, "k", k, &[m, n_kv_heads, head_dim])?;
        check::holds(OP, "v", v, &[m, n_kv_heads, head_dim])?;
        let kernel = match head_dim {
            64 => Kernel::AttentionHead64,
            96 => Kernel::AttentionHead96,
            128 => Kernel::AttentionHead128,
            _ => Kernel::AttentionHead256,
        };
        check::int(OP, "rows", m)?;
        let sizes = sizes(spec, m);
        let tiles = tiles(documents, TILE_ROWS);
        let grid = (
            check::blocks(OP, "tiles", tiles.len() / TILE_LEN)?,
            n_heads as u32,
        );
        let tiles = self.scratch_of(OP, &tiles)?;
        let launch = self.launch_grid(OP, kernel, grid, 128);
        let launch = launch.with(out).with(lse).with(q).with(k).with(v);
        let launch = launch.with(&*tiles).with(&sizes);
        // SAFETY: the tiles' rows are below m, of which each tensor holds as many.
        unsafe { launch.run() }
    }
}

/// Query heads for each key head. Fails for heads that the kernels do not have.
pub(super) fn check_heads(op: &'static str, heads: HeadDims) -> Result<usize> {
    let HeadDims {
        n_heads,
        n_kv_heads,
        head_dim,
    } = heads;
    let divides = n_heads > 0 && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    check::setting(op, "n_heads", "a multiple of n_kv_heads and at least 1", divides)?;
    check::setting(op, "n_heads", "at most 65,535", n_heads <= 0xffff)?;
    let known = [64, 96, 128, 256].contains(&head_dim);
    let expected = "64, 96, 128 or 256 on CUDA; run this model on the CPU";
    check::setting(op, "head_dim", expected, known)?;
    Ok(n_heads / n_kv_heads)
}

/// What the kernels need beside their tensors, for a step of `m` rows.
pub(super) fn sizes(spec: AttentionSpec, m: usize) -> AttentionSizes {
    AttentionSizes {
        scale: spec.scale,
        scale_log2: spec.scale * std::f32::consts::LOG2_E,
        n_heads: spec.heads.n_heads as i32,
        n_kv_heads: spec.heads.n_kv_heads as i32,
        // a window of all rows and more is none
        window: spec
            .window
            .filter(|&window| window < m)
            .map_or(0, |window| window as i32),
    }
}

/// Numbers of a tile.
pub(super) const TILE_LEN: usize = 4;

/// First row, one past the last row, and the same of the document, of each tile of at most `n_rows` rows.
pub(super) fn tiles(documents: &Documents, n_rows: usize) -> Vec<u32> {
    documents
        .ranges()
        .flat_map(|rows| {
            rows.clone().step_by(n_rows).flat_map(move |begin| {
                let end = rows.end.min(begin + n_rows);
                [begin, end, rows.start, rows.end].map(|row| row as u32)
            })
        })
        .collect()
}
