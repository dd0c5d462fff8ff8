//! Attention of a generation step over the paged cache.
//!
//! Invariant: the same chains as [`attention`](super::attention), over panels packed from pages or over the pages
//! themselves, so a row's result is the same bits whether its prompt came at once, in parts or token by token.

mod one_row;

use super::attention::{KeyPanels, QueryRows, RowsOut, Shape, attend};
use super::gemm::View;
use super::kv_cache::Run;
use super::simd::{HALF_COLUMNS, HalfRow, TILE_COLUMNS, versions};
use super::{Cpu, CpuKvCache, check};
use crate::backend::AttentionSpec;
use crate::dims::SequenceSpan;
use crate::error::{Error, Result};

const OP: &str = "attention_paged";

/// One sequence's rows, for one key head.
struct Task<'a, 's> {
    sequence: &'s SequenceSpan,
    kv_head: usize,
    /// `[rows, group]` pieces of `D`.
    out: Vec<&'a mut [f32]>,
}

pub(super) fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    q: &[f32],
    cache: &CpuKvCache,
    sequences: &[SequenceSpan],
    spec: AttentionSpec,
) -> Result<()> {
    let shape = Shape::of(OP, spec)?;
    let heads = cache.heads();
    check::same(OP, "n_kv_heads", heads.n_kv_heads, shape.n_kv_heads)?;
    check::same(OP, "head_dim", heads.head_dim, shape.head_dim)?;
    let mut m = 0;
    for sequence in sequences {
        cache.check(OP, sequence)?;
        m = m.max(sequence.first_row.saturating_add(sequence.n_rows));
    }
    let q = check::part(OP, "q", q, &[m, shape.q_width])?;
    let out = check::part_mut(OP, "out", out, &[m, shape.q_width])?;
    let tasks = tasks_of(sequences, shape, out)?;
    let work = sequences
        .iter()
        .map(|s| s.n_rows * s.n_context * shape.q_width)
        .sum();
    cpu.each(tasks, work, |task| task_forward(cpu, task, q, cache, shape));
    Ok(())
}

fn tasks_of<'a, 's>(
    sequences: &'s [SequenceSpan],
    shape: Shape,
    out: &'a mut [f32],
) -> Result<Vec<Task<'a, 's>>> {
    let mut pieces: Vec<Option<&mut [f32]>> = out
        .chunks_mut(shape.group_len * shape.head_dim)
        .map(Some)
        .collect();
    let mut tasks = Vec::with_capacity(sequences.len() * shape.n_kv_heads);
    for sequence in sequences.iter().filter(|sequence| sequence.n_rows > 0) {
        for kv_head in 0..shape.n_kv_heads {
            let mut out = Vec::with_capacity(sequence.n_rows * shape.group_len);
            for row in sequence.first_row..sequence.first_row + sequence.n_rows {
                let piece = pieces[row * shape.n_kv_heads + kv_head].take();
                let piece = piece.ok_or(Error::Setting {
                    op: OP,
                    what: "sequences",
                    expected: "of rows that do not overlap",
                })?;
                out.extend(piece.chunks_mut(shape.head_dim));
            }
            tasks.push(Task {
                sequence,
                kv_head,
                out,
            });
        }
    }
    Ok(tasks)
}

fn task_forward(cpu: &Cpu, mut task: Task<'_, '_>, q: &[f32], cache: &CpuKvCache, shape: Shape) {
    let SequenceSpan {
        first_row,
        n_rows,
        n_context,
        ..
    } = *task.sequence;
    if n_rows == 1 && cache.page_len() == one_row::PAGE_LEN {
        return one_row::attend(cpu, &mut task, q, cache, shape);
    }
    let mut room = cpu.scratch(shape.panels_len(n_context));
    let panels = pack_pages(cpu, cache, task.sequence, task.kv_head, shape, &mut room);
    let position = n_context - n_rows;
    let first_head = task.kv_head * shape.group_len;
    let at = |head: usize| first_row * shape.q_width + head * shape.head_dim;
    for g in 0..shape.group_len {
        let view = View::rows(&q[at(first_head + g)..], shape.q_width);
        let queries = QueryRows {
            view,
            len: n_rows,
            position,
        };
        let results = RowsOut {
            out: &mut task.out,
            lse: None,
            first: g,
            step: shape.group_len,
        };
        attend(cpu, queries, panels, results, shape);
    }
}

/// Packs a sequence's keys and values from its pages.
fn pack_pages<'a>(
    cpu: &Cpu,
    cache: &CpuKvCache,
    sequence: &SequenceSpan,
    kv_head: usize,
    shape: Shape,
    room: &'a mut [f32],
) -> KeyPanels<'a> {
    let (d, n_keys) = (shape.head_dim, sequence.n_context);
    let (room, _) = room.as_chunks_mut::<HALF_COLUMNS>();
    let (keys, values) = room.split_at_mut(2 * n_keys.div_ceil(TILE_COLUMNS) * d);
    if let Some(last) = n_keys.checked_sub(1) {
        // the columns past the last key are multiplied too, though nobody reads what comes of them: not with numbers from
        // other work, some of which are slow to multiply
        keys[2 * (last / TILE_COLUMNS) * d..]
            .iter_mut()
            .for_each(|row| row.fill(0.0));
    }
    let [mut key_room, mut value_room] = [(); 2].map(|()| cpu.scratch(d * cache.page_len()));
    for run in cache.runs(sequence, kv_head, n_keys) {
        let held = [
            run.keys(cpu.isa, &mut key_room),
            run.values(cpu.isa, &mut value_room),
        ];
        pack_run(cpu.isa, run, held, keys, values, d, n_keys);
    }
    KeyPanels { keys, values, n_keys }
}

versions! {
    /// Copies one page's keys and values to their places.
    fn pack_run(run: Run<'_>, held: [&[f32]; 2], keys: &mut [HalfRow], values: &mut [HalfRow], d: usize, n_keys: usize) {
        // a panel of keys is `[2][D][16]`, so half panels follow one another
        let (half, column) = (run.start / HALF_COLUMNS, run.start % HALF_COLUMNS);
        match run.page_len() {
            // a page that divides half a panel is copied whole, a register a row; nobody sees what lies past the last key
            8 => copy_keys::<8>(held[0], &mut keys[half * d..(half + 1) * d], column),
            16 => copy_keys::<16>(held[0], &mut keys[half * d..(half + 1) * d], column),
            _ => {
                for done in 0..run.len {
                    let (half, column) = ((run.start + done) / HALF_COLUMNS, (run.start + done) % HALF_COLUMNS);
                    for (out, keys) in keys[half * d..].iter_mut().zip(held[0].chunks_exact(run.page_len())) {
                        out[column] = keys[done];
                    }
                }
            }
        }
        for (token, value) in held[1].chunks_exact(d).take(run.len).enumerate() {
            let (whole, rest) = value.as_chunks::<HALF_COLUMNS>();
            for (half, part) in whole.iter().enumerate() {
                values[half * n_keys + run.start + token] = *part;
            }
            if !rest.is_empty() {
                let out = &mut values[whole.len() * n_keys + run.start + token];
                out[..rest.len()].copy_from_slice(rest);
                out[rest.len()..].fill(0.0);
            }
        }
    }
}

/// `half[i][column + j] = keys[i][j]` with keys `[D][L]`.
#[inline(always)]
fn copy_keys<const L: usize>(keys: &[f32], half: &mut [HalfRow], column: usize) {
    for (out, keys) in half.iter_mut().zip(keys.as_chunks::<L>().0) {
        if let Some(out) = out.as_chunks_mut::<L>().0.get_mut(column / L) {
            *out = *keys;
        }
    }
}
