//! Paged keys and values, and attention over them. The kernels are `kernels/cuda/attention_paged.cu`.
//!
//! Invariant: which rows share a block follows from the sequence alone, and so do the parts that a context is read in;
//! neither changes a bit of a row's result.
#![expect(unsafe_code, reason = "launching a kernel")]

#[cfg(test)]
mod tests;

use super::launch::PagedSizes;
use super::{Cuda, CudaAct, CudaF32, CudaIndices, Kernel, attention, check};
use crate::backend::AttentionSpec;
use crate::dims::{HeadDims, SequenceSpan};
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
        let (group, n_tokens_max) = check_step(out, q, cache, sequences, spec)?;
        // a window of all tokens and more is none
        let window = spec.window.filter(|&window| window < n_tokens_max);
        let sizes = PagedSizes {
            scale_log2: spec.scale * std::f32::consts::LOG2_E,
            n_heads: spec.heads.n_heads as i32,
            n_kv_heads: spec.heads.n_kv_heads as i32,
            page_len: check::int(OP, "page", cache.page_len)?,
            window: window.map_or(0, |window| window as i32),
        };
        let partial_len = PRODUCT_ROWS * (spec.heads.head_dim + 2) * spec.heads.n_kv_heads;
        let n_partials_max = PARTIALS_BYTES_MAX / size_of::<f32>() / partial_len.max(1);
        let (turns, pages) = turns(sequences, PRODUCT_ROWS / group, window, n_partials_max);
        let n_partials = turns.iter().map(|turn| turn.n_partials).max().unwrap_or(0);
        let mut partials = self.alloc_f32(check::size(OP, "partials", &[n_partials, partial_len])?)?;
        let pages = self.upload_indices(&pages)?;
        for turn in turns {
            self.attend(
                out,
                &mut partials,
                q,
                cache,
                [&turn.parts, &turn.joins],
                &pages,
                sizes,
            )?;
        }
        Ok(())
    }

    /// The parts of some tiles, and their joining.
    #[expect(clippy::too_many_arguments, reason = "one buffer per tensor of the formula")]
    fn attend(
        &self,
        out: &mut CudaAct,
        partials: &mut CudaF32,
        q: &CudaAct,
        cache: &CudaKvCache,
        [parts, joins]: [&[u32]; 2],
        pages: &CudaIndices,
        sizes: PagedSizes,
    ) -> Result<()> {
        let n_kv_heads = sizes.n_kv_heads as u32;
        let (kernel, join) = kernels(cache.heads.head_dim);
        let grid = (check::blocks(OP, "parts", parts.len() / N_PART)?, n_kv_heads);
        let parts = self.upload_indices(parts)?;
        let launch = self.launch_grid(OP, kernel, grid, 128);
        let launch = launch.with(&mut *out).with(&mut *partials).with(q);
        let launch = launch.with(&cache.keys).with(&cache.values);
        let launch = launch.with(&parts).with(pages).with(&sizes);
        // SAFETY: the parts' rows are in `q` and `out`, their tokens in pages of the cache, their sums in `partials`.
        unsafe { launch.run() }?;
        if joins.is_empty() {
            return Ok(());
        }
        let grid = (check::blocks(OP, "tiles", joins.len() / N_JOIN)?, n_kv_heads);
        let joins = self.upload_indices(joins)?;
        let launch = self.launch_grid(OP, join, grid, 128);
        let launch = launch.with(out).with(&*partials).with(&joins).with(&sizes);
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

/// Query heads for each key head, and the longest context. Fails for a step that the kernels do not take.
fn check_step(
    out: &CudaAct,
    q: &CudaAct,
    cache: &CudaKvCache,
    sequences: &[SequenceSpan],
    spec: AttentionSpec,
) -> Result<(usize, usize)> {
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
    let mut n_tokens_max = 0;
    for sequence in sequences {
        let m = cache.check(OP, sequence)?;
        check::holds(OP, "out", out, &[m, n_heads, head_dim])?;
        check::holds(OP, "q", q, &[m, n_heads, head_dim])?;
        check::int(OP, "rows", m)?;
        n_tokens_max = n_tokens_max.max(check::int(OP, "context", sequence.n_context)? as usize);
    }
    check_apart(sequences)?;
    Ok((group, n_tokens_max))
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
    check::setting(OP, "sequences", "of rows that do not overlap", apart)
}

/// Numbers of a part, and of a tile whose parts are joined.
pub(super) const N_PART: usize = 6;
pub(super) const N_JOIN: usize = 4;

/// Tiles whose parts' sums are held at once.
#[derive(Debug, Default)]
struct Turn {
    /// Of each part the tile's first row, its number of rows, tokens that the first row sees and first page, the part's
    /// first token, and 0 or 1 and its place among the sums.
    parts: Vec<u32>,
    /// Of each tile of several parts its first row, its number of rows, the place of its first part, their number.
    joins: Vec<u32>,
    n_partials: usize,
}

impl Turn {
    /// `first` are a tile's first row, number of rows, tokens that its first row sees, and first page.
    fn add(&mut self, first: [usize; 4], parts: std::ops::Range<usize>) {
        let several = parts.len() > 1;
        for (index, part) in parts.clone().enumerate() {
            let place = if several { self.n_partials + index + 1 } else { 0 };
            let part = first.into_iter().chain([part * PART_LEN, place]);
            self.parts.extend(part.map(|number| number as u32));
        }
        if several {
            let join = [first[0], first[1], self.n_partials, parts.len()];
            self.joins.extend(join.map(|number| number as u32));
            self.n_partials += parts.len();
        }
    }
}

/// The tiles of all sequences, of at most `rows_max` rows, in turns; and all pages. A turn has one tile at least.
fn turns(
    sequences: &[SequenceSpan],
    rows_max: usize,
    window: Option<usize>,
    n_partials_max: usize,
) -> (Vec<Turn>, Vec<u32>) {
    let (mut turns, mut turn, mut pages) = (Vec::new(), Turn::default(), Vec::new());
    for sequence in sequences {
        let first_page = pages.len();
        pages.extend_from_slice(&sequence.pages);
        for begin in (0..sequence.n_rows).step_by(rows_max) {
            let n_rows = rows_max.min(sequence.n_rows - begin);
            let n_seen = sequence.n_context - sequence.n_rows + begin + 1;
            let first_token = window.map_or(0, |window| n_seen.saturating_sub(window));
            let parts = first_token / PART_LEN..(n_seen + n_rows - 1).div_ceil(PART_LEN);
            if turn.n_partials > 0 && turn.n_partials + parts.len() > n_partials_max {
                turns.push(std::mem::take(&mut turn));
            }
            turn.add([sequence.first_row + begin, n_rows, n_seen, first_page], parts);
        }
    }
    turns.push(turn);
    (turns, pages)
}
