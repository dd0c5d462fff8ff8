//! Matrix products: `C [M, N] (+)= A [M, K] · B [K, N]`, where B may be a packed weight read in either direction.
//!
//! Invariant: `C[i][j]` is the chain `fma(A[i][k], B[k][j], ...)` for k = 0, 1, 2, ... whatever M, the threads and the
//! instruction set are: cutting K into parts goes on with the same chain through C. With operands of bf16 the chain is
//! the same whatever M and the threads are. Integers have chains of blocks, see [`integers`].

mod block;
mod integers;
mod left;
mod panels;

pub(super) use block::Block;
pub(super) use left::Left;
use left::RowGroups;
pub(super) use panels::{Panels, multiply_panels, pack_panels, pack_right};

pub(super) use super::simd::Start;
use super::simd::{
    FewRows, HALF_COLUMNS, HalfRow, PairRow, Panel, PanelMut, Set, TILE_COLUMNS, TILE_ROWS, multiply_tile,
    round_panel,
};
use super::weight::CpuWeight;
use super::{Cpu, Operands};

/// Longest part of K: the longer it is, the less is spent on taking up and putting away the sums of a tile. All parts are
/// multiples of 64, so that they begin at a block of NF4 and Q8_0 and at a run of the other formats.
fn longest_part(set: Set) -> usize {
    match set {
        // a tile of 12 rows reads its panel, 96 KiB, so slowly that the second cache keeps up
        Set::Avx512 => 768,
        // half a panel, 20 KiB, is read for every 6 rows, so it and the rows stay in the first cache, of 32 KiB mostly
        Set::Avx2 | Set::Portable => 320,
    }
}

/// Tasks a thread should find at least, so that the threads end together.
const TASKS_PER_THREAD: usize = 4;

/// Elements of A that the caches hold while tile after tile passes by, 4 MiB: the third cache is shared by all cores.
const CACHED_LEN: usize = 1 << 20;

/// Most tiles of a task where A is larger: a third of the reading, and the ends of tasks are not far apart.
const TILES_MAX: usize = 3;

/// Tiles for each thread that are the last to be taken: they are cut into parts of their rows, so that the threads end
/// together.
const LATE_PER_THREAD: usize = 1;

/// Parts that such a tile is cut into at most.
const LATE_PARTS_MAX: usize = 3;

/// Row groups of such a part at least: its panels are unpacked for it alone.
const LATE_GROUPS_MIN: usize = 4;

/// Multiply-adds that take as long as touching one element elsewhere, roughly: 16 a cycle and port.
const WORK_PER_ELEMENT: usize = 16;

/// A matrix of floats in memory: element `(row, column)` is at `row * row_step + column * column_step`, and one of the
/// steps is 1.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub values: &'a [f32],
    pub row_step: usize,
    pub column_step: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix with rows of `n_columns`.
    pub(super) fn rows(values: &'a [f32], n_columns: usize) -> Self {
        Self {
            values,
            row_step: n_columns,
            column_step: 1,
        }
    }

    /// The transpose.
    pub(super) fn transposed(self) -> Self {
        Self {
            values: self.values,
            row_step: self.column_step,
            column_step: self.row_step,
        }
    }
}

/// Where the right operand comes from.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// Floats in memory, `[K, N]`.
    Floats(View<'a>),
    /// `Wᵀ`: the forward product with a weight `[N, K]`.
    Transposed(&'a CpuWeight),
    /// `W`: the backward product, where the weight is `[K, N]`.
    Straight(&'a CpuWeight),
}

/// A product's dimensions and operands. `a` is `[M, K]`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: View<'a>,
    pub b: Right<'a>,
}

/// A stretch of the chains of a result: a left operand and as many rows of a right one.
#[derive(Clone, Copy)]
pub(super) struct Link<'a> {
    pub left: &'a Left<'a>,
    pub right: Right<'a>,
}

/// A result `[M, N]`, whose chains go through its links in their order.
pub(super) struct Chains<'a> {
    pub c: Block<'a>,
    pub links: &'a [Link<'a>],
    pub start: Start,
}

/// A piece of a result: some row groups by some tiles of columns.
struct Task<'c> {
    links: &'c [Link<'c>],
    start: Start,
    groups: std::ops::Range<usize>,
    tiles: Vec<Tile<'c>>,
}

/// Up to 32 columns of a task's rows.
struct Tile<'c> {
    column: usize,
    c: Block<'c>,
}

impl Cpu {
    /// Computes `product` into `c [M, N]`.
    pub(super) fn multiply(&self, c: &mut [f32], product: Product<'_>, start: Start) {
        let Product { m, n, k, a, b } = product;
        let left = self.pack(a, m, k);
        let links = &[Link {
            left: &left,
            right: b,
        }];
        let c = Block::dense(c, m, n);
        self.multiply_all(vec![Chains { c, links, start }]);
    }

    /// Computes several results at once, so that the threads part and meet but once.
    pub(super) fn multiply_all(&self, results: Vec<Chains<'_>>) {
        let links = || results.iter().flat_map(|result| result.links);
        let unpacks = links().any(|link| !matches!(link.right, Right::Floats(_)));
        let n_tasks = match self.n_threads() {
            1 => 1,
            // tasks that share a tile unpack it once each
            n if unpacks => 2 * n,
            n => TASKS_PER_THREAD * n,
        };
        let work = results.iter().map(Chains::work).sum::<usize>() / WORK_PER_ELEMENT;
        let n_tiles: usize = results.iter().map(Chains::n_tiles).sum();
        let n_parts = n_tasks.div_ceil(n_tiles.max(1));
        let n_late = match self.n_threads() {
            1 => 0,
            n => LATE_PER_THREAD * n,
        };
        let mut n_before_late = n_tiles.saturating_sub(n_late);
        let mut tasks = Vec::with_capacity(n_tiles * n_parts);
        for result in results {
            let per_task = result.tiles_per_task(n_tasks);
            let n_bulk = n_before_late.min(result.n_tiles());
            n_before_late -= n_bulk;
            let [bulk, late] = result.at_tile(n_bulk);
            bulk.cut(n_parts, per_task, &mut tasks);
            let n_late_parts = RowGroups::of(late.chains.c.n_rows()).len / LATE_GROUPS_MIN;
            late.cut(n_parts.max(n_late_parts.min(LATE_PARTS_MAX)), 1, &mut tasks);
        }
        self.each(tasks, work, |task| self.run(task));
    }

    fn run(&self, mut task: Task<'_>) {
        let mut room = None;
        for link in task.links {
            if self.multiply_integers(&mut task, link) || self.multiply_few(&mut task, link) {
                task.start = Start::Current;
                continue;
            }
            let longest = task.links.iter().map(|link| self.part_len(link.left.k)).max();
            let room = room.get_or_insert_with(|| self.scratch(3 * longest.unwrap_or(0) * TILE_COLUMNS));
            self.multiply_link(&mut task, link, room);
        }
        if task.start == Start::Zero {
            for tile in &mut task.tiles {
                for row in (0..tile.c.n_rows()).step_by(TILE_ROWS) {
                    let rows = tile.c.rows(row..row + TILE_ROWS);
                    rows.into_iter().for_each(|row| row.fill(0.0));
                }
            }
        }
    }

    /// A link by way of panels, for which `room` is.
    fn multiply_link(&self, task: &mut Task<'_>, link: &Link<'_>, room: &mut [f32]) {
        let third = room.len() / 3;
        let (panel, rest) = room.split_at_mut(third);
        let (rows, pairs) = rest.split_at_mut(third);
        let panel = panel.as_chunks_mut::<HALF_COLUMNS>().0;
        let pairs = bytemuck::cast_slice_mut(pairs).as_chunks_mut::<HALF_COLUMNS>().0;
        let k = link.left.k;
        for part in (0..k).step_by(self.part_len(k)) {
            let panel = &mut panel[..2 * self.part_len(k).min(k - part)];
            for tile in 0..task.tiles.len() {
                self.fill(link.right, part, &task.tiles[tile], PanelMut::of(panel), rows);
                self.multiply_part(task, tile, link.left, part, panel, pairs);
            }
            task.start = Start::Current;
        }
    }

    /// Length of the parts of a chain of `k` that goes by way of panels.
    fn part_len(&self, k: usize) -> usize {
        part_len(k, longest_part(self.isa.set()))
    }

    /// The whole link at once, where its rows are so few that it goes without a panel; else does nothing and says so.
    fn multiply_few(&self, task: &mut Task<'_>, link: &Link<'_>) -> bool {
        let Link {
            left,
            right: Right::Transposed(weight),
        } = link
        else {
            return false;
        };
        if task.groups.len() != 1 || left.k == 0 {
            return false;
        }
        let [tile] = &mut task.tiles[..] else {
            return false;
        };
        let rows = left.groups.range(task.groups.start);
        let n_rows = rows.len();
        let (floats, pairs);
        let a = match self.operands {
            Operands::F32 | Operands::Integers => {
                floats = left.floats(rows, 0..left.k);
                FewRows::Floats(&floats[..n_rows])
            }
            Operands::Pairs(bf16) => {
                pairs = left.pairs(rows, 0..left.k);
                FewRows::Pairs(bf16, &pairs[..n_rows])
            }
            Operands::Rounded => return false,
        };
        let rows = &mut tile.c.rows(0..n_rows)[..n_rows];
        weight.multiply_few(self.isa, tile.column, a, rows, task.start)
    }

    /// Packs rows `part..` of the right operand at a tile's columns.
    fn fill(&self, right: Right<'_>, part: usize, tile: &Tile<'_>, panel: PanelMut<'_>, rows: &mut [f32]) {
        let n_columns = tile.c.n_columns();
        match right {
            Right::Floats(view) => pack_right(self.isa, view, part, tile.column, n_columns, panel),
            Right::Transposed(weight) => {
                weight.pack_columns(self.isa, tile.column, n_columns, part, panel, rows);
            }
            Right::Straight(weight) => weight.pack_rows(self.isa, part, tile.column, n_columns, panel),
        }
    }

    /// Multiplies a tile's rows with a panel, whose first row belongs to element `part`.
    fn multiply_part(
        &self,
        task: &mut Task<'_>,
        tile: usize,
        left: &Left<'_>,
        part: usize,
        halves: &mut [HalfRow],
        pairs: &mut [PairRow],
    ) {
        if self.operands == Operands::Rounded {
            round_panel(self.isa, halves);
        }
        let len = halves.len() / 2;
        let panel = Panel::rows_of(halves, 0, len);
        let (low, high) = pairs.split_at_mut(pairs.len() / 2);
        let (low, high) = (&mut low[..len.div_ceil(2)], &mut high[..len.div_ceil(2)]);
        if let Operands::Pairs(bf16) = self.operands {
            bf16.pair_panel(panel, [low, high]);
        }
        let c = &mut task.tiles[tile].c;
        let mut done = 0;
        for group in task.groups.clone() {
            let range = left.groups.range(group);
            let width = range.len();
            let rows = &mut c.rows(done..done + width)[..width];
            let part = part..part + len;
            match self.operands {
                Operands::F32 | Operands::Rounded | Operands::Integers => {
                    let a = &left.floats(range, part)[..width];
                    multiply_tile(self.isa, a, panel, rows, task.start);
                }
                Operands::Pairs(bf16) => {
                    let a = &left.pairs(range, part)[..width];
                    bf16.multiply(a, [low, high], rows, task.start);
                }
            }
            done += width;
        }
    }
}

/// Length of parts of `k` that are at most `longest`, a multiple of 64, and about equally long.
fn part_len(k: usize, longest: usize) -> usize {
    let n_parts = k.div_ceil(longest).max(1);
    k.div_ceil(n_parts).next_multiple_of(64).max(64)
}

impl<'a> Chains<'a> {
    /// Multiply-adds.
    fn work(&self) -> usize {
        self.c.n_rows() * self.c.n_columns() * self.links.iter().map(|link| link.left.k).sum::<usize>()
    }

    fn n_tiles(&self) -> usize {
        self.c.n_columns().div_ceil(TILE_COLUMNS)
    }

    /// Tiles of a task. The rows of A pass by once for each task, so where they are more than the caches hold, some tiles
    /// go together, if that leaves `n_tasks`.
    fn tiles_per_task(&self, n_tasks: usize) -> usize {
        let longest = self.links.iter().map(|link| link.left.k).max().unwrap_or(0);
        match self.c.n_rows() * longest > CACHED_LEN {
            true => (self.n_tiles() / n_tasks.max(1)).clamp(1, TILES_MAX),
            false => 1,
        }
    }

    /// The result before tile `at`, and from there on.
    fn at_tile(self, at: usize) -> [Columns<'a>; 2] {
        let column = at * TILE_COLUMNS;
        let (before, after) = self.c.split_columns(column);
        [(0, before), (column, after)].map(|(column, c)| Columns {
            column,
            chains: Chains { c, ..self },
        })
    }
}

/// Columns of a result, from `column` on, the beginning of a tile.
struct Columns<'a> {
    column: usize,
    chains: Chains<'a>,
}

impl<'a> Columns<'a> {
    /// Cuts them into tasks of `per_task` tiles and of up to `n_parts` parts of the rows.
    fn cut(self, n_parts: usize, per_task: usize, tasks: &mut Vec<Task<'a>>) {
        let Chains { c, links, start } = self.chains;
        let groups = RowGroups::of(c.n_rows());
        let n_parts = n_parts.min(groups.len);
        let (mut below, mut done) = (c, 0);
        for part in 0..n_parts {
            let range = part * groups.len / n_parts..(part + 1) * groups.len / n_parts;
            let (mut right, rest) = below.split_rows(groups.start(range.end) - done);
            (below, done) = (rest, groups.start(range.end));
            let mut column = self.column;
            while right.n_columns() > 0 {
                let mut tiles = Vec::with_capacity(per_task);
                while tiles.len() < per_task && right.n_columns() > 0 {
                    let (c, rest) = right.split_columns(TILE_COLUMNS);
                    tiles.push(Tile { column, c });
                    (right, column) = (rest, column + TILE_COLUMNS);
                }
                tasks.push(Task {
                    links,
                    start,
                    groups: range.clone(),
                    tiles,
                });
            }
        }
    }
}
