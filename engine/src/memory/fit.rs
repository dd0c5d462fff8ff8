//! What to change so that a device's memory holds what is to be done.
//!
//! Invariant: what changes no result is changed first, and nothing that the user has to decide is changed at all: that is
//! named instead.

use super::{Base, GenerationBatch, TrainingStep};
use crate::error::{Error, Result};
use crate::generate::BatchOptions;
use crate::local_model::BaseQuant;
use crate::lora::LoraConfig;
use crate::train::TrainConfig;

/// Shorter samples are not worth naming: no dataset has such.
const TOKENS_MIN: usize = 32;

/// How long the rows of a training run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSizes {
    /// Tokens of the longest row, which is never divided.
    pub longest: usize,
    /// Tokens of the rows of one batch, at most.
    pub batch: usize,
}

impl StepSizes {
    /// Most tokens that are run at once.
    pub fn tokens(self, micro_batch_tokens: usize) -> usize {
        self.longest.max(micro_batch_tokens).min(self.batch)
    }
}

/// Fails where `room` bytes do not even hold the base.
pub fn fit_base(base: Base<'_>, room: u64) -> Result<()> {
    let needed = base.alone().bytes();
    if needed <= room {
        return Ok(());
    }
    Err(Error::NotEnoughMemory {
        what: "the base model alone".to_owned(),
        needed,
        room,
        remedy: with_base(base, Vec::new(), |base| base.alone().bytes() <= room, || needed),
    })
}

/// `config` as it is where `room` bytes hold a step of it; else with recomputation, which changes no byte of the result;
/// else with smaller micro-batches too. Fails where one row alone does not fit, and names what would.
pub fn fit_training(
    base: Base<'_>,
    config: &TrainConfig,
    sizes: StepSizes,
    room: u64,
) -> Result<TrainConfig> {
    let mut fitted = config.clone();
    loop {
        let tokens = sizes.tokens(fitted.micro_batch_tokens);
        let step = TrainingStep {
            lora: &fitted.lora,
            tokens,
            recompute: fitted.recompute,
        };
        let needed = base.training(step).bytes();
        if needed <= room {
            return Ok(fitted);
        }
        if !fitted.recompute {
            fitted.recompute = true;
        } else if tokens > sizes.longest {
            fitted.micro_batch_tokens = (tokens / 2).max(sizes.longest).max(1);
        } else {
            return Err(Error::NotEnoughMemory {
                what: format!("training on rows of up to {tokens} tokens"),
                needed,
                room,
                remedy: training_remedy(base, step, room),
            });
        }
    }
}

/// `batch` as it is where `room` bytes hold it; else with fewer responses at once. Fails where a single one does not fit,
/// and names what would.
pub fn fit_generation(base: Base<'_>, batch: GenerationBatch<'_>, room: u64) -> Result<BatchOptions> {
    let mut fitted = batch;
    loop {
        let needed = base.generation(fitted).bytes();
        if needed <= room {
            return Ok(fitted.options);
        }
        if fitted.options.max_batch <= 1 {
            return Err(Error::NotEnoughMemory {
                what: match batch.adapters.len() {
                    0 | 1 => format!("one response of up to {} tokens with its prompt", batch.context),
                    n => format!(
                        "one response of up to {} tokens with its prompt, by one of {n} adapters,",
                        batch.context
                    ),
                },
                needed,
                room,
                remedy: generation_remedy(base, fitted, room),
            });
        }
        fitted.options.max_batch /= 2;
    }
}

/// What would make a step fit that has recomputation and a single row already.
fn training_remedy(base: Base<'_>, step: TrainingStep<'_>, room: u64) -> String {
    let fits = |base: Base<'_>, step: TrainingStep<'_>| base.training(step).bytes() <= room;
    let mut remedies = Vec::new();
    let shorter = largest(step.tokens, |tokens| fits(base, TrainingStep { tokens, ..step }));
    if let Some(tokens) = shorter.filter(|&tokens| tokens >= TOKENS_MIN) {
        remedies.push(format!("samples of at most {tokens} tokens"));
    }
    let of_rank = |rank: usize| {
        let lora = LoraConfig {
            rank,
            ..step.lora.clone()
        };
        fits(base, TrainingStep { lora: &lora, ..step })
    };
    if let Some(rank) = largest(step.lora.rank, of_rank) {
        remedies.push(format!("a LoRA rank of at most {rank}"));
    }
    with_base(
        base,
        remedies,
        |base| fits(base, step),
        || base.training(step).bytes(),
    )
}

/// What would make a single response fit.
fn generation_remedy(base: Base<'_>, batch: GenerationBatch<'_>, room: u64) -> String {
    let fits = |base: Base<'_>, batch: GenerationBatch<'_>| base.generation(batch).bytes() <= room;
    let shorter = largest(batch.context, |context| {
        fits(base, GenerationBatch { context, ..batch })
    });
    let mut remedies = Vec::new();
    if let Some(context) = shorter.filter(|&context| context >= TOKENS_MIN) {
        remedies.push(format!(
            "prompts and responses of together at most {context} tokens"
        ));
    }
    let n_adapters = batch.adapters.len();
    let fewer = largest(n_adapters, |n| {
        let adapters = &batch.adapters[..n];
        fits(base, GenerationBatch { adapters, ..batch })
    });
    if let Some(n) = fewer.filter(|_| n_adapters > 1) {
        remedies.push(format!("at most {n} adapters at a time"));
    }
    with_base(
        base,
        remedies,
        |base| fits(base, batch),
        || base.generation(batch).bytes(),
    )
}

/// Adds what another base or another card would do, and joins all.
fn with_base(
    base: Base<'_>,
    mut remedies: Vec<String>,
    fits: impl Fn(Base<'_>) -> bool,
    needed: impl Fn() -> u64,
) -> String {
    let quantized = Base {
        quant: BaseQuant::default(),
        ..base
    };
    if base.quant == BaseQuant::None && fits(quantized) {
        remedies.push("the base held in NF4".to_owned());
    }
    // rounded up: a card of what is said does hold it
    let tenths = (gib(needed()) * 10.0).ceil();
    remedies.push(format!("a card with {:.1} GiB for it", tenths / 10.0));
    if remedies.len() == 1 {
        remedies.insert(0, "a smaller base model".to_owned());
    }
    remedies.join(", or ")
}

/// The largest number from 1 to `most` for which `fits` holds, which holds for all below it.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut fitting, mut beyond) = (0, most.saturating_add(1));
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        match fits(middle) {
            true => fitting = middle,
            false => beyond = middle,
        }
    }
    (fitting > 0).then_some(fitting)
}

pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
