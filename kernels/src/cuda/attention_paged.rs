//! Paged keys and values, and attention over them. The kernels are `kernels/cuda/attention_paged.cu`.
//!
//! Invariant: which rows share a block follows from the sequence alone, and so do the parts that a context is read in;
//! neither changes a bit of a row's result.
#![expect(unsafe_code, reason = "launching a kernel")]

mod sequences;
#[cfg(test)]
mod tests;

use cudarc::driver::CudaView;

pub use sequences::CudaSequences;
pub(super) use sequences::{N_JOIN, N_PART, n_partials_max, partial_len, partials_room, rows_of_tile};

use super::launch::PagedSizes;
use super::{Cuda, CudaAct, Kernel, attention, check};
use crate::backend::AttentionSpec;
use crate::dims::HeadDims;
use crate::error::{Error, Result};

const OP: &str = "attention_paged";

/// Rows of a product: query heads of a key head, for as many rows of the step as fit.
pub(super) const PRODUCT_ROWS: usize = 16;

/// Tokens of a part of a context; as in the kernels' source.
pub(super) const PART_LEN: usize = 256;

/// What the parts' sums may take at once: thousands of blocks' worth.
pub(super) const PARTIALS_BYTES_MAX: usize = 64 << 20;

/// One layer's paged keys and values, `[n_pages * page_len, KV, D]` each.
#[derive(Debug)]
pub struct CudaKvCache {
    heads: HeadDims,
    n_pages: usize,
    page_len: usize,
    keys: CudaAct,
    values: CudaAct,
}

impl CudaKvCache {
    fn width(&self) -> usize {
        self.heads.n_kv_heads * self.heads.head_dim
    }
}

impl Cuda {
    /// See [`Backend::alloc_kv_cache`](crate::Backend::alloc_kv_cache).
    pub fn alloc_kv_cache(&self, heads: HeadDims, n_pages: usize, page_len: usize) -> Result<CudaKvCache> {
        const OP: &str = "alloc_kv_cache";
        attention::check_heads(OP, heads)?;
        check::setting(OP, "page_len", "at least 1", page_len > 0)?;
        let len = check::size(
            OP,
            "cache",
            &[n_pages, page_len, heads.n_kv_heads, heads.head_dim],
        )?;
        check::int(OP, "places", check::size(OP, "places", &[n_pages, page_len])?)?;
        Ok(CudaKvCache {
            heads,
            n_pages,
            page_len,
            keys: self.alloc_act(len)?,
            values: self.alloc_act(len)?,
        })
    }

    /// See [`Backend::write_kv`](crate::Backend::write_kv).
    pub fn write_kv(
        &self,
        cache: &mut CudaKvCache,
        k: &CudaAct,
        v: &CudaAct,
        sequences: &CudaSequences,
    ) -> Result<()> {
        const OP: &str = "write_kv";
        sequences.check_cache(OP, cache)?;
        let width = cache.width();
        let width_int = check::int(OP, "row", width)?;
        check::holds(OP, "k", k, &[sequences.m(), width])?;
        check::holds(OP, "v", v, &[sequences.m(), width])?;
        let (n_moves, moves) = sequences.moves();
        let launch = self.launch(OP, Kernel::WriteKv, (check::blocks(OP, "rows", n_moves)?, 256));
        let launch = launch.with(&mut cache.keys).with(&mut cache.values);
        let launch = launch.with(k).with(v).with(&moves).with(&width_int);
        // SAFETY: every row is in `k` and `v`, every place in the cache.
        unsafe { launch.run() }
    }

    /// See [`Backend::attention_paged`](crate::Backend::attention_paged).
    pub fn attention_paged(
        &self,
        out: &mut CudaAct,
        q: &CudaAct,
        cache: &CudaKvCache,
        sequences: &CudaSequences,
        spec: AttentionSpec,
    ) -> Result<()> {
        sequences.check_cache(OP, cache)?;
        check::same(OP, "n_heads", spec.heads.n_heads, sequences.heads().n_heads)?;
        let HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        } = sequences.heads();
        for (what, buffer) in [("out", &*out), ("q", q)] {
            check::holds(OP, what, buffer, &[sequences.m(), n_heads, head_dim])?;
        }
        // no context is so long that a window of more would hide a token of it
        let window = spec.window.and_then(|window| i32::try_from(window).ok());
        let sizes = PagedSizes {
            scale_log2: spec.scale * std::f32::consts::LOG2_E,
            n_heads: n_heads as i32,
            n_kv_heads: n_kv_heads as i32,
            page_len: check::int(OP, "page", cache.page_len)?,
            window: window.unwrap_or(0),
        };
        for lists in sequences.turns(spec.window)? {
            self.attend(out, q, cache, sequences, &lists, sizes)?;
        }
        Ok(())
    }

    /// The parts of some tiles, and their joining.
    fn attend(
        &self,
        out: &mut CudaAct,
        q: &CudaAct,
        cache: &CudaKvCache,
        sequences: &CudaSequences,
        [parts, joins, pages]: &[CudaView<'_, u32>; 3],
        sizes: PagedSizes,
    ) -> Result<()> {
        let (kernel, join) = kernels(cache.heads.head_dim);
        let grid = |what, n| Ok::<_, Error>((check::blocks(OP, what, n)?, sizes.n_kv_heads as u32));
        let launch = self.launch_grid(OP, kernel, grid("parts", parts.len() / N_PART)?, 128);
        let launch = launch.with(&mut *out).with(&sequences.partials).with(q);
        let launch = launch.with(&cache.keys).with(&cache.values);
        let launch = launch.with(parts).with(pages).with(&sizes);
        // SAFETY: the parts' rows are in `q` and `out`, their tokens in pages of the cache, their sums in `partials`, which
        // this stream alone uses.
        unsafe { launch.run() }?;
        let launch = self.launch_grid(OP, join, grid("tiles", joins.len() / N_JOIN)?, 128);
        let launch = launch
            .with(out)
            .with(&sequences.partials)
            .with(joins)
            .with(&sizes);
        // SAFETY: the same, of the tiles that have more than one part.
        unsafe { launch.run() }
    }
}

/// The kernel of a head dimension, and the one that joins its parts.
fn kernels(head_dim: usize) -> (Kernel, Kernel) {
    match head_dim {
        64 => (Kernel::PagedHead64, Kernel::PagedJoinHead64),
        96 => (Kernel::PagedHead96, Kernel::PagedJoinHead96),
        128 => (Kernel::PagedHead128, Kernel::PagedJoinHead128),
        _ => (Kernel::PagedHead256, Kernel::PagedJoinHead256),
    }
}
