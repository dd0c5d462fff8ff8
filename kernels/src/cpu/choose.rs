//! The next tokens of a step's rows, by the rule of [`sampling`](crate::sampling).
//!
//! Invariant: a row's token depends on its own logits and settings alone.

use super::{Cpu, check};
use crate::error::{Error, Result};
use crate::sampling::{self, SampleRow, SampleSpec};

const OP: &str = "choose";

/// What the rows of a step are chosen by, and their tokens.
#[derive(Debug)]
pub struct CpuChoices {
    n_rows_max: usize,
    n_vocab: usize,
    rows: Vec<Row>,
    /// `None` where the largest logit was not finite.
    ids: Vec<Option<u32>>,
}

#[derive(Debug)]
struct Row {
    spec: SampleSpec,
    random: u64,
    /// Distinct tokens that the penalty falls on.
    penalized: Vec<u32>,
}

impl CpuChoices {
    pub(super) fn new(n_rows_max: usize) -> Self {
        Self {
            n_rows_max,
            n_vocab: 0,
            rows: Vec::new(),
            ids: Vec::new(),
        }
    }

    pub(super) fn write(&mut self, rows: &[SampleRow<'_>], n_vocab: usize) -> Result<()> {
        sampling::check(rows, n_vocab)?;
        check::setting(
            OP,
            "rows",
            "no more than were allocated",
            rows.len() <= self.n_rows_max,
        )?;
        self.n_vocab = n_vocab;
        self.rows = rows
            .iter()
            .map(|row| Row {
                spec: row.spec,
                random: row.random,
                penalized: row.penalized(n_vocab),
            })
            .collect();
        self.ids = vec![None; rows.len()];
        Ok(())
    }

    pub(super) fn read(&self, ids: &mut [u32]) -> Result<()> {
        let chosen = check::part(OP, "choices", &self.ids, &[ids.len()])?;
        for (row, (id, chosen)) in ids.iter_mut().zip(chosen).enumerate() {
            *id = chosen.ok_or(Error::NotFinite { op: OP, row })?;
        }
        Ok(())
    }
}

pub(super) fn forward(cpu: &Cpu, choices: &mut CpuChoices, logits: &[f32]) -> Result<()> {
    let CpuChoices {
        n_vocab, rows, ids, ..
    } = choices;
    let logits = check::part(OP, "logits", logits, &[rows.len(), *n_vocab])?;
    let items: Vec<_> = rows
        .iter()
        .zip(ids)
        .zip(logits.chunks((*n_vocab).max(1)))
        .collect();
    let work = logits.len();
    cpu.each(items, work, |((row, id), logits)| *id = row.choose(logits));
    Ok(())
}

impl Row {
    fn choose(&self, logits: &[f32]) -> Option<u32> {
        if self.penalized.is_empty() {
            return sampling::choose(logits, self.spec, self.random);
        }
        let mut logits = logits.to_vec();
        for &id in &self.penalized {
            let logit = &mut logits[id as usize];
            *logit = sampling::penalize(*logit, self.spec.repetition_penalty);
        }
        sampling::choose(&logits, self.spec, self.random)
    }
}
