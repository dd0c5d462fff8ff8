//! The gradients of attention, from its output and log-sum-exp (Dao et al. 2022, algorithm 4).
//!
//! Invariant: `dk` and `dv` are chains over the query rows in their order, then a sum over the heads of a group in
//! theirs.

use super::rows::{BLOCK_ROWS, Block, QueryRows};
use super::{HalfRows, Shape};
use crate::backend::AttentionSpec;
use crate::cpu::gemm::{Panels, Start, View, multiply_panels, pack_panels};
use crate::cpu::math;
use crate::cpu::simd::{HALF_COLUMNS, TILE_COLUMNS, TILE_ROWS, versions};
use crate::cpu::{Cpu, check};
use crate::dims::Documents;
use crate::error::Result;

const OP: &str = "attention_backward";

/// What the forward pass had and left, and the gradient of its output.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Inputs<'a> {
    pub dout: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// One head of one document.
struct Task<'a> {
    rows: std::ops::Range<usize>,
    head: usize,
    dq: Vec<&'a mut [f32]>,
    /// This head's share of the document's `dk` and `dv`, `[T, D]` each.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

pub(in crate::cpu) fn backward(
    cpu: &Cpu,
    [dq, dk, dv]: [&mut [f32]; 3],
    inputs: Inputs<'_>,
    documents: &Documents,
    spec: AttentionSpec,
) -> Result<()> {
    let shape = Shape::of(OP, spec)?;
    let m = documents.n_tokens();
    let inputs = Inputs {
        dout: check::part(OP, "dout", inputs.dout, &[m, shape.q_width])?,
        out: check::part(OP, "out", inputs.out, &[m, shape.q_width])?,
        lse: check::part(OP, "lse", inputs.lse, &[m, shape.n_heads])?,
        q: check::part(OP, "q", inputs.q, &[m, shape.q_width])?,
        k: check::part(OP, "k", inputs.k, &[m, shape.kv_width])?,
        v: check::part(OP, "v", inputs.v, &[m, shape.kv_width])?,
    };
    let dq = check::part_mut(OP, "dq", dq, &[m, shape.q_width])?;
    let dk = check::part_mut(OP, "dk", dk, &[m, shape.kv_width])?;
    let dv = check::part_mut(OP, "dv", dv, &[m, shape.kv_width])?;
    let mut shares = cpu.scratch(2 * m * shape.q_width);
    shares.fill(0.0);
    let (dk_shares, dv_shares) = shares.split_at_mut(m * shape.q_width);
    let tasks = tasks_of(documents, shape, dq, dk_shares, dv_shares);
    let longest = documents.ranges().map(|rows| rows.len()).max().unwrap_or(0);
    cpu.each(tasks, m * longest * shape.q_width, |task| {
        head_backward(cpu, task, inputs, shape)
    });
    add_shares(documents, shape, dk, dk_shares);
    add_shares(documents, shape, dv, dv_shares);
    Ok(())
}

fn tasks_of<'a>(
    documents: &Documents,
    shape: Shape,
    dq: &'a mut [f32],
    mut dk: &'a mut [f32],
    mut dv: &'a mut [f32],
) -> Vec<Task<'a>> {
    let mut tasks: Vec<Task<'a>> = Vec::with_capacity(documents.len() * shape.n_heads);
    let mut dq = dq.chunks_mut(shape.head_dim);
    for rows in documents.ranges() {
        let first = tasks.len();
        for head in 0..shape.n_heads {
            let share_len = rows.len() * shape.head_dim;
            let (dk_share, dk_rest) = dk.split_at_mut(share_len);
            let (dv_share, dv_rest) = dv.split_at_mut(share_len);
            (dk, dv) = (dk_rest, dv_rest);
            let dq = Vec::with_capacity(rows.len());
            tasks.push(Task {
                rows: rows.clone(),
                head,
                dq,
                dk: dk_share,
                dv: dv_share,
            });
        }
        for _ in rows {
            for task in &mut tasks[first..] {
                task.dq.extend(dq.next());
            }
        }
    }
    tasks
}

/// Sums the shares `[documents][H][T, D]` of each group's heads into `[M, KV, D]`.
fn add_shares(documents: &Documents, shape: Shape, sums: &mut [f32], shares: &[f32]) {
    let d = shape.head_dim;
    for rows in documents.ranges() {
        let document = &shares[rows.start * shape.q_width..rows.end * shape.q_width];
        for (i, row) in rows.clone().enumerate() {
            for kv_head in 0..shape.n_kv_heads {
                let sum = &mut sums[row * shape.kv_width + kv_head * d..][..d];
                for g in 0..shape.group_len {
                    let head = kv_head * shape.group_len + g;
                    let share = &document[(head * rows.len() + i) * d..][..d];
                    for (sum, share) in sum.iter_mut().zip(share) {
                        *sum = if g == 0 { *share } else { *sum + share };
                    }
                }
            }
        }
    }
}

/// One head's operands.
#[derive(Clone, Copy)]
struct Head<'a> {
    queries: QueryRows<'a>,
    /// `[T, D]`, like the queries.
    douts: View<'a>,
    /// Panels of `Kᵀ`, of `Vᵀ` and of `K`.
    keys_across: &'a HalfRows,
    values_across: &'a HalfRows,
    keys: &'a HalfRows,
}

/// One head's gradients: with `P = softmax(scale S)`, `dP = dO Vᵀ` and `δ = sum(dO * O)` by row,
/// `dS = scale P (dP - δ)`, `dQ = dS K`, `dK = dSᵀ Q`, `dV = Pᵀ dO`.
fn head_backward(cpu: &Cpu, mut task: Task<'_>, inputs: Inputs<'_>, shape: Shape) {
    let (d, t) = (shape.head_dim, task.rows.len());
    let kv_at = task.rows.start * shape.kv_width + task.head / shape.group_len * d;
    let q_at = task.rows.start * shape.q_width + task.head * d;
    let key_rows = View::rows(&inputs.k[kv_at..], shape.kv_width);
    let value_rows = View::rows(&inputs.v[kv_at..], shape.kv_width);
    let queries = View::rows(&inputs.q[q_at..], shape.q_width);

    let key_columns = t.next_multiple_of(TILE_COLUMNS);
    let mut room = cpu.scratch(2 * key_columns * d + shape.head_tiles() * t * TILE_COLUMNS);
    let (across, straight) = room.split_at_mut(2 * key_columns * d);
    let (keys_across, values_across) = across.split_at_mut(key_columns * d);
    let head = Head {
        queries: QueryRows {
            view: queries,
            len: t,
            position: 0,
        },
        douts: View::rows(&inputs.dout[q_at..], shape.q_width),
        keys_across: panels_of(cpu, key_rows.transposed(), d, t, keys_across),
        values_across: panels_of(cpu, value_rows.transposed(), d, t, values_across),
        keys: panels_of(cpu, key_rows, t, d, straight),
    };

    let block_rows = BLOCK_ROWS.min(t);
    let mut score_room = cpu.scratch(2 * block_rows * key_columns);
    let (p_room, ds_room) = score_room.split_at_mut(block_rows * key_columns);
    let mut packed = cpu.scratch(TILE_ROWS * d.max(key_columns).max(block_rows));
    let mut block_room = cpu.scratch(shape.head_tiles() * block_rows * TILE_COLUMNS);
    for row in (0..t).step_by(BLOCK_ROWS) {
        let block = Block::of(row, head.queries, shape);
        let len = block.n_rows * block.row_step;
        let (p, ds) = (&mut p_room[..len], &mut ds_room[..len]);
        block.scores(cpu, queries, head.keys_across, p, &mut packed, shape);
        block.scores(cpu, head.douts, head.values_across, ds, &mut packed, shape);
        for i in 0..block.n_rows {
            let at = i * block.row_step..(i + 1) * block.row_step;
            let q_row = q_at + (row + i) * shape.q_width;
            let dout_out = [&inputs.dout[q_row..q_row + d], &inputs.out[q_row..q_row + d]];
            let lse = inputs.lse[(task.rows.start + row + i) * shape.n_heads + task.head];
            let visible = block.visible(i, head.queries, shape);
            score_gradient(
                cpu.isa,
                &mut p[at.clone()],
                &mut ds[at],
                dout_out,
                lse,
                visible,
                shape.scale,
            );
        }
        query_gradient(
            cpu,
            &mut task.dq[row..],
            ds,
            head,
            block,
            d,
            [&mut block_room, &mut packed],
        );
        let rooms = [&mut *block_room, &mut *packed];
        add_key_gradient(cpu, task.dk, ds, queries, block, d, rooms);
        let rooms = [&mut *block_room, &mut *packed];
        add_key_gradient(cpu, task.dv, p, head.douts, block, d, rooms);
    }
}

/// `dQ = dS K` of a block.
fn query_gradient(
    cpu: &Cpu,
    dq: &mut [&mut [f32]],
    ds: &[f32],
    head: Head<'_>,
    block: Block,
    d: usize,
    [product, packed]: [&mut [f32]; 2],
) {
    let keys = Panels {
        panels: head.keys,
        k_all: head.queries.len,
        k_first: block.key,
    };
    let dims = (block.n_rows, d, block.n_keys);
    let ds = View::rows(ds, block.row_step);
    multiply_panels(cpu.isa, product, d, dims, ds, keys, Start::Zero, packed);
    for (dq, product) in dq.iter_mut().zip(product.chunks_exact(d)).take(block.n_rows) {
        dq.copy_from_slice(product);
    }
}

/// `dK += dSᵀ Q` of a block, and likewise `dV += Pᵀ dO`.
fn add_key_gradient(
    cpu: &Cpu,
    sums: &mut [f32],
    scores: &[f32],
    rows: View<'_>,
    block: Block,
    d: usize,
    [panels, packed]: [&mut [f32]; 2],
) {
    let rows = View {
        values: &rows.values[block.row * rows.row_step..],
        ..rows
    };
    let panels = panels_of(cpu, rows, block.n_rows, d, panels);
    let rows = Panels {
        panels,
        k_all: block.n_rows,
        k_first: 0,
    };
    let dims = (block.n_keys, d, block.n_rows);
    let scores = View::rows(scores, block.row_step).transposed();
    multiply_panels(
        cpu.isa,
        &mut sums[block.key * d..],
        d,
        dims,
        scores,
        rows,
        Start::Current,
        packed,
    );
}

/// Packs a right operand `[K, N]` into `room`.
fn panels_of<'a>(cpu: &Cpu, b: View<'_>, k: usize, n: usize, room: &'a mut [f32]) -> &'a HalfRows {
    let panels = &mut room.as_chunks_mut::<HALF_COLUMNS>().0[..2 * n.div_ceil(TILE_COLUMNS) * k];
    pack_panels(cpu.isa, b, k, n, panels);
    panels
}

versions! {
    /// Turns a row of scores into probabilities and a row of `dP` into `dS`; masked keys get 0.
    fn score_gradient(
        p: &mut [f32],
        ds: &mut [f32],
        dout_out: [&[f32]; 2],
        lse: f32,
        visible: std::ops::Range<usize>,
        scale: f32,
    ) {
        let delta = math::dot(dout_out[0], dout_out[1]);
        for row in [&mut *p, &mut *ds] {
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
        }
        for (p, ds) in p[visible.clone()].iter_mut().zip(&mut ds[visible]) {
            *p = math::exp(scale * *p - lse);
            *ds = scale * *p * (*ds - delta);
        }
    }
}
