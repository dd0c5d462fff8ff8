//! `run.proto`: the settings of each stage.

use super::{
    InvalidMessage, Result, at_least_1, digest_text, enumeration, nested, number, optional_digest,
    or_default, same_variants, unless_zero, up_to,
};
use crate::run::{
    CurationSettings, InferSettings, JudgeSettings, LoraTargets, LossOn, SynthesisSettings, TrainFrom,
    TrainSettings,
};
use crate::wire;

/// Largest LoRA rank: the hidden size of a large model, beyond which an adapter saves nothing.
const LORA_RANK_MAX: u32 = 4_096;
/// Most passes over the data; beyond it a slip is likelier than a wish.
const EPOCHS_MAX: f64 = 10_000.0;
/// Most responses per prompt, gradings per response, pairs or examples per call: each multiplies what is paid.
const REPEATS_MAX: u32 = 1_000;
/// Most tokens of a sequence or an answer: the longest context of any known model.
const TOKENS_MAX: u32 = 10_000_000;
/// Test prompts in one task when no number is named: about a minute of work for a small model.
const PROMPTS_PER_TASK: u32 = 8;
/// Sequences decoded together when no number is named.
const BATCH: u32 = 32;
/// Most texts that end a response, and most bytes of each: what servers of such models take, and more.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1_000;
/// Calls in one synthesize task when no number is named.
const CALLS_PER_TASK: u32 = 8;

fn share<T: Into<f64> + Copy + std::fmt::Display>(field: &str, value: T) -> Result<T> {
    number(field, value, "0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn positive(field: &str, value: f32) -> Result<f32> {
    number(field, value, "above 0", |x| x > 0.0)
}

fn not_negative(field: &str, value: f32) -> Result<f32> {
    number(field, value, "at least 0", |x| x >= 0.0)
}

same_variants!(LoraTargets, unspecified Ok(LoraTargets::AllLinear), AllLinear, QueryValue);
same_variants!(LossOn, unspecified Ok(LossOn::WholeSequence), WholeSequence, ResponseOnly);
same_variants!(TrainFrom, unspecified Ok(TrainFrom::Base), Base, LastAdapter);

impl TryFrom<wire::TrainSettings> for TrainSettings {
    type Error = InvalidMessage;
    fn try_from(wire: wire::TrainSettings) -> Result<Self> {
        Ok(Self {
            lora_rank: up_to("lora_rank", wire.lora_rank, LORA_RANK_MAX)?,
            lora_alpha: positive("lora_alpha", wire.lora_alpha)?,
            lora_dropout: number("lora_dropout", wire.lora_dropout, "at least 0, below 1", |x| {
                (0.0..1.0).contains(&x)
            })?,
            lora_targets: enumeration::<wire::LoraTargets, _>("lora_targets", wire.lora_targets)?,
            epochs: number("epochs", wire.epochs, "above 0, at most 10,000", |x| {
                x > 0.0 && x <= EPOCHS_MAX
            })?,
            learning_rate: positive("learning_rate", wire.learning_rate)?,
            warmup_ratio: share("warmup_ratio", wire.warmup_ratio)?,
            weight_decay: not_negative("weight_decay", wire.weight_decay)?,
            gradient_norm_max: unless_zero(not_negative("gradient_norm_max", wire.gradient_norm_max)?),
            batch_rows: at_least_1("batch_rows", wire.batch_rows)?,
            sequence_tokens_max: up_to("sequence_tokens_max", wire.sequence_tokens_max, TOKENS_MAX)?,
            loss_on: enumeration::<wire::LossOn, _>("loss_on", wire.loss_on)?,
            packing: wire.packing,
            checkpoint_steps: unless_zero(wire.checkpoint_steps),
            recompute: wire.recompute,
            train_from: enumeration::<wire::TrainFrom, _>("train_from", wire.train_from)?,
        })
    }
}

impl From<TrainSettings> for wire::TrainSettings {
    fn from(settings: TrainSettings) -> Self {
        Self {
            lora_rank: settings.lora_rank,
            lora_alpha: settings.lora_alpha,
            lora_dropout: settings.lora_dropout,
            lora_targets: wire::LoraTargets::from(settings.lora_targets).into(),
            epochs: settings.epochs,
            learning_rate: settings.learning_rate,
            warmup_ratio: settings.warmup_ratio,
            weight_decay: settings.weight_decay,
            gradient_norm_max: settings.gradient_norm_max.unwrap_or_default(),
            batch_rows: settings.batch_rows,
            sequence_tokens_max: settings.sequence_tokens_max,
            loss_on: wire::LossOn::from(settings.loss_on).into(),
            packing: settings.packing,
            checkpoint_steps: settings.checkpoint_steps.unwrap_or_default(),
            recompute: settings.recompute,
            train_from: wire::TrainFrom::from(settings.train_from).into(),
        }
    }
}

impl TryFrom<wire::InferSettings> for InferSettings {
    type Error = InvalidMessage;
    fn try_from(wire: wire::InferSettings) -> Result<Self> {
        Ok(Self {
            responses_per_prompt: up_to("responses_per_prompt", wire.responses_per_prompt, REPEATS_MAX)?,
            temperature: not_negative("temperature", wire.temperature)?,
            top_p: unless_zero(share("top_p", wire.top_p)?),
            top_k: unless_zero(wire.top_k),
            tokens_max: up_to("tokens_max", wire.tokens_max, TOKENS_MAX)?,
            prompts_per_task: or_default(wire.prompts_per_task, PROMPTS_PER_TASK),
            batch_max: or_default(wire.batch_max, BATCH),
            min_p: unless_zero(number("min_p", wire.min_p, "at least 0, below 1", |x| {
                (0.0..1.0).contains(&x)
            })?),
            repetition_penalty: unless_zero(not_negative("repetition_penalty", wire.repetition_penalty)?),
            stop: stops(wire.stop)?,
            logprobs: wire.logprobs,
        })
    }
}

fn stops(stop: Vec<String>) -> Result<Vec<String>> {
    if stop.len() > STOPS_MAX {
        let expected = format!("at most {STOPS_MAX} texts");
        return Err(InvalidMessage::new("stop", &expected, stop.len()));
    }
    match stop
        .iter()
        .find(|text| !(1..=STOP_BYTES_MAX).contains(&text.len()))
    {
        Some(text) => {
            let expected = format!("texts of 1 to {STOP_BYTES_MAX} bytes");
            Err(InvalidMessage::new(
                "stop",
                &expected,
                format!("{} bytes", text.len()),
            ))
        }
        None => Ok(stop),
    }
}

impl From<InferSettings> for wire::InferSettings {
    fn from(settings: InferSettings) -> Self {
        Self {
            responses_per_prompt: settings.responses_per_prompt,
            temperature: settings.temperature,
            top_p: settings.top_p.unwrap_or_default(),
            top_k: settings.top_k.unwrap_or_default(),
            tokens_max: settings.tokens_max,
            prompts_per_task: settings.prompts_per_task,
            batch_max: settings.batch_max,
            min_p: settings.min_p.unwrap_or_default(),
            repetition_penalty: settings.repetition_penalty.unwrap_or_default(),
            stop: settings.stop,
            logprobs: settings.logprobs,
        }
    }
}

impl TryFrom<wire::JudgeSettings> for JudgeSettings {
    type Error = InvalidMessage;
    fn try_from(wire: wire::JudgeSettings) -> Result<Self> {
        Ok(Self {
            gradings_per_response: up_to("gradings_per_response", wire.gradings_per_response, REPEATS_MAX)?,
            prompt: optional_digest("prompt_digest", &wire.prompt_digest)?,
        })
    }
}

impl From<JudgeSettings> for wire::JudgeSettings {
    fn from(settings: JudgeSettings) -> Self {
        Self {
            gradings_per_response: settings.gradings_per_response,
            prompt_digest: digest_text(settings.prompt),
        }
    }
}

impl TryFrom<wire::SynthesisSettings> for SynthesisSettings {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SynthesisSettings) -> Result<Self> {
        Ok(Self {
            samples_per_cycle: at_least_1("samples_per_cycle", wire.samples_per_cycle)?,
            pairs_per_call: up_to("pairs_per_call", wire.pairs_per_call, REPEATS_MAX)?,
            examples_per_call: up_to("examples_per_call", wire.examples_per_call, REPEATS_MAX)?,
            calls_per_task: or_default(wire.calls_per_task, CALLS_PER_TASK),
            prompt: optional_digest("prompt_digest", &wire.prompt_digest)?,
            curation: nested("curation", wire.curation.unwrap_or_default())?,
        })
    }
}

impl From<SynthesisSettings> for wire::SynthesisSettings {
    fn from(settings: SynthesisSettings) -> Self {
        Self {
            samples_per_cycle: settings.samples_per_cycle,
            pairs_per_call: settings.pairs_per_call,
            examples_per_call: settings.examples_per_call,
            calls_per_task: settings.calls_per_task,
            prompt_digest: digest_text(settings.prompt),
            curation: Some(settings.curation.into()),
        }
    }
}

impl TryFrom<wire::CurationSettings> for CurationSettings {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CurationSettings) -> Result<Self> {
        let defaults = Self::default();
        let novelty_rouge_l = number("novelty_rouge_l", wire.novelty_rouge_l, "at least 0", |x| {
            x >= 0.0
        })?;
        let settings = Self {
            near_duplicate_jaccard: or_default(
                share("near_duplicate_jaccard", wire.near_duplicate_jaccard)?,
                defaults.near_duplicate_jaccard,
            ),
            novelty_rouge_l: or_default(novelty_rouge_l, defaults.novelty_rouge_l),
            contamination_rouge_l: or_default(
                share("contamination_rouge_l", wire.contamination_rouge_l)?,
                defaults.contamination_rouge_l,
            ),
            contamination_run_words: or_default(
                wire.contamination_run_words,
                defaults.contamination_run_words,
            ),
            prompt_words_min: or_default(wire.prompt_words_min, defaults.prompt_words_min),
            prompt_words_max: or_default(wire.prompt_words_max, defaults.prompt_words_max),
            response_words_max: or_default(wire.response_words_max, defaults.response_words_max),
            response_json: wire.response_json,
        };
        if settings.prompt_words_min > settings.prompt_words_max {
            let expected = format!("at most prompt_words_max, {}", settings.prompt_words_max);
            return Err(InvalidMessage::new(
                "prompt_words_min",
                &expected,
                settings.prompt_words_min,
            ));
        }
        Ok(settings)
    }
}

impl From<CurationSettings> for wire::CurationSettings {
    fn from(settings: CurationSettings) -> Self {
        Self {
            near_duplicate_jaccard: settings.near_duplicate_jaccard,
            novelty_rouge_l: settings.novelty_rouge_l,
            contamination_rouge_l: settings.contamination_rouge_l,
            contamination_run_words: settings.contamination_run_words,
            prompt_words_min: settings.prompt_words_min,
            prompt_words_max: settings.prompt_words_max,
            response_words_max: settings.response_words_max,
            response_json: settings.response_json,
        }
    }
}
