//! The sections that need no file, as the protocol spells them.
//!
//! Invariant: every number is in its range afterwards, and an error names the key as the user writes it.

use std::borrow::Cow;
use std::fmt::Display;

use llamaduo_proto::run::{
    Budget, CurationSettings, Gate, GateRule, InferSettings, LoraTargets, LossOn, Quantization, TrainFrom,
    TrainSettings,
};

use super::Error;
use super::sections::{self, BudgetSection, CurationSection, GateSection, InferSection, Quant, TrainSection};

/// Refuses the value of `key` unless `ok`.
pub(super) fn ensure(
    ok: bool,
    key: impl Into<Cow<'static, str>>,
    found: impl Display,
    expected: &'static str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(Error::Value {
            key: key.into(),
            found: found.to_string(),
            expected,
        })
    }
}

/// The user's word for a quantization in the protocol's.
pub(crate) fn quantization(quant: Quant) -> Quantization {
    match quant {
        Quant::Nf4 => Quantization::Nf4Double,
        Quant::Nf4Single => Quantization::Nf4,
        Quant::None => Quantization::None,
    }
}

/// `[train]`.
pub(crate) fn train_settings(section: &TrainSection) -> Result<TrainSettings, Error> {
    let s = section;
    check_train(s)?;
    Ok(TrainSettings {
        lora_rank: s.lora_rank,
        lora_alpha: s.lora_alpha,
        lora_dropout: s.lora_dropout,
        lora_targets: match s.lora_targets {
            sections::LoraTargets::AllLinear => LoraTargets::AllLinear,
            sections::LoraTargets::QueryValue => LoraTargets::QueryValue,
        },
        epochs: s.epochs,
        learning_rate: s.learning_rate,
        warmup_ratio: s.warmup_ratio,
        weight_decay: s.weight_decay,
        gradient_norm_max: (s.gradient_norm_max > 0.0).then_some(s.gradient_norm_max),
        batch_rows: s.batch_rows,
        sequence_tokens_max: s.sequence_tokens,
        loss_on: match s.loss_on {
            sections::LossOn::WholeSequence => LossOn::WholeSequence,
            sections::LossOn::ResponseOnly => LossOn::ResponseOnly,
        },
        packing: s.packing,
        checkpoint_steps: s.checkpoint_steps,
        recompute: s.recompute,
        train_from: match s.train_from {
            sections::TrainFrom::Base => TrainFrom::Base,
            sections::TrainFrom::LastAdapter => TrainFrom::LastAdapter,
        },
    })
}

/// Holds each number of `[train]` to its range.
fn check_train(s: &TrainSection) -> Result<(), Error> {
    ensure(
        (1..=1024).contains(&s.lora_rank),
        "train.lora_rank",
        s.lora_rank,
        "1 to 1024",
    )?;
    ensure(
        positive(s.lora_alpha),
        "train.lora_alpha",
        s.lora_alpha,
        "a number above 0",
    )?;
    ensure(
        (0.0..1.0).contains(&s.lora_dropout),
        "train.lora_dropout",
        s.lora_dropout,
        "0 to below 1",
    )?;
    ensure(positive(s.epochs), "train.epochs", s.epochs, "a number above 0")?;
    ensure(
        positive(s.learning_rate),
        "train.learning_rate",
        s.learning_rate,
        "a number above 0",
    )?;
    ensure(
        (0.0..=1.0).contains(&s.warmup_ratio),
        "train.warmup_ratio",
        s.warmup_ratio,
        "0 to 1",
    )?;
    ensure(
        (0.0..=1.0).contains(&s.weight_decay),
        "train.weight_decay",
        s.weight_decay,
        "0 to 1",
    )?;
    let norm = s.gradient_norm_max;
    ensure(
        norm == 0.0 || positive(norm),
        "train.gradient_norm_max",
        norm,
        "a number above 0, or 0 for no clipping",
    )?;
    ensure(s.batch_rows >= 1, "train.batch_rows", s.batch_rows, "at least 1")?;
    ensure(
        s.sequence_tokens >= 2,
        "train.sequence_tokens",
        s.sequence_tokens,
        "at least 2",
    )?;
    ensure(
        s.checkpoint_steps != Some(0),
        "train.checkpoint_steps",
        0,
        "at least 1, or absent for each epoch's end",
    )
}

fn positive(number: f32) -> bool {
    number > 0.0 && number.is_finite()
}

/// `[infer]`.
pub(crate) fn infer_settings(section: &InferSection) -> Result<InferSettings, Error> {
    let s = section;
    let k = s.responses_per_prompt;
    ensure(k >= 1, "infer.responses_per_prompt", k, "at least 1")?;
    ensure(
        (0.0..=10.0).contains(&s.temperature),
        "infer.temperature",
        s.temperature,
        "0 (greedy) to 10",
    )?;
    if let Some(top_p) = s.top_p {
        ensure(
            top_p > 0.0 && top_p <= 1.0,
            "infer.top_p",
            top_p,
            "above 0, at most 1, or absent for off",
        )?;
    }
    ensure(
        s.top_k != Some(0),
        "infer.top_k",
        0,
        "at least 1, or absent for off",
    )?;
    if let Some(min_p) = s.min_p {
        ensure(
            min_p > 0.0 && min_p < 1.0,
            "infer.min_p",
            min_p,
            "above 0, below 1, or absent for off",
        )?;
    }
    if let Some(penalty) = s.repetition_penalty {
        ensure(
            positive(penalty),
            "infer.repetition_penalty",
            penalty,
            "a number above 0, or absent for off",
        )?;
    }
    check_stops(&s.stop)?;
    ensure(s.max_tokens >= 1, "infer.max_tokens", s.max_tokens, "at least 1")?;
    ensure(
        s.prompts_per_task >= 1,
        "infer.prompts_per_task",
        s.prompts_per_task,
        "at least 1",
    )?;
    ensure(s.batch >= 1, "infer.batch", s.batch, "at least 1")?;
    Ok(InferSettings {
        responses_per_prompt: k,
        temperature: s.temperature,
        top_p: s.top_p,
        top_k: s.top_k,
        tokens_max: s.max_tokens,
        prompts_per_task: s.prompts_per_task,
        batch_max: s.batch,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        stop: s.stop.clone(),
        logprobs: s.logprobs,
    })
}

/// As many and as long as the protocol takes.
fn check_stops(stop: &[String]) -> Result<(), Error> {
    ensure(
        stop.len() <= 16,
        "infer.stop",
        format!("{} texts", stop.len()),
        "at most 16 texts",
    )?;
    for text in stop {
        ensure(
            (1..=1_000).contains(&text.len()),
            "infer.stop",
            format!("a text of {} bytes", text.len()),
            "texts of 1 to 1,000 bytes",
        )?;
    }
    Ok(())
}

/// `[synthesis.curation]`.
pub(crate) fn curation_settings(section: &CurationSection) -> Result<CurationSettings, Error> {
    let s = section;
    let share = "above 0, at most 1";
    let jaccard = s.near_duplicate_jaccard;
    ensure(
        jaccard > 0.0 && jaccard <= 1.0,
        "synthesis.curation.near_duplicate_jaccard",
        jaccard,
        share,
    )?;
    let novelty = s.novelty_rouge_l;
    ensure(
        novelty > 0.0 && novelty <= 2.0,
        "synthesis.curation.novelty_rouge_l",
        novelty,
        "above 0, at most 2; above 1 is off",
    )?;
    let contamination = s.contamination_rouge_l;
    ensure(
        contamination > 0.0 && contamination <= 1.0,
        "synthesis.curation.contamination_rouge_l",
        contamination,
        share,
    )?;
    let words = s.contamination_run_words;
    ensure(
        words >= 1,
        "synthesis.curation.contamination_run_words",
        words,
        "at least 1",
    )?;
    let (low, high) = (s.prompt_words_min, s.prompt_words_max);
    ensure(low >= 1, "synthesis.curation.prompt_words_min", low, "at least 1")?;
    ensure(
        high >= low,
        "synthesis.curation.prompt_words_max",
        high,
        "at least prompt_words_min",
    )?;
    let words = s.response_words_max;
    ensure(
        words >= 1,
        "synthesis.curation.response_words_max",
        words,
        "at least 1",
    )?;
    Ok(CurationSettings {
        near_duplicate_jaccard: jaccard,
        novelty_rouge_l: novelty,
        contamination_rouge_l: contamination,
        contamination_run_words: s.contamination_run_words,
        prompt_words_min: low,
        prompt_words_max: high,
        response_words_max: s.response_words_max,
        response_json: s.response_json,
    })
}

/// `[gate]`.
pub(crate) fn gate(section: &GateSection) -> Result<Gate, Error> {
    let s = section;
    ensure(
        (1.0..=100.0).contains(&s.coverage_score),
        "gate.coverage_score",
        s.coverage_score,
        "1 to 100",
    )?;
    let (relative, absolute) = (relative_rule(s)?, absolute_rule(s)?);
    let (rule, compared) = match s.rule {
        sections::GateRule::Relative => (relative, absolute),
        sections::GateRule::Absolute => (absolute, relative),
    };
    Ok(Gate {
        rule,
        coverage_score: s.coverage_score,
        compared: Some(compared),
    })
}

fn relative_rule(s: &GateSection) -> Result<GateRule, Error> {
    let ratio_min = s.ratio_min;
    ensure(
        ratio_min > 0.0 && ratio_min <= 1.5,
        "gate.ratio_min",
        ratio_min,
        "above 0, at most 1.5",
    )?;
    Ok(GateRule::Relative { ratio_min })
}

fn absolute_rule(s: &GateSection) -> Result<GateRule, Error> {
    let score = 1.0..=100.0;
    for (key, mean) in [
        ("gate.similarity_mean_min", s.similarity_mean_min),
        ("gate.precision_mean_min", s.precision_mean_min),
    ] {
        ensure(score.contains(&mean), key, mean, "1 to 100")?;
    }
    ensure(
        (0.0..=1.0).contains(&s.coverage_min),
        "gate.coverage_min",
        s.coverage_min,
        "a share, 0 to 1",
    )?;
    Ok(GateRule::Absolute {
        similarity_mean_min: s.similarity_mean_min,
        precision_mean_min: s.precision_mean_min,
        coverage_min: s.coverage_min,
    })
}

/// `[budget]`.
pub(crate) fn budget(section: &BudgetSection) -> Result<Budget, Error> {
    let nano_usd_max = match section.max_usd {
        Some(usd) => {
            // A billion dollars in nano-dollars is 1e18, which a u64 holds.
            ensure(
                usd > 0.0 && usd <= 1e9,
                "budget.max_usd",
                usd,
                "above 0, or absent for no limit",
            )?;
            Some((usd * 1e9).round() as u64)
        }
        None => None,
    };
    let calls_max = section.max_calls;
    ensure(
        calls_max != Some(0),
        "budget.max_calls",
        0,
        "at least 1, or absent for no limit",
    )?;
    Ok(Budget {
        nano_usd_max,
        calls_max,
    })
}
