//! `train`, `infer`, `judge` and `synth`: one stage alone, with the config of a whole run.
//!
//! Invariant: the same command is the same task, so giving it again goes on with it or repeats its result, and pays
//! for nothing twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llamaduo_data::curate::{CurationCounts, curate};
use llamaduo_data::synthesis::Candidate;
use llamaduo_data::{Response, Sample, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Cycle, RequestId, RunId};
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::run::{Budget, RunStatus, ServiceLlmSpec};
use llamaduo_proto::task::{
    Answerer, InferTask, JudgeTask, SynthesizeTask, TaskOutput, TaskResult, TaskSpec, TrainTask,
};
use llamaduo_proto::view::ResumeRun;
use serde::Serialize;

use super::remote::{show_until_end, token};
use crate::args::{ConfigArguments, Infer, Judge, StageArguments, Synth, Train};
use crate::client::Client;
use crate::cluster::with_cluster;
use crate::config::plan::{self, Upload};
use crate::config::settings::{budget, curation_settings, infer_settings, train_settings};
use crate::config::{self, Config, service};
use crate::directory::materialize::write_manifest;
use crate::directory::write_file;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::model;
use crate::output::Output;
use crate::progress::words;

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

    fn n_test(&self) -> u32 {
        // The import's bound on bytes keeps rows far below this.
        u32::try_from(self.test.1.len()).unwrap_or(u32::MAX)
    }
}

/// `train`.
pub(super) async fn train(arguments: &Train, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let mut data = vec![inputs.train.0];
    for path in &arguments.samples {
        data.push(inputs.upload("samples", plan::jsonl(&samples_in(path)?)?));
    }
    output.line(&format!(
        "training on {} pairs and {} further files",
        inputs.train.1.len(),
        arguments.samples.len()
    ));
    let spec = TaskSpec::Train(TrainTask {
        cycle: CYCLE,
        local_model: plan::local_model(&inputs.config, inputs.directory)?,
        data,
        settings: train_settings(&inputs.config.train)?,
        seed: inputs.config.run.seed,
        init_adapter: None,
    });
    Stage {
        spec,
        inputs,
        out: &arguments.out,
    }
    .run(&arguments.stage, output)
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
    let (cycle, answerer) = match &arguments.adapter {
        _ if arguments.service => (
            Cycle(0),
            Answerer::Service {
                service_llm: inputs.reached(service::service_llm(&inputs.config)?, &arguments.stage),
            },
        ),
        None => (Cycle(0), Answerer::Base { local_model }),
        Some(directory) => {
            let adapter = upload_adapter(&mut inputs, directory)?;
            (CYCLE, Answerer::Adapter { local_model, adapter })
        }
    };
    let spec = TaskSpec::Infer(InferTask {
        cycle,
        answerer,
        test: inputs.test.0,
        first_prompt: 0,
        n_prompts: inputs.n_test(),
        settings,
        seed: inputs.config.run.seed,
    });
    Stage {
        spec,
        inputs,
        out: &arguments.out,
    }
    .run(&arguments.stage, output)
    .await
}

/// An adapter's directory as artifacts: its files and the manifest that names them.
fn upload_adapter(inputs: &mut Inputs<'_>, directory: &Path) -> Result<Digest> {
    let mut files = BTreeMap::new();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
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
    let responses: Vec<Response> = jsonl::read(&path.display().to_string(), &text)?;
    let n_test = inputs.n_test();
    if let Some(foreign) = responses.iter().find(|response| response.prompt_index >= n_test) {
        return Err(Error::Usage(format!(
            "{} answers prompt {}, but the test split has {n_test}; judge it with the config that it was inferred with",
            path.display(),
            foreign.prompt_index
        )));
    }
    let responses = inputs.upload("responses", text.into_bytes());
    let mut uploads = std::mem::take(&mut inputs.uploads);
    let settings = plan::judge_settings(&inputs.config, inputs.directory, &mut uploads)?;
    inputs.uploads = uploads;
    let spec = TaskSpec::Judge(JudgeTask {
        cycle: CYCLE,
        subject: None,
        judge_llm: inputs.reached(service::judge_llm(&inputs.config)?, &arguments.stage),
        test: inputs.test.0,
        responses,
        settings,
    });
    Stage {
        spec,
        inputs,
        out: &arguments.out,
    }
    .run(&arguments.stage, output)
    .await
}

/// `synth`.
pub(super) async fn synth(arguments: &Synth, output: &Output) -> Result<Exit> {
    let mut inputs = Inputs::load(&arguments.config, output)?;
    let mut uploads = std::mem::take(&mut inputs.uploads);
    let settings = plan::synthesis_settings(&inputs.config, inputs.directory, &mut uploads)?;
    inputs.uploads = uploads;
    let spec = TaskSpec::Synthesize(SynthesizeTask {
        cycle: CYCLE,
        service_llm: inputs.reached(service::service_llm(&inputs.config)?, &arguments.stage),
        train: inputs.train.0,
        first_call: 0,
        n_calls: settings.samples_per_cycle.div_ceil(settings.pairs_per_call),
        settings,
        topic: inputs.config.task.topic.clone(),
        seed: inputs.config.run.seed,
    });
    Stage {
        spec,
        inputs,
        out: &arguments.out,
    }
    .run(&arguments.stage, output)
    .await
}

/// One task, ready to be submitted.
struct Stage<'a> {
    spec: TaskSpec,
    inputs: Inputs<'a>,
    out: &'a Path,
}

#[derive(Serialize)]
struct Outcome {
    run_id: RunId,
    status: RunStatus,
    reason: Option<String>,
    out: String,
    result: Option<TaskOutput>,
    /// What became of synthesized pairs.
    curation: Option<CurationCounts>,
}

impl Stage<'_> {
    /// Has the task done, here or by a coordinator's workers, and writes its result.
    async fn run(self, stage: &StageArguments, output: &Output) -> Result<Exit> {
        let outcome = match &stage.coordinator {
            None => {
                with_cluster(&self.state(), output, async |client| {
                    self.submit(&client, output).await
                })
                .await?
            }
            Some(url) => {
                let client = Client::connect(url, token(&stage.token)?.as_deref()).await?;
                let mut interrupts = Interrupts::new()?;
                tokio::select! {
                    outcome = self.submit(&client, output) => outcome?,
                    () = interrupts.next() => return Err(Error::Interrupted),
                }
            }
        };
        if let Some(counts) = &outcome.curation {
            output.line(&curation_words(counts, &dropped_beside(self.out)));
        }
        output.result(&outcome, || match outcome.status {
            RunStatus::Passed => outcome.out.clone(),
            status => format!(
                "{}: {}",
                words::status(status),
                outcome.reason.as_deref().unwrap_or_default()
            ),
        })?;
        Ok(Exit::of_run(outcome.status))
    }

    /// State of the roles in this process: beside the result.
    fn state(&self) -> PathBuf {
        self.out.parent().unwrap_or(Path::new("")).join(".llamaduo")
    }

    async fn submit(&self, client: &Client, output: &Output) -> Result<Outcome> {
        let budget = budget(&self.inputs.config.budget)?;
        client.upload(&self.inputs.uploads).await?;
        let name = words::stage(self.spec.stage());
        let run = client
            .submit_task(self.request()?, name, self.spec.clone(), budget)
            .await?;
        resume_if_ended(client, &run, budget).await?;
        let details = show_until_end(client, &run, output).await?;
        let result = match client.tasks(&run).await?.into_iter().next() {
            Some(task) => task.result,
            None => None,
        };
        let curation = match &result {
            Some(result) => self.write(client, result).await?,
            None => None,
        };
        Ok(Outcome {
            run_id: run,
            status: details.run.status,
            reason: details.run.reason,
            out: self.out.display().to_string(),
            result: result.map(|result| result.output),
            curation,
        })
    }

    fn request(&self) -> Result<RequestId> {
        let digest = Digest::of(&json(&self.spec)?).to_string();
        RequestId::new(&format!("task-{digest}")).map_err(|error| Error::Usage(error.to_string()))
    }

    /// Writes the result; of synthesized pairs what curation keeps, and beside it what it drops.
    async fn write(&self, client: &Client, result: &TaskResult) -> Result<Option<CurationCounts>> {
        let digest = match &result.output {
            TaskOutput::Train(_) => {
                write_manifest(client, result.manifest, self.out).await?;
                return Ok(None);
            }
            TaskOutput::Infer(infer) => infer.responses,
            TaskOutput::Judge(judge) => judge.verdicts,
            TaskOutput::Synthesize(synthesize) => {
                let bytes = client.download(synthesize.samples).await?;
                return self.curate(synthesize.samples, &bytes).map(Some);
            }
        };
        write_file(self.out, &client.download(digest).await?)?;
        Ok(None)
    }

    /// Holds raw pairs against the train split and the test split, as a run does, so that `train --samples` may take
    /// what is kept.
    fn curate(&self, digest: Digest, raw: &[u8]) -> Result<CurationCounts> {
        let text = std::str::from_utf8(raw).map_err(|error| Error::Artifact {
            digest: digest.to_string(),
            problem: error.to_string(),
        })?;
        let candidates: Vec<Candidate> = jsonl::read(&format!("artifact {digest}"), text)?;
        let (train, test) = (&self.inputs.train.1, &self.inputs.test.1);
        let settings = curation_settings(&self.inputs.config.synthesis.curation)?;
        let config = llamaduo_coordinator::curation_config(&settings, train);
        let curated = curate(candidates, train, test, &config);
        write_file(self.out, &plan::jsonl(&curated.kept)?)?;
        let dropped = jsonl::write(&curated.dropped)?;
        write_file(&dropped_beside(self.out), dropped.as_bytes())?;
        Ok(curated.counts)
    }
}

/// Where pairs go that curation drops, each with its reason: `samples.jsonl` has `samples.dropped.jsonl` beside it.
fn dropped_beside(out: &Path) -> PathBuf {
    out.with_extension("dropped.jsonl")
}

fn curation_words(counts: &CurationCounts, dropped: &Path) -> String {
    format!(
        "{} of {} pairs kept; dropped: {} malformed, {} duplicates, {} near duplicates, {} not novel, {} against a rule, \
         {} too close to a test prompt (each in {})",
        counts.kept,
        counts.raw,
        counts.malformed,
        counts.duplicates,
        counts.near_duplicates,
        counts.not_novel,
        counts.filtered,
        counts.contaminated,
        dropped.display()
    )
}

/// A task that ended short is gone on with, under the limits that hold now.
async fn resume_if_ended(client: &Client, run: &RunId, budget: Budget) -> Result<()> {
    match client.run(run).await?.run.status {
        RunStatus::Running | RunStatus::Passed => {}
        RunStatus::GateNotReached
        | RunStatus::BudgetSpent
        | RunStatus::ServiceFailed
        | RunStatus::Cancelled
        | RunStatus::Failed => {
            let resume = ResumeRun {
                run: run.clone(),
                budget: Some(budget),
                service_llm: None,
                judge_llm: None,
                cycles_max: None,
            };
            client.resume(resume).await?;
        }
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Stopped {
        what: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
