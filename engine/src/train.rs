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
pub(crate) use rows::{Row, encode_row};
pub(crate) use trainer::{OptimizerState, StepSettings, Trainer};

use checkpoint::RunIdentity;
use plan::Plan;

use crate::error::{Error, Result};
use crate::local_model::LocalModel;
use crate::lora::{Adapter, LoraLayout};
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
    },
    /// After each step.
    Step {
        /// The step.
        log: StepLog,
        /// Steps of the whole run.
        n_steps: u32,
    },
    /// The state after the step just told; keep it, and the run can go on from here.
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
    /// Tokens of all steps together.
    pub tokens: u64,
}

/// Trains an adapter on `rows`, from `init` or from fresh values, or goes on from `resume`.
///
/// `observe` sees every event and may break off. Fails before the first step on settings without a meaning, on rows
/// of which none is left to learn from, on an `init` of another shape and on a checkpoint of another run; fails at a
/// step whose loss is not a number, of which the last checkpoint given out is still good.
pub fn train<B: Backend>(
    model: &LocalModel<B>,
    rows: &[Conversation],
    config: &TrainConfig,
    init: Option<&Adapter>,
    resume: Option<&Checkpoint>,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<TrainOutcome> {
    config.validate()?;
    let (tokenizer, template) = (model.tokenizer()?, model.chat_template()?);
    let len_max = config.max_seq_len.min(model.config().context_len);
    let mut encoded = Vec::with_capacity(rows.len());
    for row in rows {
        encoded.push(encode_row(
            tokenizer,
            template,
            &row.messages,
            config.loss_on,
            len_max,
        )?);
    }
    encoded.retain(|row| row.n_labels() > 0);
    train_rows(model, &encoded, config, init, resume, observe)
}

/// [`train`] on rows that are already tokens.
pub(crate) fn train_rows<B: Backend>(
    model: &LocalModel<B>,
    rows: &[Row],
    config: &TrainConfig,
    init: Option<&Adapter>,
    resume: Option<&Checkpoint>,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<TrainOutcome> {
    config.validate()?;
    if rows.is_empty() {
        return Err(Error::NothingToLearn);
    }
    let plan = Plan::new(rows, config);
    let layout = LoraLayout::new(model.config(), &config.lora);
    let identity = RunIdentity::new(model.identity(), config, rows, init)?;
    let (state, mut log) = match resume {
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
    let mut trainer = Trainer::new(model.inner(), layout, &state, plan.micro_batch_tokens_max(), keep)?;
    drop(state);

    let (n_steps, n_tokens) = (plan.n_steps(), plan.n_tokens());
    let n_done = log.len() as u32;
    let mut flow = observe(TrainEvent::Started {
        n_steps,
        n_done,
        n_tokens,
        n_samples: rows.len(),
    });
    for step in n_done..n_steps {
        if flow.is_break() {
            return Ok(TrainOutcome::Stopped(Checkpoint::new(
                identity,
                trainer.state()?,
                log,
            )));
        }
        log.push(run_step(&mut trainer, &plan, config, step)?);
        flow = observe(TrainEvent::Step {
            log: log[log.len() - 1],
            n_steps,
        });
        let number = step + 1;
        let is_due =
            config.checkpoint_every_steps > 0 && number.is_multiple_of(config.checkpoint_every_steps);
        if flow.is_continue() && is_due && number < n_steps {
            let checkpoint = Checkpoint::new(identity.clone(), trainer.state()?, log.clone());
            flow = observe(TrainEvent::Checkpoint(&checkpoint));
        }
    }
    let adapter = Adapter::from_params(model.config(), config.lora.clone(), trainer.params()?)?;
    Ok(TrainOutcome::Finished(Trained {
        adapter,
        log,
        samples: rows.len(),
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

fn run_step<B: Backend>(
    trainer: &mut Trainer<'_, B>,
    plan: &Plan<'_>,
    config: &TrainConfig,
    step: u32,
) -> Result<StepLog> {
    let batches = plan.micro_batches(step);
    let learning_rate = schedule::learning_rate(config, step, plan.n_steps());
    let dropout = DropoutStream {
        rate: config.lora.dropout,
        key: random::key(&[config.seed, DROPOUT_STREAM, u64::from(step)]),
    };
    let settings = StepSettings {
        number: step + 1,
        learning_rate,
        dropout: Some(dropout),
    };
    let result = trainer.step(&batches, config, settings)?;
    let tokens = batches.iter().map(|batch| batch.ids.len() as u64).sum();
    Ok(StepLog {
        step: step + 1,
        loss: result.loss,
        learning_rate,
        grad_norm: result.grad_norm,
        tokens,
    })
}
