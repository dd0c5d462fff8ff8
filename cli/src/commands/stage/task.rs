//! One task, had done here or by a coordinator's workers, and what it came to.
//!
//! Invariant: a result is written whole from its artifact, whether it was made now or had been made before.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llamaduo_data::curate::{CurationCounts, curate};
use llamaduo_data::score::{Judged, MetricScore, Scores};
use llamaduo_data::synthesis::Candidate;
use llamaduo_data::{Verdict, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{AttemptNumber, RequestId, RunId, TaskId};
use llamaduo_proto::run::{Budget, RunStatus};
use llamaduo_proto::task::{Answerer, InferTask, TaskOutput, TaskResult, TaskSpec};
use llamaduo_proto::view::{ResumeRun, RunDetails};
use serde::Serialize;

use super::{Inputs, json};
use crate::args::StageArguments;
use crate::client::Client;
use crate::cluster::with_cluster;
use crate::commands::reach;
use crate::commands::remote::token;
use crate::config::plan;
use crate::config::settings::{budget, curation_settings, gate};
use crate::directory::materialize::{holds_others, write_manifest};
use crate::directory::write_file;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::model::Held;
use crate::output::Output;
use crate::progress::Progress;
use crate::progress::words::{self, counted};

/// One task, ready to be submitted.
pub(super) struct Stage<'a> {
    pub(super) spec: TaskSpec,
    pub(super) inputs: Inputs<'a>,
    pub(super) out: &'a Path,
}

#[derive(Serialize)]
struct Outcome {
    run_id: RunId,
    status: RunStatus,
    reason: Option<String>,
    out: String,
    /// Whether the same task had been done before.
    reused: bool,
    /// How the local model was held and computed with; of a task that uses one.
    #[serde(flatten)]
    held: Option<Held>,
    result: Option<TaskOutput>,
    #[serde(flatten)]
    found: Found,
}

/// What is seen only by looking into a result.
#[derive(Default, Serialize)]
struct Found {
    /// What became of synthesized pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    curation: Option<CurationCounts>,
    /// What the verdicts come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Graded>,
}

#[derive(Serialize)]
struct Graded {
    /// Mean score from which a response counts as covered.
    coverage_score: f64,
    #[serde(flatten)]
    scores: Scores,
}

impl Stage<'_> {
    /// Has the task done, here or by a coordinator's workers, and writes its result.
    pub(super) async fn run(self, stage: &StageArguments, output: &Output) -> Result<Exit> {
        self.check_place()?;
        let outcome = match &stage.coordinator {
            None => {
                let checked = reach::before_task(&self.spec).await;
                // No hindrance where the same task was done before.
                let hindrance = match checked.and_then(|()| self.refuse_adapter_that_is_there()) {
                    Err(error) if !self.state().exists() => return Err(error),
                    checked => checked.err(),
                };
                with_cluster(&self.state(), stage.device, output, async |client| {
                    self.submit(&client, true, hindrance, output).await
                })
                .await?
            }
            Some(url) => {
                let client = Client::connect(url, token(&stage.token)?.as_deref()).await?;
                let mut interrupts = Interrupts::new()?;
                let hindrance = self.refuse_adapter_that_is_there().err();
                tokio::select! {
                    outcome = self.submit(&client, false, hindrance, output) => outcome?,
                    () = interrupts.next() => return Err(Error::Interrupted),
                }
            }
        };
        if let Some(counts) = &outcome.found.curation {
            output.line(&curation_words(counts, &dropped_beside(self.out)));
        }
        output.result(&outcome, || match (outcome.status, &outcome.found.scores) {
            (RunStatus::Passed, None) => outcome.out.clone(),
            (RunStatus::Passed, Some(graded)) => format!("{}\n{}", graded_words(graded), outcome.out),
            (status, _) => format!(
                "{}: {}",
                words::status(status),
                outcome.reason.as_deref().unwrap_or_default()
            ),
        })?;
        if let Some(remedy) = remedy(outcome.status) {
            output.line(remedy);
        }
        if let Some((exit, words)) = self.useless(&outcome.found) {
            output.line(&words);
            return Ok(exit);
        }
        Ok(Exit::of_run(outcome.status))
    }

    /// A result that is there and of no use to the next stage.
    fn useless(&self, found: &Found) -> Option<(Exit, String)> {
        let out = self.out.display();
        if let Some(Graded { scores, .. }) = &found.scores
            && 0 < scores.verdicts
            && scores.unparsed == scores.verdicts
        {
            let replies = counted(scores.verdicts, "reply", "replies");
            let words = format!(
                "none of the judge's {replies} could be read as a grade; {out} holds what it wrote: name another judge.model, \
                 or a judge.prompt that says the form of the reply"
            );
            return Some((Exit::ServiceFailed, words));
        }
        match &found.curation {
            Some(counts) if counts.kept == 0 => {
                let words = format!(
                    "there is nothing to train on in {out}; {} says why each pair was dropped",
                    dropped_beside(self.out).display()
                );
                Some((Exit::GateNotReached, words))
            }
            _ => None,
        }
    }

    async fn submit(
        &self,
        client: &Client,
        is_here: bool,
        hindrance: Option<Error>,
        output: &Output,
    ) -> Result<Outcome> {
        let budget = budget(&self.inputs.config.budget)?;
        let hindrance = match hindrance {
            // Where an input is missing the task was never done. Where all are there no more can be asked: a coordinator
            // tells of a request only when it is submitted.
            Some(error) if !client.holds(&self.inputs.uploads).await? => return Err(error),
            hindrance => hindrance,
        };
        client.upload(&self.inputs.uploads).await?;
        let name = words::stage(self.spec.stage());
        let (run, is_new) = client
            .submit_task(self.request()?, name, self.spec.clone(), budget)
            .await?;
        let reused = client.run(&run).await?.run.status == RunStatus::Passed;
        if let Some(error) = hindrance.filter(|_| !reused) {
            // The same command takes it up again once the hindrance is gone. Elsewhere it may be another command's.
            if is_here || is_new {
                client.cancel(&run, "it could not begin").await?;
            }
            return Err(error);
        }
        let details = if reused {
            output.line(&self.reused_words(is_here, &run));
            client.run(&run).await?
        } else {
            resume_if_ended(client, &run, budget).await?;
            follow(client, &run, name, is_here, output).await?
        };
        let result = match client.tasks(&run).await?.into_iter().next() {
            Some(task) => task.result,
            None => None,
        };
        let found = match &result {
            Some(result) => self.write(client, result).await?,
            None => Found::default(),
        };
        Ok(Outcome {
            run_id: run,
            status: details.run.status,
            reason: details.run.reason,
            out: self.out.display().to_string(),
            reused,
            held: self.held(),
            result: result.map(|result| result.output),
            found,
        })
    }

    fn held(&self) -> Option<Held> {
        match &self.spec {
            TaskSpec::Infer(InferTask {
                answerer: Answerer::Service { .. },
                ..
            })
            | TaskSpec::Judge(_)
            | TaskSpec::Synthesize(_) => None,
            TaskSpec::Infer(_) | TaskSpec::Train(_) => Some(Held::from(&self.inputs.config.local)),
        }
    }

    fn reused_words(&self, is_here: bool, run: &RunId) -> String {
        if is_here {
            let state = self.state().display().to_string();
            format!(
                "reused from {state}, since the same inputs gave it before; to compute it again, delete {state} (with all \
                 that it keeps, paid answers too)"
            )
        } else {
            format!("reused from the coordinator's run {run}, since the same inputs gave it before")
        }
    }

    fn request(&self) -> Result<RequestId> {
        let digest = Digest::of(&json(&self.spec)?).to_string();
        RequestId::new(&format!("task-{digest}")).map_err(|error| Error::Usage(error.to_string()))
    }

    /// Writes the result; of synthesized pairs what curation keeps, and beside it what it drops.
    async fn write(&self, client: &Client, result: &TaskResult) -> Result<Found> {
        let mut found = Found::default();
        match &result.output {
            TaskOutput::Train(_) => {
                if holds_others(client, result.manifest, self.out).await? {
                    return Err(self.would_replace());
                }
                write_manifest(client, result.manifest, self.out).await?;
            }
            TaskOutput::Infer(infer) => write_file(self.out, &client.download(infer.responses).await?)?,
            TaskOutput::Judge(judge) => {
                let bytes = client.download(judge.verdicts).await?;
                write_file(self.out, &bytes)?;
                let coverage_score = gate(&self.inputs.config.gate)?.coverage_score;
                let verdicts: Vec<Verdict> = rows(judge.verdicts, &bytes)?;
                let scores = Judged::new(&verdicts, coverage_score).scores();
                found.scores = Some(Graded {
                    coverage_score,
                    scores,
                });
            }
            TaskOutput::Synthesize(synthesize) => {
                let bytes = client.download(synthesize.samples).await?;
                found.curation = Some(self.curate(rows(synthesize.samples, &bytes)?)?);
            }
        }
        Ok(found)
    }

    /// Holds raw pairs against the train split and the test split, as a run does, so that `train --samples` may take
    /// what is kept.
    fn curate(&self, candidates: Vec<Candidate>) -> Result<CurationCounts> {
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

/// The rows of an artifact.
fn rows<T: serde::de::DeserializeOwned>(digest: Digest, bytes: &[u8]) -> Result<Vec<T>> {
    let text = std::str::from_utf8(bytes).map_err(|error| Error::Artifact {
        digest: digest.to_string(),
        problem: error.to_string(),
    })?;
    Ok(jsonl::read(&format!("artifact {digest}"), text)?)
}

/// Shows on stderr what becomes of the task, until it ends.
async fn follow(
    client: &Client,
    run: &RunId,
    name: &str,
    is_here: bool,
    output: &Output,
) -> Result<RunDetails> {
    let mut progress = Progress::of_one_task(output);
    let task = TaskId::new(name).map_err(|error| Error::Usage(error.to_string()))?;
    // What an earlier command has told of the same task; another machine's clock may be another.
    let told_until_ms = match is_here {
        true => u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0),
        false => 0,
    };
    let observe = async |mut event: RunEvent| {
        let is_old = event.seq != 0 && event.time_ms < told_until_ms;
        if !is_old && is_told(&event.kind, is_here) {
            // The one task of a run is called by what it does.
            if let Some(of) = event.kind.task_mut() {
                of.clone_from(&task);
            }
            progress.event(&event);
        }
        Ok(ControlFlow::Continue(()))
    };
    client.follow(run, 1, observe).await?;
    progress.end();
    client.run(run).await
}

/// The begin and the end are told in words of their own, and so is that this process begins with it.
fn is_told(kind: &RunEventKind, is_here: bool) -> bool {
    match kind {
        RunEventKind::RunSubmitted { .. }
        | RunEventKind::RunResumed { .. }
        | RunEventKind::RunEnded { .. } => false,
        RunEventKind::AttemptStarted { attempt, .. } => !is_here || *attempt > AttemptNumber(1),
        _ => true,
    }
}

/// What to do about a stage that ended short.
fn remedy(status: RunStatus) -> Option<&'static str> {
    match status {
        RunStatus::Running | RunStatus::Passed => None,
        RunStatus::BudgetSpent => Some(
            "raise budget.max_usd or budget.max_calls and give the same command again; what was paid for is kept",
        ),
        RunStatus::ServiceFailed | RunStatus::GateNotReached | RunStatus::Cancelled | RunStatus::Failed => {
            Some("once the cause is put right, the same command goes on; what was done and paid for is kept")
        }
    }
}

fn graded_words(graded: &Graded) -> String {
    let Graded {
        coverage_score,
        scores,
    } = graded;
    let line = |name: &str, metric: &MetricScore| match (metric.mean, metric.coverage) {
        (Some(mean), Some(coverage)) => {
            let share = coverage * 100.0;
            format!("{name:10}  mean {mean:.1}, {share:.0} % covered (scores of {coverage_score} and above)")
        }
        _ => format!("{name:10}  not graded"),
    };
    let unparsed = match scores.unparsed {
        0 => String::new(),
        n => format!(", {} of them not readable and in no mean", words::grouped(n)),
    };
    format!(
        "{}\n{}\n{} of {}{unparsed}",
        line("similarity", &scores.similarity),
        line("precision", &scores.precision),
        counted(scores.verdicts, "verdict", "verdicts"),
        counted(scores.responses, "response", "responses"),
    )
}

/// Where pairs go that curation drops, each with its reason: `samples.jsonl` has `samples.dropped.jsonl` beside it.
pub(super) fn dropped_beside(out: &Path) -> PathBuf {
    out.with_extension("dropped.jsonl")
}

fn curation_words(counts: &CurationCounts, dropped: &Path) -> String {
    let reasons: Vec<String> = [
        (counts.malformed, "malformed"),
        (counts.duplicates, "repeated word for word"),
        (counts.near_duplicates, "nearly the same as another"),
        (counts.not_novel, "not novel"),
        (counts.filtered, "against a rule"),
        (counts.contaminated, "too close to a test prompt"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, why)| format!("{n} {why}"))
    .collect();
    let kept = format!("{} of {} kept", counts.kept, counted(counts.raw, "pair", "pairs"));
    if reasons.is_empty() {
        return kept;
    }
    format!(
        "{kept}; dropped: {} (listed in {})",
        reasons.join(", "),
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
                overrides: Vec::new(),
            };
            client.resume(resume).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_like_this() {
        let mut counts = CurationCounts {
            raw: 1,
            kept: 1,
            ..CurationCounts::default()
        };
        let words = |counts: &CurationCounts| curation_words(counts, Path::new("samples.dropped.jsonl"));
        assert_eq!(words(&counts), "1 of 1 pair kept");
        (counts.raw, counts.duplicates, counts.contaminated) = (1200, 3, 1);
        assert_eq!(
            words(&counts),
            "1 of 1,200 pairs kept; dropped: 3 repeated word for word, 1 too close to a test prompt (listed in \
             samples.dropped.jsonl)"
        );
    }
}
