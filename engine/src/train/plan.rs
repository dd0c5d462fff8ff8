//! Which rows each step sees, and in which parts they are run.
//!
//! Invariant: a step's micro-batches are a function of (rows, settings, seed, step): nothing is carried from step to
//! step, so that a resumed run sees what an undisturbed one sees.

use llamaduo_kernels::{Documents, NO_LABEL, random};

use super::config::TrainConfig;
use super::rows::Row;
use crate::memory::StepSizes;
use crate::model::MicroBatch;

/// Sets the order of the rows apart from the run's other random streams.
const ORDER_STREAM: u64 = 2;
const PACKING_STREAM: u64 = 3;

/// The whole run, laid out.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    rows: &'a [Row],
    /// Rows that are run together and counted as one in a batch: a single one, or a packed sequence.
    units: Vec<Vec<usize>>,
    batch_rows: usize,
    accumulation: usize,
    micro_batch_tokens: usize,
    seed: u64,
    n_steps: u32,
}

impl<'a> Plan<'a> {
    /// Lays out a run over `rows`, none of which is empty.
    pub(crate) fn new(rows: &'a [Row], config: &TrainConfig) -> Self {
        let units: Vec<Vec<usize>> = match config.packing {
            true => pack(rows, config.max_seq_len, config.seed),
            false => (0..rows.len()).map(|row| vec![row]).collect(),
        };
        let steps_per_epoch = units
            .len()
            .div_ceil(config.batch_rows.saturating_mul(config.accumulation));
        // A float-to-integer cast saturates, so an absurd number of epochs is bounded by it.
        let n_steps = (config.epochs * steps_per_epoch as f64).ceil() as u32;
        Self {
            rows,
            units,
            batch_rows: config.batch_rows,
            accumulation: config.accumulation,
            micro_batch_tokens: config.micro_batch_tokens,
            seed: config.seed,
            n_steps: config.max_steps.map_or(n_steps, |max| max.min(n_steps)),
        }
    }

    /// Optimizer steps of the run.
    pub(crate) fn n_steps(&self) -> u32 {
        self.n_steps
    }

    /// Most tokens a micro-batch can have.
    pub(crate) fn micro_batch_tokens_max(&self) -> usize {
        self.sizes().tokens(self.micro_batch_tokens)
    }

    /// What decides how many tokens that are.
    pub(crate) fn sizes(&self) -> StepSizes {
        let unit = self.units.iter().map(|unit| self.tokens(unit)).max().unwrap_or(0);
        StepSizes {
            longest: self.rows.iter().map(|row| row.ids.len()).max().unwrap_or(0),
            batch: unit.saturating_mul(self.batch_rows.min(self.units.len())),
        }
    }

    /// Tokens of the whole run, over all its steps.
    pub(crate) fn n_tokens(&self) -> u64 {
        let tokens = |units: &[usize]| -> u64 {
            units
                .iter()
                .map(|&unit| self.tokens(&self.units[unit]) as u64)
                .sum()
        };
        let n_epochs = self.n_steps as usize / self.steps_per_epoch();
        let rest = self.n_steps as usize % self.steps_per_epoch();
        let order = self.order(n_epochs);
        n_epochs as u64 * tokens(&order) + tokens(&order[..(rest * self.batch()).min(order.len())])
    }

    /// What step `step`, counted from 0, runs.
    pub(crate) fn micro_batches(&self, step: u32) -> Vec<MicroBatch> {
        self.units_of(step)
            .chunks(self.batch_rows)
            .flat_map(|units| {
                let rows = units
                    .iter()
                    .flat_map(|&unit| &self.units[unit])
                    .map(|&row| &self.rows[row]);
                micro_batches(rows, self.micro_batch_tokens)
            })
            .collect()
    }

    fn units_of(&self, step: u32) -> Vec<usize> {
        let (epoch, step) = (
            step as usize / self.steps_per_epoch(),
            step as usize % self.steps_per_epoch(),
        );
        self.order(epoch)
            .into_iter()
            .skip(step * self.batch())
            .take(self.batch())
            .collect()
    }

    /// The units of an epoch, in its order.
    fn order(&self, epoch: usize) -> Vec<usize> {
        permutation(
            random::key(&[self.seed, ORDER_STREAM, epoch as u64]),
            self.units.len(),
        )
    }

    /// Units of a step.
    fn batch(&self) -> usize {
        self.batch_rows.saturating_mul(self.accumulation)
    }

    fn steps_per_epoch(&self) -> usize {
        self.units.len().div_ceil(self.batch()).max(1)
    }

    fn tokens(&self, unit: &[usize]) -> usize {
        unit.iter().map(|&row| self.rows[row].ids.len()).sum()
    }
}

/// Cuts a sequence of rows into micro-batches of at most `tokens_max` tokens, or of one longer row.
pub(crate) fn micro_batches<'a>(
    rows: impl IntoIterator<Item = &'a Row>,
    tokens_max: usize,
) -> Vec<MicroBatch> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    let mut tokens = 0;
    for row in rows {
        tokens += row.ids.len();
        match groups.last_mut() {
            Some(group) if tokens <= tokens_max => group.push(row),
            _ => {
                groups.push(vec![row]);
                tokens = row.ids.len();
            }
        }
    }
    groups.iter().map(|group| MicroBatch::of_rows(group)).collect()
}

impl MicroBatch {
    /// Rows one after another, each its own document.
    fn of_rows(rows: &[&Row]) -> Self {
        Self {
            ids: rows.iter().flat_map(|row| row.ids.iter().copied()).collect(),
            labels: rows.iter().flat_map(|row| row.labels.iter().copied()).collect(),
            documents: Documents::of_lengths(rows.iter().map(|row| row.ids.len())),
        }
    }

    /// Tokens that are predicted.
    pub(crate) fn n_labels(&self) -> usize {
        self.labels.iter().filter(|&&label| label != NO_LABEL).count()
    }
}

/// Fills sequences of at most `len_max` tokens with whole rows, in a random order.
fn pack(rows: &[Row], len_max: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut sequences: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for row in permutation(random::key(&[seed, PACKING_STREAM]), rows.len()) {
        tokens += rows[row].ids.len();
        match sequences.last_mut() {
            Some(sequence) if tokens <= len_max => sequence.push(row),
            _ => {
                sequences.push(vec![row]);
                tokens = rows[row].ids.len();
            }
        }
    }
    sequences
}

/// A permutation of `0..n`, by Fisher and Yates.
fn permutation(key: u64, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // Scaling 32 random bits has a bias below n / 2^32.
        let other = (u64::from(random::word(key, last as u64)) * (last as u64 + 1)) >> 32;
        order.swap(last, other as usize);
    }
    order
}

#[cfg(test)]
mod tests;
