//! Paged keys and values, and attention over them. The kernels are `kernels/cuda/attention_paged.cu`.
//!
//! Invariant: which rows share a block follows from the sequence alone, and changes no bit of a row's result.
#![expect(unsafe_code, reason = "launching a kernel")]

use super::launch::PagedSizes;
use super::{Cuda, CudaAct, Kernel, attention, check};
use crate::backend::AttentionSpec;
use crate::dims::{HeadDims, SequenceSpan};
use crate::error::{Error, Result};

/// Rows of a product: query heads of a key head, for as many rows of the step as fit.
const PRODUCT_ROWS: usize = 16;

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

    /// Checks that a sequence's rows and pages exist; returns one past its last row.
    fn check(&self, op: &'static str, sequence: &SequenceSpan) -> Result<usize> {
        let SequenceSpan {
            first_row,
            n_rows,
            n_context,
            pages,
        } = sequence;
        check::setting(op, "n_rows", "at most n_context", n_rows <= n_context)?;
        let expected = n_context.div_ceil(self.page_len);
        if pages.len() < expected {
            return Err(Error::TooShort {
                op,
                what: "pages",
                expected,
                got: pages.len(),
            });
        }
        match pages.iter().position(|&page| page as usize >= self.n_pages) {
            None => Ok(first_row.saturating_add(*n_rows)),
            Some(index) => Err(Error::OutOfRange {
                op,
                what: "page",
                index,
                value: pages[index] as usize,
                limit: self.n_pages,
            }),
        }
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
        sequences: &[SequenceSpan],
    ) -> Result<()> {
        const OP: &str = "write_kv";
        let width = cache.width();
        let width_int = check::int(OP, "row", width)?;
        for sequence in sequences {
            let m = cache.check(OP, sequence)?;
            check::holds(OP, "k", k, &[m, width])?;
            check::holds(OP, "v", v, &[m, width])?;
        }
        let moves: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| {
                (0..sequence.n_rows).flat_map(|j| {
                    let token = sequence.n_context - sequence.n_rows + j;
                    let page = sequence.pages[token / cache.page_len] as usize;
                    let place = page * cache.page_len + token % cache.page_len;
                    [sequence.first_row + j, place].map(|number| number as u32)
                })
            })
            .collect();
        let shape = (check::blocks(OP, "rows", moves.len() / 2)?, 256);
        let moves = self.upload_indices(&moves)?;
        let launch = self.launch(OP, Kernel::WriteKv, shape);
        let launch = launch.with(&mut cache.keys).with(&mut cache.values);
        let launch = launch.with(k).with(v).with(&moves).with(&width_int);
        // SAFETY: every row is in `k` and `v`, every place in the cache.
        unsafe { launch.run() }
    }

    /// See [`Backend::attention_paged`](crate::Backend::attention_paged). Head dimensions 64, 96, 128 and 256, at most
    /// 16 query heads for each key head.
    pub fn attention_paged(
        &self,
        out: &mut CudaAct,
        q: &CudaAct,
        cache: &CudaKvCache,
        sequences: &[SequenceSpan],
        spec: AttentionSpec,
    ) -> Result<()> {
        const OP: &str = "attention_paged";
        let HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        } = spec.heads;
        let group = attention::check_heads(OP, spec.heads)?;
        let fits = "at most 16 times n_kv_heads on CUDA; run this model on the CPU";
        check::setting(OP, "n_heads", fits, group <= PRODUCT_ROWS)?;
        check::setting(OP, "window", "at least 1", spec.window != Some(0))?;
        for (what, expected, got) in [
            ("n_kv_heads", cache.heads.n_kv_heads, n_kv_heads),
            ("head_dim", cache.heads.head_dim, head_dim),
        ] {
            if expected != got {
                return Err(Error::Mismatch {
                    op: OP,
                    what,
                    expected,
                    got,
                });
            }
        }
        let kernel = match head_dim {
            64 => Kernel::PagedHead64,
            96 => Kernel::PagedHead96,
            128 => Kernel::PagedHead128,
            _ => Kernel::PagedHead256,
        };
        let mut n_tokens_max = 0;
        for sequence in sequences {
            let m = cache.check(OP, sequence)?;
            check::holds(OP, "out", out, &[m, n_heads, head_dim])?;
            check::holds(OP, "q", q, &[m, n_heads, head_dim])?;
            check::int(OP, "rows", m)?;
            n_tokens_max = n_tokens_max.max(check::int(OP, "context", sequence.n_context)? as usize);
        }
        check_apart(sequences)?;
        let (tiles, pages) = tiles(sequences, PRODUCT_ROWS / group);
        let sizes = PagedSizes {
            scale_log2: spec.scale * std::f32::consts::LOG2_E,
            n_heads: n_heads as i32,
            n_kv_heads: n_kv_heads as i32,
            page_len: check::int(OP, "page", cache.page_len)?,
            // a window of all tokens and more is none
            window: spec
                .window
                .filter(|&window| window < n_tokens_max)
                .map_or(0, |window| window as i32),
        };
        let grid = (check::blocks(OP, "tiles", tiles.len() / 4)?, n_kv_heads as u32);
        let (tiles, pages) = (self.upload_indices(&tiles)?, self.upload_indices(&pages)?);
        let launch = self.launch_grid(OP, kernel, grid, 128).with(out).with(q);
        let launch = launch
            .with(&cache.keys)
            .with(&cache.values)
            .with(&tiles)
            .with(&pages);
        let launch = launch.with(&sizes);
        // SAFETY: the tiles' rows are in `q` and `out`, their tokens in pages of the cache.
        unsafe { launch.run() }
    }
}

/// Fails where a row belongs to two sequences.
fn check_apart(sequences: &[SequenceSpan]) -> Result<()> {
    let mut rows: Vec<_> = sequences
        .iter()
        .filter(|sequence| sequence.n_rows > 0)
        .map(|sequence| (sequence.first_row, sequence.first_row + sequence.n_rows))
        .collect();
    rows.sort_unstable();
    let apart = rows.windows(2).all(|pair| pair[0].1 <= pair[1].0);
    check::setting(
        "attention_paged",
        "sequences",
        "of rows that do not overlap",
        apart,
    )
}

/// First row, number of rows, tokens that the first row sees, first of its pages, of each tile; and all pages.
fn tiles(sequences: &[SequenceSpan], rows_max: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut tiles, mut pages) = (Vec::new(), Vec::new());
    for sequence in sequences {
        let first_page = pages.len();
        pages.extend_from_slice(&sequence.pages);
        for begin in (0..sequence.n_rows).step_by(rows_max) {
            let n_rows = rows_max.min(sequence.n_rows - begin);
            let n_seen = sequence.n_context - sequence.n_rows + begin + 1;
            tiles
                .extend([sequence.first_row + begin, n_rows, n_seen, first_page].map(|number| number as u32));
        }
    }
    (tiles, pages)
}
