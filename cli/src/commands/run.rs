//! `run`: a migration by a coordinator and a worker in this process.
//!
//! Invariant: the same command on the same directory goes on where the last one stopped, wherever that was.

pub(super) mod resume;

use std::ops::ControlFlow;
use std::path::Path;

use llamaduo_kernels::Device;
use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{Cycle, RequestId, RunId};
use llamaduo_proto::run::{RunSpec, RunStatus};
use llamaduo_proto::view::RunDetails;
use serde::Serialize;
use serde_json::Value;

use super::remote::Bar;
use super::{reach, submit};
use crate::args::Run;
use crate::client::Client;
use crate::cluster::with_cluster;
use crate::config::{self, changes, plan::Plan};
use crate::directory::{EventLog, RunDirectory, RunRecord};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Progress;
use crate::{model, table};
use resume::GoneOn;

/// `run`.
pub(super) async fn run(arguments: &Run, output: &Output) -> Result<Exit> {
    let mut configured = arguments.config.clone();
    if arguments.resume {
        configured.set = set_to_resume(arguments, output)?;
    }
    let mut plan = submit::plan(&configured, output)?;
    plan.settings = plan.settings.with_set(configured.set);
    let directory = config::directory_of(&arguments.config.config);
    for llm in [&mut plan.spec.service_llm, &mut plan.spec.judge_llm] {
        config::service::key_beside_config(llm, directory);
    }
    migrate(plan, Began::ByRun, &arguments.out, arguments.device, output).await
}

/// Which command a run is begun and gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Began {
    /// `run`, which takes another limit of cycles.
    ByRun,
    /// `demo`, whose settings are its own.
    ByDemo,
}

/// The `--set` options that the run was last given, and over them those of now.
fn set_to_resume(arguments: &Run, output: &Output) -> Result<Vec<String>> {
    let out = arguments.out.display();
    let Some(record) = RunDirectory::existing(&arguments.out).record()? else {
        return Err(Error::Usage(format!(
            "{out} holds no run to resume; leave --resume away to start one there"
        )));
    };
    let given = &arguments.config.set;
    let Some(settings) = record.settings else {
        return Ok(given.clone());
    };
    Ok(resume::with_remembered(settings.set(), given, output))
}

/// Runs the plan in `out`, or goes on with the run that is there, and prints what it came to.
pub(super) async fn migrate(
    plan: Plan,
    began: Began,
    out: &Path,
    device: Device,
    output: &Output,
) -> Result<Exit> {
    let found = RunDirectory::existing(out);
    match found.record()? {
        Some(record) => refuse_fewer_cycles(&record, &plan, out)?,
        None => refuse_state_of_stages(&found)?,
    }
    let is_over = reach::before_run(&plan.spec, &found, output).await?;
    let directory = RunDirectory::create(out)?;
    if let Some(record) = directory.record()? {
        refuse_other_run(&record, &plan, out)?;
        if !is_over {
            output.line(&format!("going on with the run in {}", out.display()));
        }
    }
    if !is_over {
        let reference = &plan.spec.local_model.reference;
        model::check_fit(reference, &plan.split.test, plan.spec.infer.tokens_max, output).await?;
    }
    let (details, ended) = with_cluster(&directory.state(), device, output, async |client| {
        // Only now is the directory this process's alone.
        let mut record = recorded(&directory, &plan, out)?;
        directory.set_record(&record)?;
        client.upload(&plan.uploads).await?;
        // Submitted anew each time: the request id makes it the same run, also where the crash came before the answer.
        let (run, _) = client
            .submit_run(record.request.clone(), record.spec.clone())
            .await?;
        record.run = Some(run.clone());
        directory.set_record(&record)?;
        let was = client.run(&run).await?.run.status;
        let gone_on = resume::go_on(&client, &run, &plan.spec).await?;
        // What was refused above, or given to a run that is over, is not to be remembered for the next command.
        if matches!(gone_on, GoneOn::Resumed | GoneOn::RunsAlready) {
            record.settings = Some(plan.settings.clone());
            record.cycles_max = Some(plan.spec.cycles_max);
            directory.set_record(&record)?;
        }
        let details = follow(&client, &run, &directory, output).await?;
        let ended = match was {
            RunStatus::Running => None,
            _ => ended_before(gone_on, plan.spec.cycles_max, began),
        };
        Ok((details, ended))
    })
    .await?;
    print(&details, ended.is_some(), &directory, output)?;
    if let Some(why_and_what) = ended {
        output.line(&format!(
            "the run in {} had ended before, so nothing was done now: {why_and_what}",
            out.display()
        ));
    }
    Ok(Exit::of_run(details.run.status))
}

/// Why a run that had ended was left as it was, and what to do about that.
fn ended_before(gone_on: GoneOn, cycles_max: u32, began: Began) -> Option<String> {
    let anew = match began {
        Began::ByRun => "to begin another, name another directory with --out",
        Began::ByDemo => {
            "to begin another, name another directory with --out, and another --seed for other data"
        }
    };
    let used = match cycles_max {
        1 => "its only cycle".to_owned(),
        n => format!("all its {n} cycles"),
    };
    Some(match (gone_on, began) {
        (GoneOn::Resumed | GoneOn::RunsAlready, _) => return None,
        (GoneOn::Passed, _) => format!("it passed its gate; {anew}"),
        (GoneOn::CyclesUsed, Began::ByDemo) => format!("it used {used} without passing its gate; {anew}"),
        (GoneOn::CyclesUsed, Began::ByRun) => format!(
            "it used {used} without passing its gate; to give it more, add --resume --set run.cycles_max={} (or more) to this \
             command; {anew}",
            cycles_max.saturating_add(1)
        ),
        (GoneOn::NothingNew, _) => format!(
            "it did not pass its gate, and {}; {anew}{}",
            resume::NOTHING_NEW,
            match began {
                Began::ByRun => ", with other settings of [synthesis]",
                Began::ByDemo => "",
            }
        ),
    })
}

/// A run that may use more cycles than it is given now would not be the run that is asked for.
fn refuse_fewer_cycles(record: &RunRecord, plan: &Plan, out: &Path) -> Result<()> {
    let out = out.display();
    let otherwise = format!(
        "give --resume alone, which remembers what the run was given; or leave it as it is: {out}/cycles/N/adapter is what \
         cycle N trained, and `llamaduo report {out}` prints what a run that has ended came to"
    );
    let allowed = record.cycles_max.unwrap_or(record.spec.cycles_max);
    resume::refuse_fewer_cycles(
        &format!("the run in {out}"),
        allowed,
        plan.spec.cycles_max,
        &otherwise,
    )
}

/// The worker of this process would go on with what single stages left unfinished there.
fn refuse_state_of_stages(directory: &RunDirectory) -> Result<()> {
    if !directory.holds_stages() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} is what single stages (train, infer, judge, synth) keep beside their results, and a run keeps its own; name \
         another directory with --out, such as {}",
        directory.state().display(),
        directory.root().join("run").display()
    )))
}

/// What the directory's run is, or is to be.
fn recorded(directory: &RunDirectory, plan: &Plan, out: &Path) -> Result<RunRecord> {
    match directory.record()? {
        Some(record) => {
            refuse_other_run(&record, plan, out)?;
            Ok(record)
        }
        None => Ok(RunRecord {
            request: request_id(&plan.spec)?,
            spec: plan.spec.clone(),
            run: None,
            settings: Some(plan.settings.clone()),
            cycles_max: Some(plan.spec.cycles_max),
        }),
    }
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
fn refuse_other_run(record: &RunRecord, plan: &Plan, out: &Path) -> Result<()> {
    let stored = &record.spec;
    let comparable = resume::comparable(stored, &plan.spec);
    if *stored == comparable {
        return Ok(());
    }
    let out = out.display();
    let (stored, wanted) = (changes::plain(stored), changes::plain(&comparable));
    let changes = changes::describe(record.settings.as_ref(), &plan.settings, &stored, &wanted).join("\n  ");
    Err(Error::Usage(format!(
        "{out} holds a run with other settings; undo the change, or name another directory with --out:\n  {changes}"
    )))
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
    let mut bar = Bar::default();
    if details.run.status == RunStatus::Running || !log.ended() {
        client
            .follow(run, log.next_seq(), async |event| {
                log.append(&event)?;
                progress.event(&event);
                if let Some(cycle) = ended_cycle(&event) {
                    directory.write_cycles(client, run, |each| each == cycle).await?;
                }
                bar.keep_up(client, run, &progress).await;
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
    /// Whether the run had ended before this command, which did nothing.
    ended_before: bool,
    directory: String,
    report: Option<Value>,
}

fn print(details: &RunDetails, ended_before: bool, directory: &RunDirectory, output: &Output) -> Result<()> {
    let run = &details.run;
    let report = directory.report()?;
    let outcome = Outcome {
        run_id: &run.run,
        status: run.status,
        reason: run.reason.as_deref(),
        ended_before,
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
