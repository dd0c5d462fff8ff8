//! How fast a model generates and trains here: what `llamaduo bench` measures, on tokens made up from a seed.
//!
//! Invariant: no two prompts begin alike and no response ends early, so the work done is what the sizes say.

pub mod accuracy;
pub mod kernels;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use llamaduo_kernels::{Backend, random};

use crate::error::{Error, Result};
use crate::generate::{PromptIds, generate_ids};
use crate::local_model::LocalModel;
use crate::lora::{Adapter, LoraConfig};
use crate::train::{Row, Rows, train_rows};
use crate::{BatchOptions, GenerateOptions, Sampling, TrainConfig, TrainEvent};

/// Sets these tokens apart from the other random streams.
const TOKEN_STREAM: u64 = 6;

/// Sizes of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateSizes {
    /// Prompts answered together.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each response, at least 2.
    pub new_tokens: usize,
}

/// How long a generation took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateTimes {
    /// Until every response has its first token.
    pub prefill: Duration,
    /// For all the tokens after those; 0 where that is less than what two calls differ by anyway.
    pub decode: Duration,
}

/// Times a generation: one call for the first tokens alone, one for all. Greedy. Prompts have the adapters in turn, where
/// there are any.
///
/// Fails on sizes of 0, and on what does not fit into the context.
pub fn time_generation<B: Backend>(
    model: &LocalModel<B>,
    adapters: &[Adapter],
    sizes: GenerateSizes,
) -> Result<GenerateTimes> {
    let batch = BatchOptions {
        max_batch: sizes.batch,
        cache_bytes_max: usize::MAX,
    };
    let vocab_size = model.config().vocab_size;
    let prompts = |max_tokens: usize| -> Vec<PromptIds> {
        let prompt = |id: usize| PromptIds {
            id: id as u64,
            adapter: id.checked_rem(adapters.len()),
            ids: tokens(id as u64, sizes.prompt_tokens, vocab_size),
            n: 1,
            options: GenerateOptions {
                max_tokens,
                sampling: Sampling::GREEDY,
                ..GenerateOptions::default()
            },
        };
        (0..sizes.batch).map(prompt).collect()
    };
    let time = |max_tokens: usize| -> Result<Duration> {
        let prompts = prompts(max_tokens);
        let begun = Instant::now();
        let completions = generate_ids(model, adapters, &prompts, &[], &batch, &mut |_| {
            ControlFlow::Continue(())
        })?;
        let elapsed = begun.elapsed();
        match completions
            .into_iter()
            .find(|completion| completion.tokens != max_tokens)
        {
            None => Ok(elapsed),
            Some(other) => Err(Error::GenerateOptions {
                field: "prompt_tokens and new_tokens",
                expected: "sizes that fit into the context",
                found: other.finish.to_string(),
            }),
        }
    };
    let prefill = time(1)?;
    let all = time(sizes.new_tokens)?;
    Ok(GenerateTimes {
        prefill,
        decode: all.saturating_sub(prefill),
    })
}

/// Sizes of a training run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSizes {
    /// Rows of a step.
    pub batch: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Steps that are timed; one more goes before them.
    pub steps: u32,
    /// The adapter.
    pub lora: LoraConfig,
    /// Whether activations are made again in the backward.
    pub recompute: bool,
}

/// How long each timed step took, in their order.
///
/// Fails on settings without a meaning and on rows longer than the context.
pub fn time_training<B: Backend>(model: &LocalModel<B>, sizes: &TrainSizes) -> Result<Vec<Duration>> {
    let n_steps = sizes.steps.saturating_add(1);
    let config = TrainConfig {
        lora: sizes.lora.clone(),
        max_steps: Some(n_steps),
        epochs: f64::from(n_steps),
        batch_rows: sizes.batch,
        accumulation: 1,
        max_seq_len: sizes.seq,
        checkpoint_every_steps: 0,
        recompute: sizes.recompute,
        ..TrainConfig::default()
    };
    let vocab_size = model.config().vocab_size;
    let mut rows = Rows::default();
    for id in 0..sizes.batch as u64 {
        let row = Row::new(tokens(id, sizes.seq, vocab_size), |_| true);
        rows.push(row, sizes.seq.min(model.config().context_len));
    }
    let (mut last, mut times) = (None, Vec::new());
    train_rows(model, &rows, &config, None, None, &mut |event| {
        if let TrainEvent::Step { .. } = event {
            let now = Instant::now();
            times.extend(last.map(|last| now - last));
            last = Some(now);
        }
        ControlFlow::Continue(())
    })?;
    Ok(times)
}

/// Tokens of the `id`-th row.
fn tokens(id: u64, len: usize, vocab_size: usize) -> Vec<u32> {
    let key = random::key(&[TOKEN_STREAM, id]);
    (0..len as u64)
        .map(|i| (random::uniform(key, i) * vocab_size as f32) as u32)
        .map(|token| token.min(vocab_size.saturating_sub(1) as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_model::BaseQuant;
    use crate::testing::open;

    #[test]
    fn what_is_timed_takes_time() {
        let model = open("llama_tied", BaseQuant::None);
        let sizes = GenerateSizes {
            batch: 3,
            prompt_tokens: 20,
            new_tokens: 10,
        };
        let times = time_generation(&model, &[], sizes).unwrap();
        assert!(times.prefill > Duration::ZERO);
        let sizes = TrainSizes {
            batch: 2,
            seq: 16,
            steps: 3,
            lora: LoraConfig::default(),
            recompute: false,
        };
        assert_eq!(time_training(&model, &sizes).unwrap().len(), 3);
    }

    #[test]
    fn made_up_tokens_are_in_the_vocabulary_and_differ() {
        let (first, second) = (tokens(0, 50, 7), tokens(1, 50, 7));
        assert!(first.iter().chain(&second).all(|&token| token < 7));
        assert_ne!(first, second);
        assert!(tokens(0, 0, 7).is_empty());
    }
}
