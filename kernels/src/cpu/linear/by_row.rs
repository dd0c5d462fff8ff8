//! LoRA pairs that differ from row to row.
//!
//! Invariant: a row's chain goes through the weight and then through its own pair, as with [`Lora::One`]: that it lies in
//! memory in between changes no bit.
//!
//! [`Lora::One`]: crate::backend::Lora::One

use std::ops::Range;

use super::{Linear, OP, Pair};
use crate::backend::{LoraByRow, NO_PAIR};
use crate::cpu::gemm::{Block, Chains, Left, Link, Start, View};
use crate::cpu::{Cpu, check};
use crate::error::Result;

/// Rows that follow one another and have the same pair.
pub(super) struct Run<'a> {
    rows: Range<usize>,
    pair: Pair<'a>,
}

/// The rows that have a pair, in their order.
pub(super) fn runs<'a>(lora: &'a mut LoraByRow<'_, Cpu>, [m, n, k]: [usize; 3]) -> Result<Vec<Run<'a>>> {
    let of_row = check::part(OP, "of_row", lora.of_row, &[m])?;
    let ranks = lora.pairs.iter().flatten().map(|slot| slot.rank);
    let mut room = check::part_mut(OP, "h", lora.h, &[m, ranks.max().unwrap_or(0)])?;
    let mut runs = Vec::new();
    let mut start = 0;
    for same in of_row.chunk_by(|a, b| a == b) {
        let rows = start..start + same.len();
        start = rows.end;
        if same[0] == NO_PAIR {
            continue;
        }
        check::below(OP, "of_row", &same[..1], lora.pairs.len())?;
        let Some(slot) = lora.pairs[same[0] as usize] else {
            continue;
        };
        // of each run at most rows times the largest rank
        let (h, rest) = room.split_at_mut(rows.len() * slot.rank);
        room = rest;
        let pair = Pair::new(h, lora.params, slot, [n, k])?;
        runs.push(Run { rows, pair });
    }
    Ok(runs)
}

/// `y += scale * (x · Aᵀ) · Bᵀ` of all runs of rows.
pub(super) fn add(cpu: &Cpu, x: &[f32], linears: Vec<Linear<'_>>) {
    let mut runs: Vec<(&mut [f32], Run<'_>, usize)> = Vec::new();
    for Linear {
        mut y,
        weight,
        runs: own,
        ..
    } in linears
    {
        let (n, k) = weight.shape();
        let mut row = 0;
        for run in own {
            let (_, from) = y.split_at_mut((run.rows.start - row) * n);
            let (part, rest) = from.split_at_mut(run.rows.len() * n);
            (row, y) = (run.rows.end, rest);
            runs.push((part, run, k));
        }
    }
    if runs.is_empty() {
        return;
    }
    down(cpu, x, &mut runs);
    up(cpu, runs);
}

/// `h = x · Aᵀ`.
fn down(cpu: &Cpu, x: &[f32], runs: &mut [(&mut [f32], Run<'_>, usize)]) {
    let packed: Vec<Left<'_>> = runs
        .iter()
        .map(|(_, Run { rows, .. }, k)| cpu.pack(View::rows(&x[rows.start * k..], *k), rows.len(), *k))
        .collect();
    let links: Vec<[Link<'_>; 1]> = (runs.iter().zip(&packed))
        .map(|((_, Run { pair, .. }, k), left)| {
            [Link {
                left,
                right: pair.down(*k),
            }]
        })
        .collect();
    let results = (runs.iter_mut().zip(&links)).map(|((_, Run { rows, pair }, _), links)| Chains {
        c: Block::dense(pair.h, rows.len(), pair.rank),
        links,
        start: Start::Zero,
    });
    cpu.multiply_all(results.collect());
}

/// `y += scale * h · Bᵀ`.
fn up(cpu: &Cpu, runs: Vec<(&mut [f32], Run<'_>, usize)>) {
    let (ys, runs): (Vec<_>, Vec<_>) = runs.into_iter().map(|(y, run, _)| (y, run)).unzip();
    let scaled: Vec<Left<'_>> = runs
        .iter()
        .map(|Run { rows, pair }| pair.scaled(cpu, rows.len()))
        .collect();
    let links: Vec<[Link<'_>; 1]> = (runs.iter().zip(&scaled))
        .map(|(Run { pair, .. }, left)| {
            [Link {
                left,
                right: pair.up(),
            }]
        })
        .collect();
    let results = ys.into_iter().zip(runs.iter().zip(&links));
    let results = results.map(|(c, (Run { rows, .. }, links))| Chains {
        c: {
            let n = c.len() / rows.len();
            Block::dense(c, rows.len(), n)
        },
        links,
        start: Start::Current,
    });
    cpu.multiply_all(results.collect());
}
