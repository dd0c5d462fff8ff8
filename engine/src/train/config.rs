//! What a training run is asked to do.
//!
//! Invariant: a validated configuration has a meaning for every step; the defaults are the paper's recipe.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lora::LoraConfig;

/// Settings of supervised fine-tuning. With the model, the rows and the number of threads they decide the adapter's
/// bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Size and place of the adapter.
    pub lora: LoraConfig,
    /// Times that every row is seen; may be a fraction.
    pub epochs: f64,
    /// Ends the run earlier; the schedule then ends there too.
    pub max_steps: Option<u32>,
    /// Highest learning rate of the schedule.
    pub learning_rate: f64,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Part of the steps during which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// AdamW's decoupled decay.
    pub weight_decay: f32,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub epsilon: f64,
    /// Gradients of a larger norm are scaled down to it; `None` never does.
    pub max_grad_norm: Option<f32>,
    /// Rows (with `packing`: packed sequences) of one forward and backward.
    pub batch_rows: usize,
    /// Such batches in one optimizer step.
    pub accumulation: usize,
    /// Longer rows are cut to this many tokens; also the length of a packed sequence.
    pub max_seq_len: usize,
    /// Which tokens are learnt.
    pub loss_on: LossOn,
    /// Joins whole rows to sequences of up to `max_seq_len` tokens; documents never see each other.
    pub packing: bool,
    /// Decides the adapter's first values, the order of the rows and the dropout.
    pub seed: u64,
    /// A checkpoint is given out after every so many steps; 0 for never.
    pub checkpoint_every_steps: u32,
    /// Makes activations again in the backward instead of keeping them: a third slower, a fraction of the memory,
    /// the same bytes.
    pub recompute: bool,
    /// A batch of more tokens is run in parts, which bounds memory; one row is never divided.
    pub micro_batch_tokens: usize,
}

/// Which tokens take part in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// All but the first: what the paper's reference implementation does.
    WholeSequence,
    /// What the assistant says, its end of turn included.
    ResponseOnly,
}

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine, down to 0 after the last step.
    Cosine,
    /// Stays.
    Constant,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lora: LoraConfig::default(),
            epochs: 10.0,
            max_steps: None,
            learning_rate: 2e-4,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.1,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: Some(1.0),
            batch_rows: 4,
            accumulation: 2,
            max_seq_len: 2048,
            loss_on: LossOn::WholeSequence,
            packing: false,
            seed: 42,
            checkpoint_every_steps: 100,
            recompute: false,
            // Large enough that the matrix products run at full speed, small enough for 30 layers' activations of
            // a small model to stay below half a gigabyte.
            micro_batch_tokens: 512,
        }
    }
}

impl TrainConfig {
    /// Checks ranges; the error names the field.
    pub fn validate(&self) -> Result<()> {
        self.lora.validate()?;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        let warmup = (0.0..=1.0).contains(&self.warmup_ratio);
        let decay = self.weight_decay.is_finite() && self.weight_decay >= 0.0;
        check("epochs", self.epochs, positive(self.epochs), "a positive number")?;
        check(
            "learning_rate",
            self.learning_rate,
            positive(self.learning_rate),
            "a positive number",
        )?;
        check("warmup_ratio", self.warmup_ratio, warmup, "between 0 and 1")?;
        check("weight_decay", self.weight_decay, decay, "0 or more")?;
        check(
            "beta1",
            self.beta1,
            fraction(self.beta1),
            "at least 0 and below 1",
        )?;
        check(
            "beta2",
            self.beta2,
            fraction(self.beta2),
            "at least 0 and below 1",
        )?;
        check(
            "epsilon",
            self.epsilon,
            positive(self.epsilon),
            "a positive number",
        )?;
        if let Some(norm) = self.max_grad_norm {
            check(
                "max_grad_norm",
                norm,
                positive(norm.into()),
                "a positive number, or absent for no clipping",
            )?;
        }
        check("max_steps", 0, self.max_steps != Some(0), "at least 1, or absent")?;
        check("batch_rows", self.batch_rows, self.batch_rows > 0, "at least 1")?;
        check(
            "accumulation",
            self.accumulation,
            self.accumulation > 0,
            "at least 1",
        )?;
        check(
            "max_seq_len",
            self.max_seq_len,
            self.max_seq_len >= 2,
            "at least 2",
        )?;
        check(
            "micro_batch_tokens",
            self.micro_batch_tokens,
            self.micro_batch_tokens > 0,
            "at least 1",
        )
    }
}

fn check(field: &'static str, found: impl ToString, holds: bool, expected: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::TrainConfig {
            field,
            expected: expected.to_owned(),
            found: found.to_string(),
        }),
    }
}
