//! `run`: a migration by a coordinator and a worker in this process.
//!
//! Invariant: the same command on the same directory goes on where the last one stopped, wherever that was.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{Cycle, RequestId, RunId};
use llamaduo_proto::run::{RunSpec, RunStatus};
use llamaduo_proto::view::{ResumeRun, RunDetails};
use serde::Serialize;
use serde_json::Value;

use super::submit;
use crate::args::Run;
use crate::client::Client;
use crate::cluster::with_cluster;
use crate::config::{self, plan::Plan};
use crate::directory::{EventLog, RunDirectory, RunRecord};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::{Overall, Progress};
use crate::{model, table};

/// Between two looks at the run as a whole.
const OVERALL_INTERVAL: Duration = Duration::from_secs(1);

/// `run`.
pub(super) async fn run(arguments: &Run, output: &Output) -> Result<Exit> {
    let mut plan = submit::plan(&arguments.config, output)?;
    let directory = config::directory_of(&arguments.config.config);
    for llm in [&mut plan.spec.service_llm, &mut plan.spec.judge_llm] {
        config::service::key_beside_config(llm, directory);
    }
    if arguments.resume && RunDirectory::existing(&arguments.out).record()?.is_none() {
        let out = arguments.out.display();
        return Err(Error::Usage(format!(
            "{out} holds no run to resume; leave --resume away to start one there"
        )));
    }
    migrate(plan, &arguments.out, output).await
}

/// Runs the plan in `out`, or goes on with the run that is there, and prints what it came to.
pub(super) async fn migrate(plan: Plan, out: &Path, output: &Output) -> Result<Exit> {
    let directory = RunDirectory::create(out)?;
    let mut record = match directory.record()? {
        Some(record) => {
            refuse_other_run(&record.spec, &plan.spec, out)?;
            output.line(&format!("going on with the run in {}", out.display()));
            record
        }
        None => RunRecord {
            request: request_id(&plan.spec)?,
            spec: plan.spec.clone(),
            run: None,
        },
    };
    let reference = &plan.spec.local_model.reference;
    model::check_fit(reference, &plan.split.test, plan.spec.infer.tokens_max, output).await?;
    directory.set_record(&record)?;
    let details = with_cluster(&directory.state(), output, async |client| {
        client.upload(&plan.uploads).await?;
        // Submitted anew each time: the request id makes it the same run, also where the crash came before the answer.
        let run = client
            .submit_run(record.request.clone(), record.spec.clone())
            .await?;
        record.run = Some(run.clone());
        directory.set_record(&record)?;
        go_on(&client, &run, &plan.spec).await?;
        follow(&client, &run, &directory, output).await
    })
    .await?;
    print(&details, &directory, output)?;
    Ok(Exit::of_run(details.run.status))
}

/// Of the specification, so that a crash before the record is written changes nothing.
fn request_id(spec: &RunSpec) -> Result<RequestId> {
    let json = serde_json::to_vec(spec).map_err(|error| Error::Stopped {
        what: error.to_string(),
    })?;
    let digest = llamaduo_proto::Digest::of(&json).to_string();
    RequestId::new(&format!("run-{digest}")).map_err(|error| Error::Usage(error.to_string()))
}

/// Limits, the way to the service LLMs and what the report only compares with may change between two commands;
/// anything else would be another run.
fn refuse_other_run(stored: &RunSpec, wanted: &RunSpec, out: &Path) -> Result<()> {
    let mut comparable = wanted.clone();
    comparable.budget = stored.budget;
    comparable.cycles_max = stored.cycles_max;
    comparable.gate.compared = stored.gate.compared;
    for (theirs, ours) in [
        (&mut comparable.service_llm, &stored.service_llm),
        (&mut comparable.judge_llm, &stored.judge_llm),
    ] {
        let (vendor, model) = (theirs.vendor, theirs.model.clone());
        theirs.clone_from(ours);
        (theirs.vendor, theirs.model) = (vendor, model);
    }
    let mut changes = Vec::new();
    let json = |spec: &RunSpec| serde_json::to_value(spec).unwrap_or_default();
    differences("", &json(stored), &json(&comparable), &mut changes);
    if changes.is_empty() {
        return Ok(());
    }
    let out = out.display();
    let changes = changes.join(", ");
    Err(Error::Usage(format!(
        "{out} holds a run with other settings ({changes}); name another directory with --out, or undo the change"
    )))
}

/// Dotted paths at which two specifications differ, with both values; at most five.
fn differences(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                differences(&path, value, new.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if old != new && found.len() < 5 => found.push(format!("{path} was {old}, is {new}")),
        _ => {}
    }
}

/// The command was given again: a run that ended short goes on, and one that goes on does so under the limits and on
/// the ways to the service LLMs that hold now.
async fn go_on(client: &Client, run: &RunId, spec: &RunSpec) -> Result<()> {
    let details = client.run(run).await?;
    let stored = details.spec.as_ref();
    let more_cycles = spec.cycles_max > stored.map_or(0, |stored| stored.cycles_max);
    let is_other = |stored: &RunSpec| {
        (stored.budget, stored.cycles_max) != (spec.budget, spec.cycles_max)
            || stored.service_llm != spec.service_llm
            || stored.judge_llm != spec.judge_llm
    };
    let is_to_resume = match details.run.status {
        RunStatus::Passed => false,
        RunStatus::Running => stored.is_some_and(is_other),
        RunStatus::GateNotReached => more_cycles,
        RunStatus::BudgetSpent | RunStatus::ServiceFailed | RunStatus::Cancelled | RunStatus::Failed => true,
    };
    if is_to_resume {
        let resume = ResumeRun {
            run: run.clone(),
            budget: Some(spec.budget),
            service_llm: Some(spec.service_llm.clone()),
            judge_llm: Some(spec.judge_llm.clone()),
            cycles_max: Some(spec.cycles_max),
        };
        client.resume(resume).await?;
    }
    Ok(())
}

/// Follows the run to its end, keeping its directory up to date.
async fn follow(
    client: &Client,
    run: &RunId,
    directory: &RunDirectory,
    output: &Output,
) -> Result<RunDetails> {
    let mut details = client.run(run).await?;
    let mut log = EventLog::open(directory)?;
    let mut progress = Progress::new(output, &details.run.name);
    let mut looked = Instant::now();
    if details.run.status == RunStatus::Running || !log.ended() {
        client
            .follow(run, log.next_seq(), async |event| {
                log.append(&event)?;
                progress.event(&event);
                if let Some(cycle) = ended_cycle(&event) {
                    directory.write_cycles(client, run, |each| each == cycle).await?;
                }
                if looked.elapsed() >= OVERALL_INTERVAL {
                    looked = Instant::now();
                    progress.overall(&Overall::of(&client.run(run).await?.run));
                }
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        details = client.run(run).await?;
    }
    progress.end();
    directory.write_cycles(client, run, |_| true).await?;
    directory.write_results(client, &details).await?;
    Ok(details)
}

/// The cycle that an event closes: what it made is complete.
fn ended_cycle(event: &RunEvent) -> Option<Cycle> {
    match &event.kind {
        RunEventKind::CycleStarted { cycle, .. } => cycle.0.checked_sub(1).map(Cycle),
        _ => None,
    }
}

#[derive(Serialize)]
struct Outcome<'a> {
    run_id: &'a RunId,
    status: RunStatus,
    reason: Option<&'a str>,
    directory: String,
    report: Option<Value>,
}

fn print(details: &RunDetails, directory: &RunDirectory, output: &Output) -> Result<()> {
    let run = &details.run;
    let report = directory.report()?;
    let outcome = Outcome {
        run_id: &run.run,
        status: run.status,
        reason: run.reason.as_deref(),
        directory: directory.root().display().to_string(),
        report,
    };
    output.result(&outcome, || match &outcome.report {
        Some(report) => table::report_text(report, directory.root()),
        None => format!(
            "{}: {}",
            crate::progress::words::status(run.status),
            run.reason.as_deref().unwrap_or_default()
        ),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
