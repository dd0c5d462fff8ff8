//! Matrix products: `C [M, N] (+)= A [M, K] · B [K, N]`, where B may be a packed weight read in either direction.
//!
//! Invariant: `C[i][j]` is the chain `fma(A[i][k], B[k][j], ...)` for k = 0, 1, 2, ... whatever M, the threads and the
//! instruction set are: cutting K into parts goes on with the same chain through C.

use super::Cpu;
use super::scratch::Scratch;
pub(super) use super::simd::Start;
use super::simd::{Isa, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile, transpose_floats, versions};
use super::weight::CpuWeight;

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

/// A left operand `[M, K]` as the tile reads it: groups of at most 12 rows, each `[K][rows of the group]`.
pub(super) struct Left<'c> {
    packed: Scratch<'c>,
    groups: RowGroups,
    k: usize,
}

impl Left<'_> {
    /// Every element times `factor`.
    pub(super) fn scaled(mut self, factor: f32) -> Self {
        self.packed.iter_mut().for_each(|value| *value *= factor);
        self
    }
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
    pub n: usize,
    pub links: &'a [Link<'a>],
    pub start: Start,
}

/// The rows of A in groups of at most 12, all about equally wide, so that no row is padded.
#[derive(Clone, Copy)]
struct RowGroups {
    m: usize,
    len: usize,
}

impl RowGroups {
    fn of(m: usize) -> Self {
        Self {
            m,
            len: m.div_ceil(TILE_ROWS),
        }
    }

    fn start(self, group: usize) -> usize {
        group * self.m / self.len.max(1)
    }

    fn range(self, group: usize) -> std::ops::Range<usize> {
        self.start(group)..self.start(group + 1)
    }
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
        self.multiply_all(m, vec![Chains { c, n, links, start }]);
    }

    /// Packs `a [M, K]` once for all the products it is in.
    pub(super) fn pack(&self, a: View<'_>, m: usize, k: usize) -> Left<'_> {
        let groups = RowGroups::of(m);
        let mut packed = self.scratch(m * k);
        let mut rest = &mut packed[..];
        let mut pieces = Vec::with_capacity(groups.len);
        for group in 0..groups.len {
            let rows = groups.range(group);
            let (piece, after) = rest.split_at_mut(rows.len() * k);
            pieces.push((rows, piece));
            rest = after;
        }
        self.each(pieces, m * k, |(rows, piece)| {
            pack_left(self.isa, a, rows.start, rows.len(), piece)
        });
        Left { packed, groups, k }
    }

    /// Computes several results of `m` rows at once, so that the threads part and meet but once.
    pub(super) fn multiply_all(&self, m: usize, results: Vec<Chains<'_>>) {
        if m == 0 {
            return;
        }
        let links = || results.iter().flat_map(|result| result.links);
        let unpacks = links().any(|link| !matches!(link.right, Right::Floats(_)));
        let n_tasks = match self.n_threads() {
            1 => 1,
            // tasks that share a tile unpack it once each
            n if unpacks => 2 * n,
            n => TASKS_PER_THREAD * n,
        };
        let work =
            |result: &Chains<'_>| m * result.n * result.links.iter().map(|link| link.left.k).sum::<usize>();
        let work = results.iter().map(work).sum::<usize>() / WORK_PER_ELEMENT;
        let n_tiles: usize = results.iter().map(|result| result.n.div_ceil(TILE_COLUMNS)).sum();
        let n_parts = n_tasks.div_ceil(n_tiles.max(1));
        let tasks = results
            .into_iter()
            .flat_map(|result| split(m, result, n_parts))
            .collect();
        self.each(tasks, work, |task| self.run(task));
    }

    fn run(&self, mut task: Task<'_>) {
        let n_columns = task.rows.first().map_or(0, |row| row.len());
        let mut room = self.scratch(2 * PART_LEN * TILE_COLUMNS);
        let (panel, rows) = room.split_at_mut(PART_LEN * TILE_COLUMNS);
        let panel = panel.as_chunks_mut::<TILE_COLUMNS>().0;
        let mut start = task.start;
        for Link { left, right } in task.links {
            if let Right::Transposed(weight) = right
                && task.groups.len() == 1
                && left.k > 0
            {
                let range = left.groups.range(task.groups.start);
                let a = &left.packed[range.start * left.k..range.end * left.k];
                if weight.multiply_few(self.isa, task.column, a, &mut task.rows, start) {
                    start = Start::Current;
                    continue;
                }
            }
            for part in (0..left.k).step_by(PART_LEN) {
                let panel = &mut panel[..PART_LEN.min(left.k - part)];
                match right {
                    Right::Floats(view) => pack_right(self.isa, *view, part, task.column, n_columns, panel),
                    Right::Transposed(weight) => {
                        weight.pack_columns(self.isa, task.column, n_columns, part, panel, rows);
                    }
                    Right::Straight(weight) => {
                        weight.pack_rows(self.isa, part, task.column, n_columns, panel);
                    }
                }
                let mut done = 0;
                for group in task.groups.clone() {
                    let range = left.groups.range(group);
                    let width = range.len();
                    let a = &left.packed[range.start * left.k..][width * part..width * (part + panel.len())];
                    multiply_tile(self.isa, a, panel, &mut task.rows[done..done + width], start);
                    done += width;
                }
                start = Start::Current;
            }
        }
        if start == Start::Zero {
            task.rows.iter_mut().for_each(|row| row.fill(0.0));
        }
    }
}

/// Cuts a result into tiles of 32 columns, and into up to `n_parts` parts of its rows.
fn split<'c>(m: usize, result: Chains<'c>, n_parts: usize) -> Vec<Task<'c>> {
    let Chains { c, n, links, start } = result;
    if n == 0 {
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

/// `out [K, width] = ` rows `first..first + width` of `a`, transposed.
fn pack_left(isa: Isa, a: View<'_>, first: usize, width: usize, out: &mut [f32]) {
    if width == 0 {
        return;
    }
    let k = out.len() / width;
    if a.column_step == 1 {
        let mut rows: [&[f32]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (i, row) in rows[..width].iter_mut().enumerate() {
            *row = &a.values[(first + i) * a.row_step..][..k];
        }
        transpose_floats(isa, &rows[..width], out, width);
    } else {
        copy_runs(isa, &a.values[first..], a.column_step, width, out);
    }
}

versions! {
    /// `out [K, width] = ` the first `width` of each `step` values.
    fn copy_runs(values: &[f32], step: usize, width: usize, out: &mut [f32]) {
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            for (out, value) in out.iter_mut().zip(&values[p * step..][..width]) {
                *out = *value;
            }
        }
    }
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
/// `packed` is room for 12 rows of K; C's rows are `row_step` apart.
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
    packed: &mut [f32],
) {
    let groups = RowGroups::of(m);
    for group in 0..groups.len {
        let range = groups.range(group);
        let packed = &mut packed[..range.len() * k];
        pack_left(isa, a, range.start, range.len(), packed);
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
            multiply_tile(isa, packed, panel, &mut rows[..range.len()], start);
        }
    }
}
