//! `train`, `infer`, `judge` and `synth`: one stage alone, with the config of a whole run.
//!
//! Invariant: the same command is the same task, so giving it again goes on with it or repeats its result, and pays
//! for nothing twice.

mod place;
mod responses;
mod task;

use std::collections::BTreeMap;
use std::path::Path;

use llamaduo_data::{Sample, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::run::ServiceLlmSpec;
use llamaduo_proto::task::{Answerer, InferTask, JudgeTask, SynthesizeTask, TaskSpec, TrainTask};
use serde::Serialize;

use crate::args::{AdapterChoice, ConfigArguments, Infer, Judge, StageArguments, Synth, Train};
use crate::config::plan::{self, Upload};
use crate::config::settings::{gate, infer_settings, train_settings};
use crate::config::{self, Config, service};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model::{self, Held};
use crate::output::Output;
use crate::progress::words::counted;
use task::Stage;

/// The cycle that a stage alone stands for: the first.
const CYCLE: Cycle = Cycle(1);

/// A config with the artifacts of its coverage dataset.
struct Inputs<'a> {
    config: Config,
    directory: &'a Path,
    uploads: Vec<Upload>,
    train: (Digest, Vec<Sample>),
    test: (Digest, Vec<Sample>),
}

impl<'a> Inputs<'a> {
    fn load(arguments: &'a ConfigArguments, output: &Output) -> Result<Self> {
        let config = config::load(&arguments.config, &arguments.set)?;
        let directory = config::directory_of(&arguments.config);
        let (split, notes) = plan::coverage_split(&config.data, directory)?;
        notes.iter().for_each(|note| output.line(note));
        let train = Upload::new("train split", plan::jsonl(&split.train)?);
        let test = Upload::new("test split", plan::jsonl(&split.test)?);
        let (train_digest, test_digest) = (train.digest, test.digest);
        Ok(Self {
            config,
            directory,
            uploads: vec![train, test],
            train: (train_digest, split.train),
            test: (test_digest, split.test),
        })
    }

    fn upload(&mut self, name: &'static str, bytes: Vec<u8>) -> Digest {
        let upload = Upload::new(name, bytes);
        let digest = upload.digest;
        self.uploads.push(upload);
        digest
    }

    /// The service LLM as the worker of this stage reaches it.
    fn reached(&self, mut llm: ServiceLlmSpec, stage: &StageArguments) -> ServiceLlmSpec {
        if stage.coordinator.is_none() {
            service::key_beside_config(&mut llm, self.directory);
        }
        llm
    }

    /// Has the task done and its result written to `out`.
    async fn have_done(
        self,
        spec: TaskSpec,
        out: &'a Path,
        stage: &StageArguments,
        output: &Output,
    ) -> Result<Exit> {
        let inputs = self;
        Stage { spec, inputs, out }.run(stage, output).await
    }

    fn n_test(&self) -> u32 {
        // The import's bound on bytes keeps rows far below this.
        u32::try_from(self.test.1.len()).unwrap_or(u32::MAX)
    }
}

/// `train`.
pub(super) async fn train(arguments: &Train, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let local_model = plan::local_model(&inputs.config, inputs.directory)?;
    let settings = train_settings(&inputs.config.train)?;
    let mut data = vec![inputs.train.0];
    let mut told = format!(
        "training an adapter of {} ({}) on the {} of the train split",
        local_model.reference,
        Held::from(&inputs.config.local),
        counted(inputs.train.1.len() as u64, "pair", "pairs")
    );
    for path in &arguments.samples {
        let samples = samples_in(path)?;
        refuse_test_prompts(path, &samples, &inputs.test.1)?;
        told += &format!(
            ", and {} of {}",
            counted(samples.len() as u64, "pair", "pairs"),
            path.display()
        );
        data.push(inputs.upload("samples", plan::jsonl(&samples)?));
    }
    if arguments.stage.coordinator.is_none() {
        model::check_here(&local_model.reference, output).await?;
    }
    output.line(&told);
    let spec = TaskSpec::Train(TrainTask {
        cycle: CYCLE,
        local_model,
        data,
        settings,
        seed: inputs.config.run.seed,
        init_adapter: None,
    });
    inputs
        .have_done(spec, &arguments.out, &arguments.stage, output)
        .await
}

/// Samples as `synth` and a run write them, else rows as a coverage dataset has them.
fn samples_in(path: &Path) -> Result<Vec<Sample>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let name = path.display().to_string();
    match jsonl::read::<Sample>(&name, &text) {
        Ok(samples) if !samples.is_empty() => Ok(samples),
        _ => Ok(llamaduo_data::import::import_file(path)?.samples),
    }
}

/// A model that has seen the test prompts is not measured by them.
fn refuse_test_prompts(path: &Path, samples: &[Sample], test: &[Sample]) -> Result<()> {
    let is_seen = |sample: &&Sample| test.iter().any(|other| other.prompt() == sample.prompt());
    let n_seen = samples.iter().filter(is_seen).count();
    if n_seen == 0 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} holds {} of this config's test split, which must not be trained on; take them out, or train on what \
         `llamaduo synth` writes",
        path.display(),
        counted(n_seen as u64, "prompt", "prompts")
    )))
}

/// `infer`.
pub(super) async fn infer(arguments: &Infer, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let local_model = plan::local_model(&inputs.config, inputs.directory)?;
    let settings = infer_settings(&inputs.config.infer)?;
    if !arguments.service {
        let (reference, test, max_tokens) = (&local_model.reference, &inputs.test.1, settings.tokens_max);
        match arguments.stage.coordinator {
            None => model::check_fit(reference, test, max_tokens, output).await?,
            Some(_) => model::check_fit_if_here(reference, test, max_tokens, output).await?,
        }
    }
    let held = Held::from(&inputs.config.local);
    let (cycle, answerer, who) = match arguments.adapter.as_ref().and_then(AdapterChoice::directory) {
        _ if arguments.service => {
            let service_llm = inputs.reached(service::service_llm(&inputs.config)?, &arguments.stage);
            let who = format!("the service LLM {}", service_llm.model);
            (Cycle(0), Answerer::Service { service_llm }, who)
        }
        None => (
            Cycle(0),
            Answerer::Base { local_model },
            format!("the untuned base ({held})"),
        ),
        Some(directory) => {
            let adapter = upload_adapter(&mut inputs, directory)?;
            let who = format!("the adapter in {} ({held})", directory.display());
            (CYCLE, Answerer::Adapter { local_model, adapter }, who)
        }
    };
    output.line(&format!(
        "{who} answers {}, {} to each",
        counted(u64::from(inputs.n_test()), "test prompt", "test prompts"),
        counted(u64::from(settings.responses_per_prompt), "response", "responses")
    ));
    let spec = TaskSpec::Infer(InferTask {
        cycle,
        answerer,
        test: inputs.test.0,
        first_prompt: 0,
        n_prompts: inputs.n_test(),
        settings,
        seed: inputs.config.run.seed,
    });
    inputs
        .have_done(spec, &arguments.out, &arguments.stage, output)
        .await
}

/// An adapter's directory as artifacts: its files and the manifest that names them.
fn upload_adapter(inputs: &mut Inputs<'_>, directory: &Path) -> Result<Digest> {
    let mut files = BTreeMap::new();
    for name in model::adapter_files(directory)? {
        let path = directory.join(name);
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path, source })?;
        files.insert(name.to_owned(), inputs.upload("adapter", bytes));
    }
    let manifest = Manifest {
        kind: ManifestKind::Adapter,
        files,
        parents: Vec::new(),
    };
    Ok(inputs.upload("adapter's manifest", json(&manifest)?))
}

/// `judge`.
pub(super) async fn judge(arguments: &Judge, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let path = &arguments.responses;
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    // Checked before anything is paid for, though only used once the verdicts are here.
    gate(&inputs.config.gate)?;
    let responses = responses::checked(&path.display().to_string(), &text, &inputs.test.1)?;
    if let Some(note) = responses.note {
        output.line(&note);
    }
    let n_responses = responses.n;
    let responses = inputs.upload("responses", text.into_bytes());
    let mut uploads = std::mem::take(&mut inputs.uploads);
    let settings = plan::judge_settings(&inputs.config, inputs.directory, &mut uploads)?;
    inputs.uploads = uploads;
    let judge_llm = inputs.reached(service::judge_llm(&inputs.config)?, &arguments.stage);
    output.line(&format!(
        "{} grades {}, {}",
        judge_llm.model,
        counted(n_responses, "response", "responses"),
        match settings.gradings_per_response {
            1 => "once each".to_owned(),
            times => format!("{times} times each"),
        }
    ));
    let spec = TaskSpec::Judge(JudgeTask {
        cycle: CYCLE,
        subject: None,
        judge_llm,
        test: inputs.test.0,
        responses,
        settings,
    });
    inputs
        .have_done(spec, &arguments.out, &arguments.stage, output)
        .await
}

/// `synth`.
pub(super) async fn synth(arguments: &Synth, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let mut uploads = std::mem::take(&mut inputs.uploads);
    let settings = plan::synthesis_settings(&inputs.config, inputs.directory, &mut uploads)?;
    inputs.uploads = uploads;
    let service_llm = inputs.reached(service::service_llm(&inputs.config)?, &arguments.stage);
    output.line(&format!(
        "{} is asked for {}",
        service_llm.model,
        counted(u64::from(settings.samples_per_cycle), "new pair", "new pairs")
    ));
    let spec = TaskSpec::Synthesize(SynthesizeTask {
        cycle: CYCLE,
        service_llm,
        train: inputs.train.0,
        first_call: 0,
        n_calls: settings.samples_per_cycle.div_ceil(settings.pairs_per_call),
        settings,
        topic: inputs.config.task.topic.clone(),
        seed: inputs.config.run.seed,
    });
    inputs
        .have_done(spec, &arguments.out, &arguments.stage, output)
        .await
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Stopped {
        what: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
