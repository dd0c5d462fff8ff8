//! Matrix products: `C [M, N] (+)= A [M, K] · B [K, N]`, where B may be a packed weight read in either direction.
//!
//! Invariant: `C[i][j]` is the chain `fma(A[i][k], B[k][j], ...)` for k = 0, 1, 2, ... whatever M, the threads and the
//! instruction set are: cutting K into parts goes on with the same chain through C. With operands of bf16 the chain is
//! the same whatever M and the threads are. Integers have chains of blocks, see [`integers`].

mod integers;
mod left;

pub(super) use left::Left;
use left::{RowGroups, straighten};

pub(super) use super::simd::Start;
use super::simd::{
    FewRows, Isa, PairRow, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile, round_panel, transpose_floats,
    versions,
};
use super::weight::CpuWeight;
use super::{Cpu, Operands};

/// Length of a part of K: a panel of B is then 16 KiB and stays in the first cache while the rows of A pass by. A
/// multiple of 64, so that parts begin at a block of every format.
const PART_LEN: usize = 128;

/// Tasks a thread should find at least, so that the threads end together.
const TASKS_PER_THREAD: usize = 4;

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
    pub c: &'a mut [f32],
    pub m: usize,
    pub n: usize,
    pub links: &'a [Link<'a>],
    pub start: Start,
}

/// A piece of a result: some row groups by one tile of columns.
struct Task<'c> {
    links: &'c [Link<'c>],
    start: Start,
    groups: std::ops::Range<usize>,
    column: usize,
    rows: Vec<&'c mut [f32]>,
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
        self.multiply_all(vec![Chains {
            c,
            m,
            n,
            links,
            start,
        }]);
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
        let work = |result: &Chains<'_>| {
            result.m * result.n * result.links.iter().map(|link| link.left.k).sum::<usize>()
        };
        let work = results.iter().map(work).sum::<usize>() / WORK_PER_ELEMENT;
        let n_tiles: usize = results.iter().map(|result| result.n.div_ceil(TILE_COLUMNS)).sum();
        let n_parts = n_tasks.div_ceil(n_tiles.max(1));
        let tasks = results
            .into_iter()
            .flat_map(|result| split(result, n_parts))
            .collect();
        self.each(tasks, work, |task| self.run(task));
    }

    fn run(&self, mut task: Task<'_>) {
        let mut room = None;
        for link in task.links {
            if self.multiply_integers(&mut task, link) || self.multiply_few(&mut task, link) {
                task.start = Start::Current;
                continue;
            }
            let room = room.get_or_insert_with(|| self.scratch(3 * PART_LEN * TILE_COLUMNS));
            self.multiply_link(&mut task, link, room);
        }
        if task.start == Start::Zero {
            task.rows.iter_mut().for_each(|row| row.fill(0.0));
        }
    }

    /// A link by way of panels, for which `room` is.
    fn multiply_link(&self, task: &mut Task<'_>, link: &Link<'_>, room: &mut [f32]) {
        let (panel, rest) = room.split_at_mut(PART_LEN * TILE_COLUMNS);
        let (rows, pairs) = rest.split_at_mut(PART_LEN * TILE_COLUMNS);
        let panel = panel.as_chunks_mut::<TILE_COLUMNS>().0;
        let pairs = bytemuck::cast_slice_mut(pairs).as_chunks_mut::<TILE_COLUMNS>().0;
        let k = link.left.k;
        for part in (0..k).step_by(PART_LEN) {
            let panel = &mut panel[..PART_LEN.min(k - part)];
            self.fill(link.right, part, task, panel, rows);
            self.multiply_part(task, link.left, part, panel, pairs);
            task.start = Start::Current;
        }
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
        weight.multiply_few(self.isa, task.column, a, &mut task.rows, task.start)
    }

    /// Packs rows `part..` of the right operand at the task's columns.
    fn fill(&self, right: Right<'_>, part: usize, task: &Task<'_>, panel: &mut [TileRow], rows: &mut [f32]) {
        let n_columns = task.rows.first().map_or(0, |row| row.len());
        match right {
            Right::Floats(view) => pack_right(self.isa, view, part, task.column, n_columns, panel),
            Right::Transposed(weight) => {
                weight.pack_columns(self.isa, task.column, n_columns, part, panel, rows);
            }
            Right::Straight(weight) => weight.pack_rows(self.isa, part, task.column, n_columns, panel),
        }
    }

    /// Multiplies the task's rows with a panel, whose first row belongs to element `part`.
    fn multiply_part(
        &self,
        task: &mut Task<'_>,
        left: &Left<'_>,
        part: usize,
        panel: &mut [TileRow],
        pairs: &mut [PairRow],
    ) {
        let pairs = &mut pairs[..panel.len().div_ceil(2)];
        match self.operands {
            Operands::F32 | Operands::Integers => {}
            Operands::Rounded => round_panel(self.isa, panel),
            Operands::Pairs(bf16) => bf16.pair_panel(panel, pairs),
        }
        let mut done = 0;
        for group in task.groups.clone() {
            let range = left.groups.range(group);
            let width = range.len();
            let rows = &mut task.rows[done..done + width];
            let part = part..part + panel.len();
            match self.operands {
                Operands::F32 | Operands::Rounded | Operands::Integers => {
                    let a = &left.floats(range, part)[..width];
                    multiply_tile(self.isa, a, panel, rows, task.start);
                }
                Operands::Pairs(bf16) => {
                    let a = &left.pairs(range, part)[..width];
                    bf16.multiply(a, pairs, rows, task.start);
                }
            }
            done += width;
        }
    }
}

/// Cuts a result into tiles of 32 columns, and into up to `n_parts` parts of its rows.
fn split(result: Chains<'_>, n_parts: usize) -> Vec<Task<'_>> {
    let Chains {
        c,
        m,
        n,
        links,
        start,
    } = result;
    if m == 0 || n == 0 {
        return Vec::new();
    }
    let groups = RowGroups::of(m);
    let n_tiles = n.div_ceil(TILE_COLUMNS);
    let n_parts = n_parts.min(groups.len);
    let mut tasks: Vec<Task<'_>> = Vec::with_capacity(n_tiles * n_parts);
    for part in 0..n_parts {
        let range = part * groups.len / n_parts..(part + 1) * groups.len / n_parts;
        let n_rows = groups.start(range.end) - groups.start(range.start);
        tasks.extend((0..n_tiles).map(|tile| Task {
            links,
            start,
            groups: range.clone(),
            column: tile * TILE_COLUMNS,
            rows: Vec::with_capacity(n_rows),
        }));
    }
    let mut part = 0;
    for (row, values) in c[..m * n].chunks_exact_mut(n).enumerate() {
        while row >= groups.start(tasks[part * n_tiles].groups.end) {
            part += 1;
        }
        for (task, piece) in tasks[part * n_tiles..]
            .iter_mut()
            .zip(values.chunks_mut(TILE_COLUMNS))
        {
            task.rows.push(piece);
        }
    }
    tasks
}

/// `panel[i][j] = b[k_first + i, column_first + j]` for `j < n_columns`, 0 beyond.
pub(super) fn pack_right(
    isa: Isa,
    b: View<'_>,
    k_first: usize,
    column_first: usize,
    n_columns: usize,
    panel: &mut [TileRow],
) {
    if b.column_step == 1 {
        let rows = &b.values[k_first * b.row_step + column_first..];
        return copy_rows(isa, rows, b.row_step, n_columns, panel);
    }
    if n_columns < TILE_COLUMNS {
        panel.iter_mut().for_each(|out| out[n_columns..].fill(0.0));
    }
    let len = panel.len();
    let mut columns: [&[f32]; TILE_COLUMNS] = [&[]; TILE_COLUMNS];
    for (j, column) in columns[..n_columns].iter_mut().enumerate() {
        *column = &b.values[k_first + (column_first + j) * b.column_step..][..len];
    }
    for (half, columns) in columns[..n_columns].chunks(16).enumerate() {
        let out = &mut panel.as_flattened_mut()[16 * half..];
        transpose_floats(isa, columns, out, TILE_COLUMNS);
    }
}

versions! {
    /// `panel[i][j] = values[i * step + j]` for `j < n_columns`, 0 beyond.
    fn copy_rows(values: &[f32], step: usize, n_columns: usize, panel: &mut [TileRow]) {
        for (i, out) in panel.iter_mut().enumerate() {
            let row = &values[i * step..][..n_columns];
            match row.first_chunk() {
                Some(full) => *out = *full,
                None => {
                    out[n_columns..].fill(0.0);
                    out[..n_columns].copy_from_slice(row);
                }
            }
        }
    }
}

/// A right operand packed whole: `[N / 32][K][32]`, the last panel filled up with zeros.
pub(super) fn pack_panels(isa: Isa, b: View<'_>, k: usize, n: usize, panels: &mut [TileRow]) {
    for (tile, panel) in panels.chunks_exact_mut(k.max(1)).enumerate() {
        let column = tile * TILE_COLUMNS;
        pack_right(
            isa,
            b,
            0,
            column,
            TILE_COLUMNS.min(n.saturating_sub(column)),
            panel,
        );
    }
}

/// A right operand packed by [`pack_panels`], of which rows `k_first..k_first + K` are used.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub panels: &'a [TileRow],
    pub k_all: usize,
    pub k_first: usize,
}

/// `c [M, N] (+)= a [M, K] · panels` on this thread, for the small products inside attention.
///
/// `room` is for 12 rows of K; C's rows are `row_step` apart.
#[expect(
    clippy::too_many_arguments,
    reason = "the operands and dimensions of a product"
)]
pub(super) fn multiply_panels(
    isa: Isa,
    c: &mut [f32],
    row_step: usize,
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: Panels<'_>,
    start: Start,
    room: &mut [f32],
) {
    let groups = RowGroups::of(m);
    for group in 0..groups.len {
        let range = groups.range(group);
        let (values, step, first) = match a.column_step {
            1 => (a.values, a.row_step, range.start),
            _ => {
                straighten(isa, a, range.clone(), k, room);
                (&*room, k, 0)
            }
        };
        let mut lefts: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (i, left) in lefts[..range.len()].iter_mut().enumerate() {
            *left = &values[(first + i) * step..][..k];
        }
        for (tile, panel) in b
            .panels
            .chunks_exact(b.k_all.max(1))
            .take(n.div_ceil(TILE_COLUMNS))
            .enumerate()
        {
            let column = tile * TILE_COLUMNS;
            let n_columns = TILE_COLUMNS.min(n - column);
            let mut rows: [&mut [f32]; TILE_ROWS] = Default::default();
            let after = c.chunks_mut(row_step).skip(range.start).take(range.len());
            for (slot, row) in rows.iter_mut().zip(after) {
                *slot = &mut row[column..column + n_columns];
            }
            let panel = &panel[b.k_first..b.k_first + k];
            multiply_tile(isa, &lefts[..range.len()], panel, &mut rows[..range.len()], start);
        }
    }
}
