//! Runs and tasks as clients see them.

use std::collections::BTreeMap;

use llamaduo_proto::ids::TaskId;
use llamaduo_proto::run::{Cost, Stage};
use llamaduo_proto::task::TaskStatus;
use llamaduo_proto::view::{
    CycleCuration, CycleGate, RunDetails, RunView, StageCount, SubjectScores, TaskView,
};

use crate::machine::{Run, Task};

/// A run as it stands.
pub(super) fn run(run: &Run, cost: Cost) -> RunView {
    RunView {
        run: run.id.clone(),
        name: run.work.name().to_owned(),
        status: run.head.status,
        reason: run.has_ended().then(|| run.head.reason.clone()),
        cycle: run.head.cycle,
        stages: stages(run),
        cost,
        report: run.head.report,
        adapter: run.best_adapter(),
        submitted_at_ms: run.head.submitted_at_ms,
        ending: run.head.ending.as_ref().map(|ending| ending.status),
    }
}

fn stages(run: &Run) -> Vec<StageCount> {
    let mut counts: BTreeMap<Stage, StageCount> = BTreeMap::new();
    for task in run
        .tasks
        .values()
        .filter(|task| task.record.cycle == run.head.cycle)
    {
        let stage = run.stage(task).0;
        let count = counts.entry(stage).or_insert(StageCount {
            stage,
            n_done: 0,
            n_total: 0,
        });
        count.n_total += 1;
        count.n_done += u32::from(task.record.status == TaskStatus::Done);
    }
    counts.into_values().collect()
}

/// A run with what it was asked and what it measured.
pub(super) fn details(of: &Run, cost: Cost) -> RunDetails {
    let scores = of.cycles.iter().flat_map(|(cycle, record)| {
        let scores = |scored: &crate::machine::Scored| SubjectScores {
            cycle: *cycle,
            subject: scored.subject,
            scores: scored.scores.clone(),
        };
        record.scores.iter().map(scores)
    });
    let gates = of.cycles.iter().filter_map(|(cycle, record)| {
        let decision = record.gate.clone()?;
        Some(CycleGate {
            cycle: *cycle,
            decision,
        })
    });
    let curations = of.cycles.iter().filter_map(|(cycle, record)| {
        Some(CycleCuration {
            cycle: *cycle,
            manifest: record.curation?.manifest,
        })
    });
    RunDetails {
        run: run(of, cost),
        spec: of.spec().cloned(),
        scores: scores.collect(),
        gates: gates.collect(),
        curations: curations.collect(),
    }
}

/// A task as it stands; `None` for a task whose inputs are not there, which no created task is.
pub(super) fn task(run: &Run, id: &TaskId, task: &Task) -> Option<TaskView> {
    Some(TaskView {
        run: run.id.clone(),
        task: id.clone(),
        spec: run.task_spec(id)?,
        status: run.status_of(task),
        n_attempts: task.record.n_attempts,
        worker: task.lease.as_ref().map(|lease| lease.claim.worker.clone()),
        result: task.record.result.clone(),
        failures: task.record.failures.clone(),
        progress: task.progress.clone(),
    })
}
