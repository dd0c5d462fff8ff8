//! Which worker gets which task.
//!
//! Invariant: no worker gets more than its free slots of a lane, no task goes to two workers, and runs get slots in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use llamaduo_proto::ids::{Incarnation, RunId, TaskId, WorkerId};
use llamaduo_proto::session::Credits;
use llamaduo_proto::task::Lane;

/// A task that waits for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyTask {
    /// Its run.
    pub run: RunId,
    /// Its id.
    pub task: TaskId,
    /// The slots it takes.
    pub lane: Lane,
    /// Not before this.
    pub not_before: Duration,
    /// Who failed it last, and until when others are preferred.
    pub avoid: Option<(WorkerId, Duration)>,
}

/// A worker with a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its id.
    pub worker: WorkerId,
    /// Which process of it.
    pub incarnation: Incarnation,
    /// Its slots.
    pub credits: Credits,
    /// The run and lane of every lease it holds.
    pub held: Vec<(RunId, Lane)>,
}

impl WorkerView {
    fn slots(&self, lane: Lane) -> usize {
        let slots = match lane {
            Lane::LocalModel => self.credits.local_model_slots,
            Lane::Service => self.credits.service_slots,
        };
        usize::try_from(slots).unwrap_or(usize::MAX)
    }

    fn free(&self, lane: Lane) -> usize {
        self.slots(lane)
            .saturating_sub(self.held.iter().filter(|(_, held)| *held == lane).count())
    }
}

/// A task given to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The run.
    pub run: RunId,
    /// The task.
    pub task: TaskId,
    /// The worker.
    pub worker: WorkerId,
    /// Which process of it.
    pub incarnation: Incarnation,
}

/// Gives ready tasks to free slots. Within a run the order of `ready` decides; between runs the one with the fewest
/// leases in the lane goes first, and of equals the one that comes first in `ready`. A task goes to the worker with the
/// most free slots, but not to the one that just failed it while another worker serves that lane.
pub fn place(ready: &[ReadyTask], workers: &[WorkerView], now: Duration) -> Vec<Assignment> {
    let mut workers = workers.to_vec();
    let mut given = BTreeSet::new();
    let mut assignments = Vec::new();
    for lane in [Lane::LocalModel, Lane::Service] {
        let waiting: Vec<&ReadyTask> = ready
            .iter()
            .filter(|task| task.lane == lane && task.not_before <= now)
            .collect();
        let mut n_held: BTreeMap<&RunId, usize> = BTreeMap::new();
        for task in &waiting {
            let held = |worker: &WorkerView| {
                worker
                    .held
                    .iter()
                    .filter(|(run, held)| *run == task.run && *held == lane)
                    .count()
            };
            n_held
                .entry(&task.run)
                .or_insert_with(|| workers.iter().map(held).sum());
        }
        let mut refused = BTreeSet::new();
        while workers.iter().any(|worker| worker.free(lane) > 0) {
            let is_open = |task: &&&ReadyTask| {
                !given.contains(&(&task.run, &task.task)) && !refused.contains(&(&task.run, &task.task))
            };
            let next = waiting
                .iter()
                .filter(is_open)
                .min_by_key(|task| n_held.get(&task.run).copied());
            let Some(&task) = next else { break };
            let Some(worker) = choose(task, &mut workers, now) else {
                refused.insert((&task.run, &task.task));
                continue;
            };
            worker.held.push((task.run.clone(), lane));
            *n_held.entry(&task.run).or_default() += 1;
            given.insert((&task.run, &task.task));
            assignments.push(Assignment {
                run: task.run.clone(),
                task: task.task.clone(),
                worker: worker.worker.clone(),
                incarnation: worker.incarnation.clone(),
            });
        }
    }
    assignments
}

fn choose<'a>(task: &ReadyTask, workers: &'a mut [WorkerView], now: Duration) -> Option<&'a mut WorkerView> {
    let avoided = task
        .avoid
        .as_ref()
        .filter(|(_, until)| now < *until)
        .map(|(worker, _)| worker.clone());
    let serves = |worker: &WorkerView| worker.slots(task.lane) > 0;
    let has_other = workers
        .iter()
        .any(|worker| Some(&worker.worker) != avoided.as_ref() && serves(worker));
    workers
        .iter_mut()
        .filter(|worker| {
            worker.free(task.lane) > 0 && !(has_other && Some(&worker.worker) == avoided.as_ref())
        })
        .max_by_key(|worker| (worker.free(task.lane), std::cmp::Reverse(worker.held.len())))
}
