//! From a config to what a coordinator is asked to do: every value checked, the coverage dataset imported and split.
//!
//! Invariant: whatever can be found wrong without spending is found wrong here.

use std::path::Path;

use llamaduo_data::Sample;
use llamaduo_data::import::{Imported, import_file};
use llamaduo_data::score::prompts_needed;
use llamaduo_data::split::{Split, TestSize, split};
use llamaduo_prompts::{Prompt, PromptName};
use llamaduo_proto::Digest;
use llamaduo_proto::run::{
    CoverageDataset, GateRule, JudgeSettings, LocalModelSpec, RunSpec, SynthesisSettings,
};

use super::changes::Settings;
use super::sections::{self, DataSection, SynthesisSection};
use super::service::{judge_llm, service_llm};
use super::settings::{
    budget, curation_settings, ensure, gate, infer_settings, quantization, train_settings,
};
use super::{Config, Error};
use crate::progress::words::counted;

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
    /// What it was made of.
    pub(crate) settings: Settings,
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
    let budget = budget(&config.budget)?;
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
    let (split, mut notes) = coverage_split(&config.data, directory)?;
    notes.extend(enough_prompts(&gate.rule, split.test.len())?);
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
        overrides: Vec::new(),
    };
    Ok(Plan {
        spec,
        uploads,
        split,
        notes,
        settings: Settings::new(config, Vec::new()),
    })
}

/// Imports and splits the coverage file; the notes say what was left out.
pub(crate) fn coverage_split(section: &DataSection, directory: &Path) -> Result<(Split, Vec<String>), Error> {
    let file = section.coverage.as_ref().ok_or(Error::Missing {
        key: "data.coverage".into(),
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
                key: "data.test_ratio".into(),
                found,
                expected: "only one of the two",
            });
        }
    };
    let Imported { samples, duplicates } = import_file(&directory.join(file)).map_err(coverage_error)?;
    let mut notes = Vec::new();
    if let Some(first) = duplicates.first() {
        let n = counted(duplicates.len() as u64, "repeated row", "repeated rows");
        let which = if duplicates.len() == 1 {
            "on"
        } else {
            "the first on"
        };
        notes.push(format!(
            "{file}: {n} left out, {which} line {} (same as line {})",
            first.line, first.first_line
        ));
    }
    let split = split(samples, size, section.seed).map_err(|error| split_error(error, size, file))?;
    notes.push(format!(
        "{file}: {}, {}",
        counted(split.train.len() as u64, "train pair", "train pairs"),
        counted(split.test.len() as u64, "test pair", "test pairs"),
    ));
    Ok((split, notes))
}

/// In the words of the key that says how much goes to the test split.
fn split_error(error: llamaduo_data::Error, size: TestSize, file: &str) -> Error {
    use llamaduo_data::Error::{EmptySplit, Ratio};
    let (key, value) = match size {
        TestSize::Count(count) => ("data.test_count", count.to_string()),
        TestSize::Ratio(ratio) => ("data.test_ratio", ratio.to_string()),
    };
    let remedy = match (&error, size) {
        (Ratio { .. }, _) => "set it to a number above 0 and below 1".to_owned(),
        // What is short are prompts, whatever is asked for.
        (EmptySplit { prompts: 1, .. }, _) => {
            "all its pairs share one prompt, which is either trained on or tested on: add pairs with other prompts".to_owned()
        }
        (EmptySplit { test, samples, .. }, TestSize::Count(_)) if test >= samples => {
            format!("set it to less than the {samples} pairs that are there, or add pairs")
        }
        // One would do for some, but not where the gate is relative.
        (EmptySplit { test: 0, .. }, TestSize::Count(_)) => {
            format!("set it to 2 or more; some {TEST_PROMPTS_MIN} are the least that say much")
        }
        (EmptySplit { empty: "train", .. }, TestSize::Ratio(_)) => "set it lower, or add pairs".to_owned(),
        (EmptySplit { .. }, TestSize::Ratio(_)) => "set it higher, or add pairs".to_owned(),
        (EmptySplit { .. }, TestSize::Count(_)) => {
            "set it to another number, or add pairs with other prompts: pairs of one prompt stay together".to_owned()
        }
        _ => return coverage_error(error),
    };
    Error::Split {
        key,
        value,
        file: file.to_owned(),
        remedy,
        source: Box::new(error),
    }
}

/// Test prompts below which an interval says little.
const TEST_PROMPTS_MIN: usize = 20;

/// Refuses a test split with which the gate can never be passed; a note where it hardly can.
fn enough_prompts(rule: &GateRule, n_test: usize) -> Result<Option<String>, Error> {
    let GateRule::Relative { ratio_min } = *rule else {
        return Ok(None);
    };
    let key = "data.test_count";
    let expected =
        "at least 2 prompts in the test split, since gate.rule = \"relative\" needs an interval over them";
    ensure(n_test >= 2, key, n_test, expected)?;
    let needed = prompts_needed(ratio_min).and_then(|needed| usize::try_from(needed).ok());
    Ok(match needed {
        Some(needed) if n_test < needed => Some(format!(
            "note: {n_test} test prompts are too few for gate.ratio_min = {ratio_min}: where service LLM and local model \
             cover all of them, the lower bound stays below it; give at least {needed}"
        )),
        _ if n_test < TEST_PROMPTS_MIN => Some(format!(
            "note: {n_test} test prompts give wide intervals; some {TEST_PROMPTS_MIN} are the least that say much"
        )),
        _ => None,
    })
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
        compute: config.local.compute,
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
        format!("the file of a prompt with name = \"{}\"", prompt.name().as_str()),
        match name {
            PromptName::Judge => "one with name = \"judge\"",
            PromptName::Synthesize => "one with name = \"synthesize\"",
        },
    )?;
    let upload = Upload::new(artifact, text.into_bytes());
    let digest = upload.digest;
    uploads.push(upload);
    Ok(Some(digest))
}
