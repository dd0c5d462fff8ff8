//! Supervised fine-tuning of an adapter on conversations.
//!
//! Invariant: the adapter's bytes are a function of (model, rows, settings): a run that is killed and resumed from any
//! of its checkpoints ends with the same bytes as one that was not.

mod checkpoint;
mod config;
mod plan;
mod rows;
mod schedule;
#[cfg(test)]
mod tests;
mod trainer;

use std::ops::ControlFlow;

use llamaduo_kernels::{Backend, random};
use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoint;
pub use config::{LossOn, Schedule, TrainConfig};
pub use rows::Conversation;

pub(crate) use plan::micro_batches;
pub(crate) use rows::{Row, Rows, encode_row};
pub(crate) use trainer::{OptimizerState, StepSettings, Trainer};

use checkpoint::RunIdentity;
use plan::Plan;

use crate::error::{Error, Result};
use crate::local_model::LocalModel;
use crate::lora::{Adapter, LoraLayout};
use crate::memory::StepSizes;
use crate::model::{DropoutStream, Keep};

/// Sets dropout apart from the run's other random streams.
const DROPOUT_STREAM: u64 = 4;

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum TrainEvent<'a> {
    /// Before the first step.
    Started {
        /// Optimizer steps of the whole run.
        n_steps: u32,
        /// Steps that a checkpoint has already done.
        n_done: u32,
        /// Tokens of all steps together.
        n_tokens: u64,
        /// Rows that are learnt from.
        n_samples: usize,
        /// Rows of those that were cut to the sequence's length, and so have lost their end.
        n_cut: usize,
        /// Further rows that have no token to learn, perhaps because they were cut before it.
        n_dropped: usize,
    },
    /// After each step.
    Step {
        /// The step.
        log: StepLog,
        /// Steps of the whole run.
        n_steps: u32,
    },
    /// The state after the step told last, of which the next step's gradients have shown that it is good; keep it, and
    /// the run can go on from here.
    Checkpoint(&'a Checkpoint),
}

/// What is known of a finished step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// From 1.
    pub step: u32,
    /// Mean over the predicted tokens of the step, before its update.
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Tokens run in this step.
    pub tokens: u64,
}

/// How a run ended.
#[derive(Debug)]
pub enum TrainOutcome {
    /// All steps are done.
    Finished(Trained),
    /// The observer broke off; the run can go on from here.
    Stopped(Checkpoint),
}

/// A finished run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// What was learnt.
    pub adapter: Adapter,
    /// Every step, also those before a resume.
    pub log: Vec<StepLog>,
    /// Rows that were learnt from.
    pub samples: usize,
    /// Rows of those that were cut to the sequence's length, and so have lost their end.
    pub cut: usize,
    /// Further rows that have no token to learn, perhaps because they were cut before it.
    pub dropped: usize,
    /// Tokens of all steps together.
    pub tokens: u64,
}

/// Trains an adapter on `rows`, from `init` or from fresh values, or goes on from `resume`.
///
/// `observe` sees every event and may break off. Fails before the first step on settings without a meaning, on rows
/// of which none is left to learn from, on an `init` of another shape and on a checkpoint of another run; fails at a
/// step that leaves the finite numbers, however near to the end.
pub fn train<B: Backend>(
    model: &LocalModel<B>,
    rows: &[Conversation],
    config: &TrainConfig,
    init: Option<&Adapter>,
    resume: Option<&Checkpoint>,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<TrainOutcome> {
    let encoded = encode(model, rows, config)?;
    train_rows(model, &encoded, config, init, resume, observe)
}

/// How long the rows of such a run are, for a plan of its memory. Fails as [`train`] would on the same rows.
pub fn step_sizes<B: Backend>(
    model: &LocalModel<B>,
    rows: &[Conversation],
    config: &TrainConfig,
) -> Result<StepSizes> {
    let encoded = encode(model, rows, config)?;
    Ok(Plan::new(&encoded.learnt, config).sizes())
}

/// The rows as tokens, cut to what is learnt from.
fn encode<B: Backend>(model: &LocalModel<B>, rows: &[Conversation], config: &TrainConfig) -> Result<Rows> {
    config.validate()?;
    let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
    let len_max = config.max_seq_len.min(model.config().context_len);
    let mut encoded = Rows::default();
    for row in rows {
        let row = encode_row(tokenizer, template, &row.messages, config.loss_on)?;
        encoded.push(row, len_max);
    }
    if encoded.learnt.is_empty() && encoded.n_dropped > 0 {
        return Err(Error::AllRowsDropped {
            n_rows: encoded.n_dropped,
            len_max,
        });
    }
    Ok(encoded)
}

/// [`train`] on rows that are already tokens.
pub(crate) fn train_rows<B: Backend>(
    model: &LocalModel<B>,
    rows: &Rows,
    config: &TrainConfig,
    init: Option<&Adapter>,
    resume: Option<&Checkpoint>,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<TrainOutcome> {
    config.validate()?;
    if rows.learnt.is_empty() {
        return Err(Error::NothingToLearn);
    }
    let plan = Plan::new(&rows.learnt, config);
    let layout = LoraLayout::new(model.config(), &config.lora);
    let identity = RunIdentity::new(model.identity(), config, &rows.learnt, init)?;
    let (state, log) = match resume {
        Some(checkpoint) => {
            checkpoint.check(&identity, layout.len())?;
            (checkpoint.state.clone(), checkpoint.log.clone())
        }
        None => (
            OptimizerState::start(first_params(model, config, init)?),
            Vec::new(),
        ),
    };
    let keep = if config.recompute { Keep::Inputs } else { Keep::All };
    let trainer = Trainer::new(model.inner(), layout, &state, plan.micro_batch_tokens_max(), keep)?;
    drop(state);

    let n_tokens = plan.n_tokens();
    let flow = observe(TrainEvent::Started {
        n_steps: plan.n_steps(),
        n_done: log.len() as u32,
        n_tokens,
        n_samples: rows.learnt.len(),
        n_cut: rows.n_cut,
        n_dropped: rows.n_dropped,
    });
    let mut run = Run {
        trainer,
        plan,
        config,
        identity,
        log,
    };
    if let ControlFlow::Break(stopped) = run.go_on(flow, observe)? {
        return Ok(TrainOutcome::Stopped(stopped));
    }
    run.check_finite()?;
    let params = run.trainer.params()?;
    Ok(TrainOutcome::Finished(Trained {
        adapter: Adapter::from_params(model.config(), config.lora.clone(), params)?,
        log: run.log,
        samples: rows.learnt.len(),
        cut: rows.n_cut,
        dropped: rows.n_dropped,
        tokens: n_tokens,
    }))
}

fn first_params<B: Backend>(
    model: &LocalModel<B>,
    config: &TrainConfig,
    init: Option<&Adapter>,
) -> Result<Vec<f32>> {
    let Some(init) = init else {
        return Ok(Adapter::init(model.config(), &config.lora, config.seed)?
            .params()
            .to_vec());
    };
    let layout = LoraLayout::new(model.config(), &config.lora);
    if *init.layout() != layout {
        return Err(Error::AdapterMismatch {
            expected: format!(
                "rank {}, alpha {} on {:?}",
                config.lora.rank, config.lora.alpha, config.lora.targets
            ),
            found: format!("{:?}", init.config()),
        });
    }
    Ok(init.params().to_vec())
}

/// A run between its first step and its last.
struct Run<'a, B: Backend> {
    trainer: Trainer<'a, B>,
    plan: Plan<'a>,
    config: &'a TrainConfig,
    identity: RunIdentity,
    /// The steps done.
    log: Vec<StepLog>,
}

impl<B: Backend> Run<'_, B> {
    /// Runs the steps that are left. Breaks with the state when the observer does.
    fn go_on(
        &mut self,
        mut flow: ControlFlow<()>,
        observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<Checkpoint>> {
        let (n_done, n_steps) = (self.log.len() as u32, self.plan.n_steps());
        for step in n_done..n_steps {
            if flow.is_break() {
                self.check_finite()?;
                return Ok(ControlFlow::Break(self.checkpoint()?));
            }
            let batches = self.plan.micro_batches(step);
            let settings = self.settings(step);
            let measured = self.trainer.measure(&batches, settings)?;
            // Only now is it known that the state after the step before is good: finite parameters may still be so
            // large that nothing can be computed with them.
            if step > n_done && self.is_due(step) {
                let checkpoint = self.checkpoint()?;
                if observe(TrainEvent::Checkpoint(&checkpoint)).is_break() {
                    return Ok(ControlFlow::Break(checkpoint));
                }
            }
            self.trainer.update(self.config, settings, measured)?;
            let log = StepLog {
                step: settings.number,
                loss: measured.loss,
                learning_rate: settings.learning_rate,
                grad_norm: measured.grad_norm,
                tokens: batches.iter().map(|batch| batch.ids.len() as u64).sum(),
            };
            self.log.push(log);
            flow = observe(TrainEvent::Step { log, n_steps });
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What step `step`, counted from 0, adds to the settings of the run.
    fn settings(&self, step: u32) -> StepSettings {
        let config = self.config;
        StepSettings {
            number: step + 1,
            learning_rate: schedule::learning_rate(config, step, self.plan.n_steps()),
            dropout: Some(DropoutStream {
                rate: config.lora.dropout,
                key: random::key(&[config.seed, DROPOUT_STREAM, u64::from(step)]),
            }),
        }
    }

    /// Whether the state after `n_done` steps is to be given out.
    fn is_due(&self, n_done: u32) -> bool {
        let period = self.config.checkpoint_every_steps;
        period > 0 && n_done.is_multiple_of(period)
    }

    fn checkpoint(&self) -> Result<Checkpoint> {
        let state = self.trainer.state()?;
        Ok(Checkpoint::new(self.identity.clone(), state, self.log.clone()))
    }

    /// Fails when the last step has left the finite numbers.
    fn check_finite(&self) -> Result<()> {
        match self.log.last() {
            Some(last) if !self.trainer.is_finite()? => Err(Error::Diverged {
                step: last.step,
                loss: last.loss,
                grad_norm: last.grad_norm,
            }),
            _ => Ok(()),
        }
    }
}
