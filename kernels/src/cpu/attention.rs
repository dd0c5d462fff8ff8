//! Causal grouped-query attention within documents, forward and backward.
//!
//! Invariant: a query row's result depends on its own keys only, in their order: scores are chains over D, the output
//! is a chain over the keys from the first visible one, and a masked key adds an exact 0.

mod backward;
mod rows;

pub(super) use backward::{Inputs, backward};
pub(super) use rows::{KeyPanels, QueryRows, RowsOut, attend, scale_row, softmax_row};

use super::gemm::{View, pack_panels};
use super::simd::{HALF_COLUMNS, HalfRow, Isa, TILE_COLUMNS};
use super::{Cpu, check};
use crate::backend::AttentionSpec;
use crate::dims::Documents;
use crate::error::Result;

const OP: &str = "attention";

/// Query rows of a task: enough that packing the keys anew for each task costs little.
const TASK_ROWS: usize = 256;

pub(super) fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    lse: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    documents: &Documents,
    spec: AttentionSpec,
) -> Result<()> {
    let shape = Shape::of(OP, spec)?;
    let m = documents.n_tokens();
    let q = check::part(OP, "q", q, &[m, shape.q_width])?;
    let k = check::part(OP, "k", k, &[m, shape.kv_width])?;
    let v = check::part(OP, "v", v, &[m, shape.kv_width])?;
    let out = check::part_mut(OP, "out", out, &[m, shape.q_width])?;
    let lse = check::part_mut(OP, "lse", lse, &[m, shape.n_heads])?;
    let mut tasks = tasks_of(documents, shape, out, lse);
    let longest = documents.ranges().map(|rows| rows.len()).max().unwrap_or(0);
    // the last rows see the most keys, so their tasks go first
    tasks.reverse();
    cpu.each(tasks, m * longest * shape.q_width, |mut task| {
        let document = &task.document;
        let n_keys = task.rows.end - document.start;
        let mut room = cpu.scratch(shape.panels_len(n_keys));
        let at = document.start * shape.kv_width + task.kv_head * shape.head_dim;
        let panels = pack_keys(cpu.isa, &k[at..], &v[at..], shape, n_keys, &mut room);
        for g in 0..shape.group_len {
            let head = task.kv_head * shape.group_len + g;
            let queries = QueryRows {
                view: View::rows(
                    &q[task.rows.start * shape.q_width + head * shape.head_dim..],
                    shape.q_width,
                ),
                len: task.rows.len(),
                position: task.rows.start - document.start,
            };
            let stepped = RowsOut {
                out: &mut task.out,
                lse: Some(&mut task.lse),
                first: g,
                step: shape.group_len,
            };
            attend(cpu, queries, panels, stepped, shape);
        }
    });
    Ok(())
}

/// The dimensions of attention and what follows from them.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Query heads for each key head.
    pub group_len: usize,
    /// `H * D`.
    pub q_width: usize,
    /// `KV * D`.
    pub kv_width: usize,
    pub scale: f32,
    /// Keys a query sees at most.
    pub window: usize,
}

impl Shape {
    /// Checks the settings.
    pub(super) fn of(op: &'static str, spec: AttentionSpec) -> Result<Self> {
        let group_len = check::group_len(op, spec.heads)?;
        check::setting(op, "scale", "positive", spec.scale > 0.0)?;
        check::setting(op, "window", "at least 1", spec.window != Some(0))?;
        let heads = spec.heads;
        Ok(Self {
            n_heads: heads.n_heads,
            n_kv_heads: heads.n_kv_heads,
            head_dim: heads.head_dim,
            group_len,
            q_width: check::size(op, "q", &[heads.n_heads, heads.head_dim])?,
            kv_width: check::size(op, "k", &[heads.n_kv_heads, heads.head_dim])?,
            scale: spec.scale,
            window: spec.window.unwrap_or(usize::MAX),
        })
    }

    /// `D` in whole tiles.
    pub(super) fn head_tiles(self) -> usize {
        self.head_dim.div_ceil(TILE_COLUMNS)
    }

    /// Floats that the panels of `n_keys` keys and values take.
    pub(super) fn panels_len(self, n_keys: usize) -> usize {
        (n_keys.div_ceil(TILE_COLUMNS) * self.head_dim + self.head_tiles() * n_keys) * TILE_COLUMNS
    }

    /// First key that the query at `position` sees.
    pub(super) fn first_key(self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }
}

/// Packs `n_keys` keys and values, whose rows are `KV * D` apart.
fn pack_keys<'a>(
    isa: Isa,
    k: &[f32],
    v: &[f32],
    shape: Shape,
    n_keys: usize,
    room: &'a mut [f32],
) -> KeyPanels<'a> {
    let (room, _) = room.as_chunks_mut::<HALF_COLUMNS>();
    let (keys, values) = room.split_at_mut(2 * n_keys.div_ceil(TILE_COLUMNS) * shape.head_dim);
    pack_panels(
        isa,
        View::rows(k, shape.kv_width).transposed(),
        shape.head_dim,
        n_keys,
        keys,
    );
    pack_panels(isa, View::rows(v, shape.kv_width), n_keys, shape.head_dim, values);
    KeyPanels { keys, values, n_keys }
}

/// Some rows of one document, for one key head.
struct Task<'a> {
    document: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    kv_head: usize,
    /// `[rows, group]` pieces of `D`.
    out: Vec<&'a mut [f32]>,
    /// `[rows, group]` single elements.
    lse: Vec<&'a mut f32>,
}

fn tasks_of<'a>(
    documents: &Documents,
    shape: Shape,
    out: &'a mut [f32],
    lse: &'a mut [f32],
) -> Vec<Task<'a>> {
    let mut tasks: Vec<Task<'a>> = Vec::new();
    let mut out = out.chunks_mut(shape.head_dim);
    let mut lse = lse.iter_mut();
    for document in documents.ranges() {
        for start in document.clone().step_by(TASK_ROWS) {
            let rows = start..(start + TASK_ROWS).min(document.end);
            let first = tasks.len();
            tasks.extend((0..shape.n_kv_heads).map(|kv_head| Task {
                document: document.clone(),
                rows: rows.clone(),
                kv_head,
                out: Vec::with_capacity(rows.len() * shape.group_len),
                lse: Vec::with_capacity(rows.len() * shape.group_len),
            }));
            for _ in rows {
                for task in &mut tasks[first..] {
                    task.out.extend(out.by_ref().take(shape.group_len));
                    task.lse.extend(lse.by_ref().take(shape.group_len));
                }
            }
        }
    }
    tasks
}

/// Panels `[2][K][16]` one after another.
pub(super) type HalfRows = [HalfRow];
