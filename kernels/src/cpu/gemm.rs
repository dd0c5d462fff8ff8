//! Matrix products: `C [M, N] (+)= A [M, K] · B [K, N]`, where B may be a packed weight read in either direction.
//!
//! Invariant: `C[i][j]` is the chain `fma(A[i][k], B[k][j], ...)` for k = 0, 1, 2, ... whatever M, the threads and the
//! instruction set are: cutting K into parts goes on with the same chain through C.

use super::Cpu;
use super::simd::{Isa, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile, versions};
use super::weight::CpuWeight;

/// Length of a part of K: a panel of B is then 16 KiB and stays in the first cache while the rows of A pass by. A
/// multiple of 64, so that parts begin at a block of every format.
const PART_LEN: usize = 128;

/// Tasks a thread should find at least, so that the threads end together.
const TASKS_PER_THREAD: usize = 4;

/// Multiply-adds that take as long as touching one element elsewhere, roughly: 16 a cycle and port.
const WORK_PER_ELEMENT: usize = 16;

/// A matrix of floats in memory: element `(row, column)` is at `row * row_step + column * column_step`.
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

/// What the chains begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// 0: C is overwritten.
    Zero,
    /// What C holds: the product is added.
    Current,
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

/// A piece of the result: some row groups by one tile of columns.
struct Task<'c> {
    groups: std::ops::Range<usize>,
    column: usize,
    rows: Vec<&'c mut [f32]>,
}

impl Cpu {
    /// Computes `product` into `c [M, N]`.
    pub(super) fn multiply(&self, c: &mut [f32], product: Product<'_>, start: Start) {
        let Product { m, n, k, a, b } = product;
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 && start == Start::Zero {
            c[..m * n].fill(0.0);
        }
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
        let n_tasks = match b {
            _ if self.n_threads() == 1 => 1,
            Right::Floats(_) => self.n_threads() * TASKS_PER_THREAD,
            // tasks that share a tile unpack it once each
            Right::Transposed(_) | Right::Straight(_) => self.n_threads() * 2,
        };
        let tasks = split(&mut c[..m * n], n, groups, n_tasks);
        self.each(tasks, m * n * k / WORK_PER_ELEMENT, |task| {
            self.run(task, product, &packed, groups, start)
        });
    }

    fn run(&self, mut task: Task<'_>, product: Product<'_>, packed: &[f32], groups: RowGroups, start: Start) {
        let Product { n, k, b, .. } = product;
        let n_columns = TILE_COLUMNS.min(n - task.column);
        let mut room = self.scratch(2 * PART_LEN * TILE_COLUMNS);
        let (panel, rows) = room.split_at_mut(PART_LEN * TILE_COLUMNS);
        let panel = panel.as_chunks_mut::<TILE_COLUMNS>().0;
        for part in (0..k).step_by(PART_LEN) {
            let panel = &mut panel[..PART_LEN.min(k - part)];
            match b {
                Right::Floats(view) => pack_right(self.isa, view, part, task.column, n_columns, panel),
                Right::Transposed(weight) => {
                    weight.pack_columns(self.isa, task.column, n_columns, part, panel, rows);
                }
                Right::Straight(weight) => {
                    weight.pack_rows(self.isa, part, task.column, n_columns, panel);
                }
            }
            let begin = if part == 0 { start } else { Start::Current };
            let mut done = 0;
            for group in task.groups.clone() {
                let range = groups.range(group);
                let width = range.len();
                let a = &packed[range.start * k..][width * part..width * (part + panel.len())];
                multiply_rows(self.isa, a, panel, &mut task.rows[done..done + width], begin);
                done += width;
            }
        }
    }
}

/// A tile on the stack, whose rows begin at cache lines.
#[repr(align(64))]
struct Tile([TileRow; TILE_ROWS]);

/// One tile of the result: loads it from its rows, goes on with its chains, stores it.
fn multiply_rows(isa: Isa, a: &[f32], b: &[TileRow], rows: &mut [&mut [f32]], start: Start) {
    let mut tile = Tile([[0f32; TILE_COLUMNS]; TILE_ROWS]);
    let tile = &mut tile.0[..rows.len()];
    if start == Start::Current {
        for (tile, row) in tile.iter_mut().zip(rows.iter()) {
            match row.first_chunk() {
                Some(full) => *tile = *full,
                None => tile[..row.len()].copy_from_slice(row),
            }
        }
    }
    multiply_tile(isa, a, b, tile);
    for (tile, row) in tile.iter().zip(rows) {
        match row.first_chunk_mut() {
            Some(full) => *full = *tile,
            None => row.copy_from_slice(&tile[..row.len()]),
        }
    }
}

/// Cuts the result into tiles of 32 columns, and into parts of its rows where that gives too few tasks.
fn split(c: &mut [f32], n: usize, groups: RowGroups, n_tasks_wanted: usize) -> Vec<Task<'_>> {
    let n_tiles = n.div_ceil(TILE_COLUMNS);
    let n_parts = n_tasks_wanted.div_ceil(n_tiles).min(groups.len);
    let mut tasks: Vec<Task<'_>> = Vec::with_capacity(n_tiles * n_parts);
    for part in 0..n_parts {
        let range = part * groups.len / n_parts..(part + 1) * groups.len / n_parts;
        let n_rows = groups.start(range.end) - groups.start(range.start);
        tasks.extend((0..n_tiles).map(|tile| Task {
            groups: range.clone(),
            column: tile * TILE_COLUMNS,
            rows: Vec::with_capacity(n_rows),
        }));
    }
    let mut part = 0;
    for (row, values) in c.chunks_exact_mut(n).enumerate() {
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

versions! {
    /// `out [K, width] = ` rows `first..first + width` of `a`, transposed.
    pub(super) fn pack_left(a: View<'_>, first: usize, width: usize, out: &mut [f32]) {
        if width == 0 {
            return;
        }
        let k = out.len() / width;
        if a.column_step == 1 {
            // 16 elements of each row at a time: whole cache lines are read, and written while they are near
            for part in (0..k).step_by(16) {
                let len = 16.min(k - part);
                for i in 0..width {
                    let row = &a.values[(first + i) * a.row_step + part..][..len];
                    for (out, value) in out[part * width..].chunks_exact_mut(width).zip(row) {
                        out[i] = *value;
                    }
                }
            }
        } else {
            for (p, out) in out.chunks_exact_mut(width).enumerate() {
                let column = &a.values[p * a.column_step..];
                for (i, out) in out.iter_mut().enumerate() {
                    *out = column[(first + i) * a.row_step];
                }
            }
        }
    }
}

versions! {
    /// `panel[i][j] = b[k_first + i, column_first + j]` for `j < n_columns`, 0 beyond.
    pub(super) fn pack_right(
        b: View<'_>,
        k_first: usize,
        column_first: usize,
        n_columns: usize,
        panel: &mut [TileRow],
    ) {
        if b.column_step == 1 {
            for (i, out) in panel.iter_mut().enumerate() {
                let row = &b.values[(k_first + i) * b.row_step + column_first..][..n_columns];
                match row.first_chunk() {
                    Some(full) => *out = *full,
                    None => {
                        out[n_columns..].fill(0.0);
                        out[..n_columns].copy_from_slice(row);
                    }
                }
            }
            return;
        }
        // 16 rows of the panel at a time: they stay in the first cache while the columns are written
        for (part, panel) in panel.chunks_mut(16).enumerate() {
            for j in 0..n_columns {
                let column = &b.values[(k_first + 16 * part) * b.row_step + (column_first + j) * b.column_step..];
                for (i, out) in panel.iter_mut().enumerate() {
                    out[j] = column[i * b.row_step];
                }
            }
            for out in panel {
                out[n_columns..].fill(0.0);
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
            multiply_rows(isa, packed, panel, &mut rows[..range.len()], start);
        }
    }
}
