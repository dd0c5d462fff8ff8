//! Attention of one row of a sequence, as decoding asks: its heads go over the pages where they lie.
//!
//! Invariant: the same chains as by way of packed panels, bit for bit: scores over D, the output over the keys from the
//! first visible one on.

use super::{Shape, Task};
use crate::cpu::attention::{scale_row, softmax_row};
use crate::cpu::kv_cache::Run;
use crate::cpu::simd::{KeyRow, SCORED_HEADS_MAX, Scored, score_pages, versions};
use crate::cpu::{Cpu, CpuKvCache};

/// Tokens of a page, the length that the engine's pages have.
pub(super) const PAGE_LEN: usize = size_of::<KeyRow>() / size_of::<f32>();

/// Pages between the one in work and the one that is asked for: a page of 64 dimensions has two kilobytes.
const AHEAD: usize = 4;

/// `out = softmax(scale * q · keysᵀ) · values` of the sequence's only row, for the heads of one key head.
pub(super) fn attend(cpu: &Cpu, task: &mut Task<'_, '_>, q: &[f32], cache: &CpuKvCache, shape: Shape) {
    let (d, n_keys) = (shape.head_dim, task.sequence.n_context);
    let first_key = shape.first_key(n_keys.saturating_sub(1));
    let first_page = first_key / PAGE_LEN;
    let runs = || cache.runs(task.sequence, task.kv_head, n_keys).skip(first_page);
    let visible = first_key - first_page * PAGE_LEN..n_keys - first_page * PAGE_LEN;
    let step = visible.end.next_multiple_of(PAGE_LEN);

    let mut scores = cpu.scratch(shape.group_len * step);
    let mut sums = cpu.scratch(SCORED_HEADS_MAX * d);
    let mut rooms = [(); 2].map(|()| cpu.scratch(d * PAGE_LEN));
    let at = task.sequence.first_row * shape.q_width + task.kv_head * shape.group_len * d;
    let heads = q[at..at + shape.group_len * d].chunks(SCORED_HEADS_MAX * d);
    for (q, out) in heads.zip(task.out.chunks_mut(SCORED_HEADS_MAX)) {
        let scores = &mut scores[..out.len() * step];
        let (mut pages, mut ahead) = (runs(), runs().skip(AHEAD));
        let mut column = 0;
        while let Some(page) = pages.next() {
            ahead.by_ref().take(2).for_each(Run::prefetch_keys);
            // a second page beside it hides the latency of the chains
            let [room, other_room] = &mut rooms;
            let second = pages
                .next()
                .map(|run| run.keys(cpu.isa, other_room).as_chunks().0);
            let keys = [Some(page.keys(cpu.isa, room).as_chunks().0), second];
            let scored = Scored {
                q,
                d,
                pages: keys,
                column,
            };
            score_pages(cpu.isa, scored, scores);
            column += 2 * PAGE_LEN;
        }
        runs().take(AHEAD).for_each(Run::prefetch_values);
        let mut factors = [[0f32; 2]; SCORED_HEADS_MAX];
        for (scores, factor) in scores.chunks_exact_mut(step).zip(&mut factors) {
            softmax_row(cpu.isa, scores, visible.clone(), shape.scale, factor);
        }
        let sums = &mut sums[..out.len() * d];
        sums.fill(0.0);
        let mut ahead = runs().skip(AHEAD);
        for (page, run) in runs().enumerate() {
            ahead.next().into_iter().for_each(Run::prefetch_values);
            let probabilities = &scores[page * PAGE_LEN..];
            let values = run.values(cpu.isa, &mut rooms[0]);
            add_values(cpu.isa, probabilities, step, &values[..run.len * d], d, sums);
        }
        for ((out, sums), [sum, _]) in out.iter_mut().zip(sums.chunks_exact(d)).zip(&factors) {
            scale_row(cpu.isa, out, sums, 1.0 / sum);
        }
    }
}

versions! {
    /// `sums[head] += probabilities[head][key] * values[key]` for each key of a page, in order; `probabilities` of the
    /// heads are `step` apart.
    fn add_values(probabilities: &[f32], step: usize, values: &[f32], d: usize, sums: &mut [f32]) {
        for (head, sums) in sums.chunks_exact_mut(d.max(1)).enumerate() {
            let probabilities = &probabilities[head * step..];
            for (part, sums) in sums.chunks_mut(PART_LEN).enumerate() {
                let at = part * PART_LEN;
                match sums.as_chunks_mut().0.first_mut() {
                    Some(sums) if d.is_multiple_of(PART_LEN) => add_part(probabilities, values, d, at, sums),
                    _ => {
                        for (value, p) in values.chunks_exact(d).zip(probabilities) {
                            for (sum, value) in sums.iter_mut().zip(&value[at..]) {
                                *sum = p.mul_add(*value, *sum);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Columns of the output that are summed together.
const PART_LEN: usize = 64;

#[inline(always)]
fn add_part(probabilities: &[f32], values: &[f32], d: usize, at: usize, sums: &mut [f32; PART_LEN]) {
    let mut held = *sums;
    for (value, p) in values.chunks_exact(d).zip(probabilities) {
        let Some(value) = value[at..].first_chunk::<PART_LEN>() else {
            return;
        };
        for j in 0..PART_LEN {
            held[j] = p.mul_add(value[j], held[j]);
        }
    }
    *sums = held;
}
