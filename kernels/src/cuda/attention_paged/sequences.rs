//! A step's sequences on the device: where its rows go in the caches, and in which parts its contexts are read.
//!
//! Invariant: lists of as many entries lie at the same places from step to step, and a list is filled up to one of few
//! lengths with entries of no rows: so steps of a generation that differ in their contexts alone launch the same.

use std::ops::Range;

use cudarc::driver::CudaView;

use super::{CudaKvCache, OP, PART_LEN, PARTIALS_BYTES_MAX, PRODUCT_ROWS};
use crate::backend::AttentionSpec;
use crate::cuda::{Cuda, CudaF32, CudaIndices, attention, check};
use crate::dims::{HeadDims, SequenceSpan};
use crate::error::{Error, Result};

/// Numbers of a part, and of a tile whose parts are joined.
pub(in crate::cuda) const N_PART: usize = 6;
pub(in crate::cuda) const N_JOIN: usize = 4;

/// Floats of the sums of a part.
pub(in crate::cuda) fn partial_len(heads: HeadDims) -> usize {
    (PRODUCT_ROWS * heads.n_kv_heads).saturating_mul(heads.head_dim.saturating_add(2))
}

/// Parts whose sums are held at once, unless a single tile has more.
pub(in crate::cuda) fn n_partials_max(heads: HeadDims) -> usize {
    PARTIALS_BYTES_MAX / size_of::<f32>() / partial_len(heads).max(1)
}

/// Parts that there is room for where `n_partials` are held: more, since contexts grow.
pub(in crate::cuda) fn partials_room(n_partials: usize, heads: HeadDims) -> usize {
    let room = n_partials.next_power_of_two();
    room.min(n_partials_max(heads)).max(n_partials)
}

/// Rows of the step that share a tile: as many as have their query heads in a product.
pub(in crate::cuda) fn rows_of_tile(heads: HeadDims) -> usize {
    (PRODUCT_ROWS / (heads.n_heads / heads.n_kv_heads.max(1)).max(1)).max(1)
}

/// A step's sequences, for all layers whose caches are alike.
#[derive(Debug)]
pub struct CudaSequences {
    heads: HeadDims,
    n_pages: usize,
    page_len: usize,
    /// One past the last row.
    m: usize,
    /// Rows and their places in the cache.
    moves: Range<usize>,
    /// How contexts are read through each window.
    plans: Vec<Plan>,
    pages: Range<usize>,
    /// All the lists.
    numbers: CudaIndices,
    /// The sums of one turn's parts.
    pub(super) partials: CudaF32,
}

#[derive(Debug)]
struct Plan {
    window: Option<usize>,
    turns: Vec<Places>,
}

/// Where a turn's lists are.
#[derive(Debug)]
struct Places {
    parts: Range<usize>,
    joins: Range<usize>,
}

impl CudaSequences {
    /// Fails unless `cache` is like the one that the lists are for.
    pub(super) fn check_cache(&self, op: &'static str, cache: &CudaKvCache) -> Result<()> {
        check::same(op, "n_kv_heads", cache.heads.n_kv_heads, self.heads.n_kv_heads)?;
        check::same(op, "head_dim", cache.heads.head_dim, self.heads.head_dim)?;
        check::same(op, "page_len", cache.page_len, self.page_len)?;
        check::same(op, "n_pages", cache.n_pages, self.n_pages)
    }

    pub(super) fn heads(&self) -> HeadDims {
        self.heads
    }

    /// Rows that the step's buffers hold at least.
    pub(super) fn m(&self) -> usize {
        self.m
    }

    pub(super) fn moves(&self) -> (usize, CudaView<'_, u32>) {
        (self.moves.len() / 2, self.numbers.slice(self.moves.clone()))
    }

    /// Parts, joins and pages of each turn through a window.
    pub(super) fn turns(
        &self,
        window: Option<usize>,
    ) -> Result<impl Iterator<Item = [CudaView<'_, u32>; 3]>> {
        let plan = self.plans.iter().find(|plan| plan.window == window);
        let plan = plan.ok_or(Error::Setting {
            op: OP,
            what: "window",
            expected: "one that the sequences were allocated for",
        })?;
        let list = |range: &Range<usize>| self.numbers.slice(range.clone());
        let turns = plan.turns.iter();
        Ok(turns.map(move |places| [list(&places.parts), list(&places.joins), list(&self.pages)]))
    }
}

impl Cuda {
    /// See [`Backend::alloc_sequences`](crate::Backend::alloc_sequences). Head dimensions 64, 96, 128 and 256, at most 16
    /// query heads for each key head.
    pub fn alloc_sequences(
        &self,
        n_pages: usize,
        page_len: usize,
        specs: &[AttentionSpec],
    ) -> Result<CudaSequences> {
        let heads = specs.first().map(|spec| spec.heads).ok_or(Error::Setting {
            op: OP,
            what: "specs",
            expected: "at least one",
        })?;
        let group = attention::check_heads(OP, heads)?;
        let fits = "at most 16 times n_kv_heads on CUDA; run this model on the CPU";
        check::setting(OP, "n_heads", fits, group <= PRODUCT_ROWS)?;
        check::setting(OP, "page_len", "at least 1", page_len > 0)?;
        check::int(OP, "places", check::size(OP, "places", &[n_pages, page_len])?)?;
        let mut plans: Vec<Plan> = Vec::new();
        for spec in specs {
            check::same(OP, "n_heads", spec.heads.n_heads, heads.n_heads)?;
            check::same(OP, "n_kv_heads", spec.heads.n_kv_heads, heads.n_kv_heads)?;
            check::same(OP, "head_dim", spec.heads.head_dim, heads.head_dim)?;
            check::setting(OP, "window", "at least 1", spec.window != Some(0))?;
            if plans.iter().all(|plan| plan.window != spec.window) {
                plans.push(Plan {
                    window: spec.window,
                    turns: Vec::new(),
                });
            }
        }
        Ok(CudaSequences {
            heads,
            n_pages,
            page_len,
            m: 0,
            moves: 0..0,
            plans,
            pages: 0..0,
            numbers: self.zeros(0)?,
            partials: self.zeros(0)?,
        })
    }

    /// See [`Backend::write_sequences`](crate::Backend::write_sequences).
    pub fn write_sequences(&self, target: &mut CudaSequences, sequences: &[SequenceSpan]) -> Result<()> {
        let m = target.check_step(sequences)?;
        let heads = target.heads;
        let partial_len = partial_len(heads);
        let mut numbers = moves(sequences, target.page_len);
        let moves = 0..numbers.len();
        let (mut plans, mut n_partials) = (Vec::with_capacity(target.plans.len()), 0);
        for Plan { window, .. } in &target.plans {
            let turns = turns(sequences, rows_of_tile(heads), *window, n_partials_max(heads));
            n_partials = turns
                .iter()
                .map(|turn| turn.n_partials)
                .fold(n_partials, usize::max);
            plans.push(Plan {
                window: *window,
                turns: turns.iter().map(|turn| turn.place(&mut numbers)).collect(),
            });
        }
        let first_page = numbers.len();
        numbers.extend(sequences.iter().flat_map(|sequence| &sequence.pages));

        target.clear();
        if n_partials * partial_len > target.partials.len() {
            let room = partials_room(n_partials, heads);
            let room = check::size(OP, "partials", &[room, partial_len])?;
            self.renew(&mut target.partials, room)?;
        }
        if numbers.len() > target.numbers.len() {
            self.renew(&mut target.numbers, numbers.len().next_power_of_two())?;
        }
        self.write(OP, &mut target.numbers, &numbers)?;
        target.pages = first_page..numbers.len();
        (target.m, target.moves, target.plans) = (m, moves, plans);
        Ok(())
    }
}

impl CudaSequences {
    /// No sequences: what is left if writing others fails.
    fn clear(&mut self) {
        (self.m, self.moves, self.pages) = (0, 0..0, 0..0);
        for plan in &mut self.plans {
            plan.turns.clear();
        }
    }

    /// One past the last row. Fails for a step that the kernels do not take.
    fn check_step(&self, sequences: &[SequenceSpan]) -> Result<usize> {
        let mut m = 0;
        for sequence in sequences {
            m = m.max(self.check_sequence(sequence)?);
            check::int(OP, "rows", m)?;
            check::int(OP, "context", sequence.n_context)?;
        }
        check_apart(sequences)?;
        Ok(m)
    }

    /// Checks that a sequence's rows and pages exist; returns one past its last row.
    fn check_sequence(&self, sequence: &SequenceSpan) -> Result<usize> {
        let SequenceSpan {
            first_row,
            n_rows,
            n_context,
            pages,
        } = sequence;
        check::setting(OP, "n_rows", "at most n_context", n_rows <= n_context)?;
        let expected = n_context.div_ceil(self.page_len);
        if pages.len() < expected {
            return Err(Error::TooShort {
                op: OP,
                what: "pages",
                expected,
                got: pages.len(),
            });
        }
        match pages.iter().position(|&page| page as usize >= self.n_pages) {
            None => Ok(first_row.saturating_add(*n_rows)),
            Some(index) => Err(Error::OutOfRange {
                op: OP,
                what: "page",
                index,
                value: pages[index] as usize,
                limit: self.n_pages,
            }),
        }
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
    check::setting(OP, "sequences", "of rows that do not overlap", apart)
}

/// Of each row its number and its place in the cache.
fn moves(sequences: &[SequenceSpan], page_len: usize) -> Vec<u32> {
    let rows = sequences.iter().flat_map(|sequence| {
        (0..sequence.n_rows).flat_map(move |j| {
            let token = sequence.n_context - sequence.n_rows + j;
            let page = sequence.pages[token / page_len] as usize;
            let place = page * page_len + token % page_len;
            [sequence.first_row + j, place].map(|number| number as u32)
        })
    });
    rows.collect()
}

/// `n` rounded up to one of few numbers: at most an eighth more.
pub(super) fn capacity(n: usize) -> usize {
    let step = (n.next_power_of_two() / 16).max(1);
    n.next_multiple_of(step)
}

/// Tiles whose parts' sums are held at once.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Of each part the tile's first row, its number of rows, tokens that the first row sees and first page, the part's
    /// first token, and 0 or 1 and its place among the sums.
    pub(super) parts: Vec<u32>,
    /// Of each tile of several parts its first row, its number of rows, the place of its first part, their number.
    pub(super) joins: Vec<u32>,
    pub(super) n_partials: usize,
}

impl Turn {
    /// `first` are a tile's first row, number of rows, tokens that its first row sees, and first page.
    fn add(&mut self, first: [usize; 4], parts: Range<usize>) {
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

    /// Appends the lists to `numbers`, each filled up to its capacity.
    fn place(&self, numbers: &mut Vec<u32>) -> Places {
        let mut append = |list: &[u32], width: usize| {
            let first = numbers.len();
            numbers.extend_from_slice(list);
            numbers.resize(first + capacity(list.len() / width) * width, 0);
            first..numbers.len()
        };
        Places {
            parts: append(&self.parts, N_PART),
            joins: append(&self.joins, N_JOIN),
        }
    }
}

/// The tiles of all sequences, of at most `rows_max` rows, in turns of one tile at least.
pub(super) fn turns(
    sequences: &[SequenceSpan],
    rows_max: usize,
    window: Option<usize>,
    n_partials_max: usize,
) -> Vec<Turn> {
    let (mut turns, mut turn, mut first_page) = (Vec::new(), Turn::default(), 0);
    for sequence in sequences {
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
        first_page += sequence.pages.len();
    }
    turns.push(turn);
    turns
}
