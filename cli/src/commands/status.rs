//! `status`: what runs at a coordinator, and how far it is.
//!
//! Invariant: every number comes from the coordinator; nothing is guessed from what is missing.

use llamaduo_proto::ids::{TaskId, WorkerId};
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::task::{Progress, TaskStatus};
use llamaduo_proto::view::{RunDetails, RunView, TaskView, WorkerView};
use serde::Serialize;

use super::remote::{connect, run_id};
use crate::args::Status;
use crate::error::Result;
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::words;

/// All that a coordinator has.
#[derive(Serialize)]
struct Overview {
    /// The newest first.
    runs: Vec<RunView>,
    /// Those with a session.
    workers: Vec<WorkerView>,
}

/// A run with what works on it now.
#[derive(Serialize)]
struct RunStatusNow {
    #[serde(flatten)]
    details: RunDetails,
    /// Its tasks that are being done.
    tasks_running: Vec<RunningTask>,
    /// Every worker of the coordinator; none are listed for a run that has ended.
    workers: Vec<WorkerView>,
}

/// A task that a worker does at the moment.
#[derive(Serialize)]
struct RunningTask {
    task: TaskId,
    attempt: u32,
    worker: Option<WorkerId>,
    progress: Option<Progress>,
}

impl RunningTask {
    fn of(task: TaskView) -> Option<Self> {
        (task.status == TaskStatus::Running).then_some(Self {
            task: task.task,
            attempt: task.n_attempts,
            worker: task.worker,
            progress: task.progress,
        })
    }
}

/// `status`.
pub(super) async fn status(arguments: &Status, output: &Output) -> Result<Exit> {
    let run = arguments.run.as_deref().map(run_id).transpose()?;
    let client = connect(&arguments.remote).await?;
    let Some(run) = run else {
        let (runs, workers) = (client.list_runs().await?, client.list_workers().await?);
        let all = Overview { runs, workers };
        output.result(&all, || overview(&all.runs, &all.workers))?;
        return Ok(Exit::Ok);
    };
    let details = client.run(&run).await?;
    let (tasks, workers) = if details.run.status == RunStatus::Running {
        (client.tasks(&run).await?, client.list_workers().await?)
    } else {
        (Vec::new(), Vec::new())
    };
    let now = RunStatusNow {
        details,
        tasks_running: tasks.into_iter().filter_map(RunningTask::of).collect(),
        workers,
    };
    output.result(&now, || text(&now))?;
    Ok(Exit::Ok)
}

/// All runs and all workers.
fn overview(runs: &[RunView], workers: &[WorkerView]) -> String {
    let width = runs
        .iter()
        .map(|run| run.run.as_str().len())
        .max()
        .unwrap_or_default();
    let line = |run: &RunView| {
        let id = run.run.as_str();
        format!(
            "{id:width$}  {:16}  cycle {:2}  {}",
            standing(run),
            run.cycle.0,
            run.name
        )
    };
    let mut lines: Vec<String> = runs.iter().map(line).collect();
    if runs.is_empty() {
        lines.push("no runs; submit one with `llamaduo submit`".to_owned());
    }
    let is_wanted = runs.iter().any(|run| run.status == RunStatus::Running);
    if workers.is_empty() && is_wanted {
        lines.push(NO_WORKER.to_owned());
    }
    lines.extend(workers.iter().map(worker_line));
    lines.join("\n")
}

const NO_WORKER: &str = "no worker is connected; start one with `llamaduo worker --coordinator URL`";

fn worker_line(worker: &WorkerView) -> String {
    let task = |(run, task): &_| format!("{run}/{task}");
    let does = if worker.running.is_empty() {
        "idle".to_owned()
    } else {
        worker.running.iter().map(task).collect::<Vec<_>>().join(", ")
    };
    let leaves = if worker.draining {
        ", takes nothing new"
    } else {
        ""
    };
    format!("worker {} ({}{leaves}): {does}", worker.worker, worker.device)
}

/// How a run stands, for people.
fn standing(run: &RunView) -> String {
    match (run.status, run.ending) {
        (RunStatus::Running, Some(RunStatus::Cancelled)) => "being cancelled".to_owned(),
        (RunStatus::Running, Some(ending)) => format!("ending: {}", words::status(ending)),
        (status, _) => words::status(status).to_owned(),
    }
}

fn text(now: &RunStatusNow) -> String {
    let RunStatusNow {
        details,
        tasks_running,
        workers,
    } = now;
    let run = &details.run;
    let mut lines = vec![format!(
        "{} \"{}\": {}, cycle {}",
        run.run,
        run.name,
        standing(run),
        run.cycle.0
    )];
    lines.extend(run.reason.clone());
    for count in &run.stages {
        lines.push(format!(
            "  {:10} {}/{} tasks",
            words::stage(count.stage),
            count.n_done,
            count.n_total
        ));
    }
    lines.extend(tasks_running.iter().map(task_line));
    for scored in &details.scores {
        lines.push(format!(
            "  {}: {}",
            words::subject_name(scored.subject),
            words::scores(&scored.scores)
        ));
    }
    for gate in &details.gates {
        lines.push(format!(
            "  gate after cycle {}: {}",
            gate.cycle.0, gate.decision.reason
        ));
    }
    lines.push(format!("  {}", words::cost(&run.cost)));
    if workers.is_empty() && run.status == RunStatus::Running {
        lines.push(format!("  {NO_WORKER}"));
    }
    lines.extend(workers.iter().map(|worker| format!("  {}", worker_line(worker))));
    lines.join("\n")
}

/// `  c01-train on one, attempt 2: 12/40 steps loss 1.2`
fn task_line(running: &RunningTask) -> String {
    let mut line = format!("  {}", running.task);
    if let Some(worker) = &running.worker {
        line += &format!(" on {worker}");
    }
    if running.attempt > 1 {
        line += &format!(", attempt {}", running.attempt);
    }
    match &running.progress {
        Some(progress) => format!("{line}: {}", words::amount(progress)),
        None => line,
    }
}

#[cfg(test)]
mod tests;
