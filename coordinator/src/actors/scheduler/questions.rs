//! What the scheduler asks of runs.
//!
//! Invariant: pure functions of snapshots; nothing here remembers anything.

use std::sync::Arc;

use llamaduo_proto::ids::{AttemptId, Incarnation, TaskId, WorkerId};
use llamaduo_proto::session::{Assignment, Credits, RunningAttempt};
use llamaduo_proto::task::TaskStatus;

use super::SessionId;
use crate::machine::{ReadyTask, Run, WorkerView};

/// A worker with what it holds.
pub(super) fn worker_view(id: &SessionId, credits: Credits, runs: &[Arc<Run>]) -> WorkerView {
    let held = runs.iter().flat_map(|run| {
        let by_worker = run.tasks.values().filter(|task| {
            task.lease
                .as_ref()
                .is_some_and(|lease| lease.claim.worker == id.worker)
        });
        by_worker.map(|task| (run.id.clone(), run.lane(task)))
    });
    WorkerView {
        worker: id.worker.clone(),
        incarnation: id.incarnation.clone(),
        credits,
        held: held.collect(),
    }
}

/// Tasks that wait for a worker, in the order of creation.
pub(super) fn ready_tasks(run: &Run) -> Vec<ReadyTask> {
    let ready = run
        .tasks_in_order()
        .into_iter()
        .filter(|(_, task)| task.record.status == TaskStatus::Ready);
    let ready = ready.map(|(id, task)| ReadyTask {
        run: run.id.clone(),
        task: id.clone(),
        lane: run.lane(task),
        not_before: task.not_before,
        avoid: task.avoid.clone(),
    });
    ready.collect()
}

/// What the holder of a task's lease is sent.
pub(super) fn assignment_of(run: &Run, task: &TaskId) -> Option<Assignment> {
    let state = run.tasks.get(task)?;
    Some(Assignment {
        attempt: run.attempt_id(task)?,
        spec: run.task_spec(task)?,
        checkpoint: state.checkpoint,
        batch_halvings: state.record.batch_halvings,
    })
}

/// Whether this process of this worker claimed the lease of a task.
pub(super) fn is_claimed(run: &Run, task: &TaskId, worker: &WorkerId, incarnation: &Incarnation) -> bool {
    let claim = run
        .tasks
        .get(task)
        .and_then(|task| task.lease.as_ref())
        .map(|lease| &lease.claim);
    claim.is_some_and(|claim| claim.worker == *worker && claim.incarnation == *incarnation)
}

/// Whether this worker holds the lease of `attempt`.
pub(crate) fn holds(run: &Run, attempt: &AttemptId, worker: &WorkerId) -> bool {
    run.current(attempt)
        .is_some_and(|lease| lease.claim.worker == *worker)
}

/// Those of `running` that belong to `run`.
pub(super) fn attempts_of(run: &Run, running: &[RunningAttempt]) -> Vec<RunningAttempt> {
    running
        .iter()
        .filter(|running| running.attempt.run == run.id)
        .cloned()
        .collect()
}
