//! From a config to what a coordinator is asked to do: every value checked, the coverage dataset imported and split.
//!
//! Invariant: whatever can be found wrong without spending is found wrong here.

use std::fmt::Display;
use std::path::Path;

use llamaduo_data::Sample;
use llamaduo_data::import::{Imported, import_file};
use llamaduo_data::split::{Split, TestSize, split};
use llamaduo_prompts::{Prompt, PromptName};
use llamaduo_proto::Digest;
use llamaduo_proto::run::{
    Budget, CoverageDataset, CurationSettings, Gate, GateRule, InferSettings, JudgeSettings, LocalModelSpec,
    LoraTargets, LossOn, Quantization, RunSpec, SynthesisSettings, TrainFrom, TrainSettings,
};

use super::sections::{self, DataSection, GateSection, InferSection, Quant, SynthesisSection, TrainSection};
pub(crate) use super::service::{judge_llm, service_llm};
use super::{Config, Error};

/// A run, ready to be submitted.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What to do.
    pub(crate) spec: RunSpec,
    /// Artifacts that the specification names.
    pub(crate) uploads: Vec<Upload>,
    /// The splits, for checks that need the words.
    pub(crate) split: Split,
    /// What the user should know before it starts.
    pub(crate) notes: Vec<String>,
}

/// Bytes that must be in the artifact store before the run is submitted.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// For people.
    pub(crate) name: &'static str,
    /// Their name in the store.
    pub(crate) digest: Digest,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

impl Upload {
    pub(crate) fn new(name: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            name,
            digest: Digest::of(&bytes),
            bytes,
        }
    }
}

/// Makes the plan of `config`, whose relative paths start at `directory`.
pub(crate) fn plan(config: &Config, directory: &Path) -> Result<Plan, Error> {
    // Settings first: they cost nothing to check, and the dataset may be large.
    let budget = budget(config)?;
    let service_llm = service_llm(config)?;
    let judge_llm = judge_llm(config)?;
    let local_model = local_model(config, directory)?;
    let train = train_settings(&config.train)?;
    let infer = infer_settings(&config.infer)?;
    let gate = gate(&config.gate)?;
    let name = &config.task.name;
    ensure(
        (1..=80).contains(&name.chars().count()),
        "task.name",
        format!("`{name}`"),
        "1 to 80 characters",
    )?;
    ensure(
        config.run.cycles_max >= 1,
        "run.cycles_max",
        config.run.cycles_max,
        "at least 1",
    )?;
    let mut uploads = Vec::new();
    let judge = judge_settings(config, directory, &mut uploads)?;
    let synthesis = synthesis_settings(config, directory, &mut uploads)?;
    let (split, notes) = coverage_split(&config.data, directory)?;
    let coverage = coverage(&split, &mut uploads)?;
    let spec = RunSpec {
        name: name.clone(),
        topic: config.task.topic.clone(),
        local_model,
        service_llm,
        judge_llm,
        coverage,
        train,
        infer,
        judge,
        synthesis,
        gate,
        budget,
        cycles_max: config.run.cycles_max,
        seed: config.run.seed,
        measure_base_unquantized: config.run.measure_base_unquantized,
    };
    Ok(Plan {
        spec,
        uploads,
        split,
        notes,
    })
}

/// Refuses the value of `key` unless `ok`.
pub(super) fn ensure(
    ok: bool,
    key: &'static str,
    found: impl Display,
    expected: &'static str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(Error::Value {
            key,
            found: found.to_string(),
            expected,
        })
    }
}

/// Imports and splits the coverage file; the notes say what was left out.
pub(crate) fn coverage_split(section: &DataSection, directory: &Path) -> Result<(Split, Vec<String>), Error> {
    let file = section.coverage.as_ref().ok_or(Error::Missing {
        key: "data.coverage",
        expected: "a JSONL file of {\"messages\": [...]} rows; `llamaduo init` writes a sample",
    })?;
    let size = match (section.test_count, section.test_ratio) {
        (Some(count), None) => {
            // Saturating is right: no dataset has that many rows.
            TestSize::Count(usize::try_from(count).unwrap_or(usize::MAX))
        }
        (None, ratio) => TestSize::Ratio(ratio.unwrap_or(sections::TEST_RATIO_DEFAULT)),
        (Some(_), Some(_)) => {
            let found = "set together with data.test_count".to_owned();
            return Err(Error::Value {
                key: "data.test_ratio",
                found,
                expected: "only one of the two",
            });
        }
    };
    let Imported { samples, duplicates } = import_file(&directory.join(file)).map_err(coverage_error)?;
    let mut notes = Vec::new();
    if let Some(first) = duplicates.first() {
        notes.push(format!(
            "{file}: {} repeated rows left out, the first on line {} (same as line {})",
            duplicates.len(),
            first.line,
            first.first_line
        ));
    }
    let split = split(samples, size, section.seed).map_err(coverage_error)?;
    notes.push(format!(
        "{file}: {} train pairs, {} test pairs",
        split.train.len(),
        split.test.len()
    ));
    Ok((split, notes))
}

fn coverage(split: &Split, uploads: &mut Vec<Upload>) -> Result<CoverageDataset, Error> {
    let mut put = |name, samples: &[Sample]| {
        let upload = Upload::new(name, jsonl(samples)?);
        let digest = upload.digest;
        uploads.push(upload);
        Ok::<_, Error>((digest, u32::try_from(samples.len()).unwrap_or(u32::MAX)))
    };
    let (train, n_train) = put("train split", &split.train)?;
    let (test, n_test) = put("test split", &split.test)?;
    Ok(CoverageDataset {
        train,
        test,
        n_train,
        n_test,
    })
}

fn coverage_error(error: llamaduo_data::Error) -> Error {
    Error::Coverage(Box::new(error))
}

/// Samples as the JSONL bytes of an artifact.
pub(crate) fn jsonl(samples: &[Sample]) -> Result<Vec<u8>, Error> {
    llamaduo_data::jsonl::write(samples)
        .map(String::into_bytes)
        .map_err(coverage_error)
}

/// `[local]`: a path that exists beside the config is made absolute, since workers run elsewhere.
pub(crate) fn local_model(config: &Config, directory: &Path) -> Result<LocalModelSpec, Error> {
    let base = &config.local.base;
    ensure(
        !base.is_empty(),
        "local.base",
        "empty",
        "a model directory, .gguf file, Hugging Face id or known name",
    )?;
    let path = directory.join(base);
    let reference = match path.canonicalize() {
        Ok(path) => path.display().to_string(),
        Err(_) => base.clone(),
    };
    Ok(LocalModelSpec {
        reference,
        quantization: quantization(config.local.quant),
    })
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
    )?;
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
        gradient_norm_max: (norm > 0.0).then_some(norm),
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
    })
}

/// `[judge]` without its service LLM; a prompt of the user's is added to `uploads`.
pub(crate) fn judge_settings(
    config: &Config,
    directory: &Path,
    uploads: &mut Vec<Upload>,
) -> Result<JudgeSettings, Error> {
    let m = config.judge.gradings_per_response;
    ensure(m >= 1, "judge.gradings_per_response", m, "at least 1")?;
    let prompt = prompt(
        PromptName::Judge,
        config.judge.prompt.as_deref(),
        directory,
        uploads,
    )?;
    Ok(JudgeSettings {
        gradings_per_response: m,
        prompt,
    })
}

/// `[synthesis]`; a prompt of the user's is added to `uploads`.
pub(crate) fn synthesis_settings(
    config: &Config,
    directory: &Path,
    uploads: &mut Vec<Upload>,
) -> Result<SynthesisSettings, Error> {
    let SynthesisSection {
        samples_per_cycle,
        pairs_per_call,
        examples_per_call,
        calls_per_task,
        ..
    } = config.synthesis;
    ensure(
        samples_per_cycle >= 1,
        "synthesis.samples_per_cycle",
        samples_per_cycle,
        "at least 1",
    )?;
    ensure(
        pairs_per_call >= 1,
        "synthesis.pairs_per_call",
        pairs_per_call,
        "at least 1",
    )?;
    ensure(
        examples_per_call >= 1,
        "synthesis.examples_per_call",
        examples_per_call,
        "at least 1",
    )?;
    ensure(
        calls_per_task >= 1,
        "synthesis.calls_per_task",
        calls_per_task,
        "at least 1",
    )?;
    let file = config.synthesis.prompt.as_deref();
    let prompt = prompt(PromptName::Synthesize, file, directory, uploads)?;
    let curation = curation_settings(&config.synthesis.curation)?;
    Ok(SynthesisSettings {
        samples_per_cycle,
        pairs_per_call,
        examples_per_call,
        calls_per_task,
        prompt,
        curation,
    })
}

fn curation_settings(section: &sections::CurationSection) -> Result<CurationSettings, Error> {
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
        "above 0; above 1 is off",
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

/// Tries the user's prompt now, so that a slip in it does not show after the first paid call.
fn prompt(
    name: PromptName,
    file: Option<&str>,
    directory: &Path,
    uploads: &mut Vec<Upload>,
) -> Result<Option<Digest>, Error> {
    let Some(file) = file else { return Ok(None) };
    let (key, artifact) = match name {
        PromptName::Judge => ("judge.prompt", "judge prompt"),
        PromptName::Synthesize => ("synthesis.prompt", "synthesis prompt"),
    };
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).map_err(|source| Error::ReadPrompt {
        key,
        path: path.clone(),
        source,
    })?;
    let prompt = Prompt::from_toml(&text).map_err(|source| Error::Prompt {
        key,
        path: path.clone(),
        source: Box::new(source),
    })?;
    ensure(
        prompt.name() == name,
        key,
        format!("the file of a {} prompt", prompt.name().as_str()),
        "the other kind",
    )?;
    let upload = Upload::new(artifact, text.into_bytes());
    let digest = upload.digest;
    uploads.push(upload);
    Ok(Some(digest))
}

fn gate(section: &GateSection) -> Result<Gate, Error> {
    let s = section;
    ensure(
        (1.0..=100.0).contains(&s.coverage_score),
        "gate.coverage_score",
        s.coverage_score,
        "1 to 100",
    )?;
    let confidence = s.confidence;
    ensure(
        confidence > 0.0 && confidence < 1.0,
        "gate.confidence",
        confidence,
        "above 0 and below 1",
    )?;
    let rule = match s.rule {
        sections::GateRule::Relative => {
            let ratio_min = s.ratio_min;
            ensure(
                ratio_min > 0.0 && ratio_min <= 1.5,
                "gate.ratio_min",
                ratio_min,
                "above 0, at most 1.5",
            )?;
            GateRule::Relative { ratio_min }
        }
        sections::GateRule::Absolute => {
            let (similarity_mean_min, precision_mean_min) = (s.similarity_mean_min, s.precision_mean_min);
            let score = 1.0..=100.0;
            ensure(
                score.contains(&similarity_mean_min),
                "gate.similarity_mean_min",
                similarity_mean_min,
                "1 to 100",
            )?;
            ensure(
                score.contains(&precision_mean_min),
                "gate.precision_mean_min",
                precision_mean_min,
                "1 to 100",
            )?;
            ensure(
                (0.0..=1.0).contains(&s.coverage_min),
                "gate.coverage_min",
                s.coverage_min,
                "a share, 0 to 1",
            )?;
            GateRule::Absolute {
                similarity_mean_min,
                precision_mean_min,
                coverage_min: s.coverage_min,
            }
        }
    };
    Ok(Gate {
        rule,
        coverage_score: s.coverage_score,
        confidence,
    })
}

/// `[budget]`.
pub(crate) fn budget(config: &Config) -> Result<Budget, Error> {
    let nano_usd_max = match config.budget.max_usd {
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
    let calls_max = config.budget.max_calls;
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
