//! Which process may speak for a worker.
//!
//! Invariant: of two processes with one name only one is let in while both live, and none comes back in place of its
//! successor. The end of a stream frees no name; a goodbye does, or being silent for too long.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use llamaduo_proto::ids::{DirectoryId, Incarnation, WorkerId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Dead processes of one worker that are remembered, so that none of them comes back in place of its successor.
const SUPERSEDED_MAX: usize = 32;
/// Workers whose processes are remembered; beyond it those that are gone are forgotten.
const WORKERS_MAX: usize = 10_000;

/// Why a worker cannot attach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttachError {
    /// A newer process has its name.
    #[error(
        "worker {worker} was started anew; this older process must not attach again. Start each worker with a --name of its own"
    )]
    Superseded { worker: WorkerId },
    /// A live process of another directory has its name.
    #[error(
        "another process is at work as {worker}, from another data directory; start each worker with a --name of its own. \
         If that one is gone, its name is free in {} s", free_in.as_secs().max(1)
    )]
    NameTaken {
        worker: WorkerId,
        /// When the name is free if nothing is heard of that process any more.
        free_in: Duration,
    },
}

/// One process of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) incarnation: Incarnation,
    /// What it holds; `None` is a directory of nobody else.
    pub(super) directory: Option<DirectoryId>,
}

/// The processes that were seen of one worker.
#[derive(Debug)]
struct Processes {
    newest: Process,
    superseded: VecDeque<Incarnation>,
    /// When the newest was last heard of; `None` once its name is free.
    heard_at: Option<Instant>,
}

/// What is remembered of workers' processes. Kept when a session ends, so that an older process cannot come back.
#[derive(Debug)]
pub(super) struct Admission {
    workers: BTreeMap<WorkerId, Processes>,
    /// A worker that was silent for so long counts as gone.
    silent_after: Duration,
}

impl Admission {
    pub(super) fn new(silent_after: Duration) -> Self {
        Self {
            workers: BTreeMap::new(),
            silent_after,
        }
    }

    /// Takes over who spoke for `worker` before a restart: it has a lease's time to say so again.
    pub(super) fn remember(&mut self, worker: WorkerId, process: Process, now: Instant) {
        self.workers.entry(worker).or_insert(Processes {
            newest: process,
            superseded: VecDeque::new(),
            heard_at: Some(now),
        });
    }

    /// Lets a process in as `worker`, or says why not. Gives whether it was not the one that had the name.
    pub(super) fn admit(
        &mut self,
        worker: &WorkerId,
        process: &Process,
        now: Instant,
    ) -> Result<bool, AttachError> {
        let silent_after = self.silent_after;
        let processes = self.workers.entry(worker.clone()).or_insert_with(|| Processes {
            newest: process.clone(),
            superseded: VecDeque::new(),
            heard_at: None,
        });
        if let Some(silent_for) = processes.silent_for(now)
            && silent_for < silent_after
            && !process.may_follow(&processes.newest)
        {
            return Err(AttachError::NameTaken {
                worker: worker.clone(),
                free_in: silent_after - silent_for,
            });
        }
        if processes.superseded.contains(&process.incarnation) {
            return Err(AttachError::Superseded {
                worker: worker.clone(),
            });
        }
        let is_new = processes.heard_at.is_none() || processes.newest != *process;
        let old = std::mem::replace(&mut processes.newest, process.clone());
        if old.incarnation != process.incarnation {
            processes.superseded.push_back(old.incarnation);
            let surplus = processes.superseded.len().saturating_sub(SUPERSEDED_MAX);
            processes.superseded.drain(..surplus);
        }
        processes.heard_at = Some(now);
        Ok(is_new)
    }

    /// Notes a sign of life of the process that has the name.
    pub(super) fn heard(&mut self, worker: &WorkerId, now: Instant) {
        if let Some(processes) = self.workers.get_mut(worker) {
            processes.heard_at = Some(now);
        }
    }

    /// Whether a worker was heard of lately.
    pub(super) fn is_awake(&self, worker: &WorkerId, now: Instant) -> bool {
        let silent_for = self
            .workers
            .get(worker)
            .and_then(|processes| processes.silent_for(now));
        silent_for.is_some_and(|silent_for| silent_for < self.silent_after)
    }

    /// Frees the name of a worker that said goodbye.
    pub(super) fn left(&mut self, worker: &WorkerId) {
        if let Some(processes) = self.workers.get_mut(worker) {
            processes.heard_at = None;
        }
    }

    /// Frees the names of workers without a session that were silent for too long, and gives them. Keeps the table within
    /// its bound.
    pub(super) fn free_names(
        &mut self,
        now: Instant,
        has_session: impl Fn(&WorkerId) -> bool,
    ) -> Vec<WorkerId> {
        let mut freed = Vec::new();
        for (worker, processes) in &mut self.workers {
            let is_silent = processes
                .silent_for(now)
                .is_some_and(|silent_for| self.silent_after <= silent_for);
            if is_silent && !has_session(worker) {
                processes.heard_at = None;
                freed.push(worker.clone());
            }
        }
        if self.workers.len() >= WORKERS_MAX {
            self.workers.retain(|_, processes| processes.heard_at.is_some());
        }
        freed
    }
}

impl Processes {
    /// `None` when nobody has the name.
    fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.heard_at.map(|heard_at| now - heard_at)
    }
}

impl Process {
    /// Whether it is `other`, or its successor: one from the same directory could not hold it if the other still lived.
    fn may_follow(&self, other: &Self) -> bool {
        let is_successor = self.directory.is_some() && other.directory == self.directory;
        self.incarnation == other.incarnation || is_successor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_secs(15);

    fn process(incarnation: &str, directory: Option<&str>) -> Process {
        Process {
            incarnation: Incarnation::new(incarnation).expect("a valid id"),
            directory: directory.map(|name| DirectoryId::new(name).expect("a valid id")),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_second_process_is_let_in_only_where_the_first_is_gone() {
        let worker = WorkerId::new("w1").expect("a valid id");
        let here = process("1", Some("here"));
        let cases = [
            (process("1", Some("here")), 0, true),
            (process("2", Some("here")), 0, true),
            (process("2", Some("there")), 0, false),
            (process("2", Some("there")), 14, false),
            (process("2", Some("there")), 15, true),
            (process("2", None), 0, false),
        ];
        for (other, silent_s, may) in cases {
            let start = Instant::now();
            let mut admission = Admission::new(SILENT);
            let first = admission.admit(&worker, &here, start);
            assert_eq!(first, Ok(true), "nobody is there");
            let now = start + seconds(silent_s);
            let admitted = admission.admit(&worker, &other, now);
            match &admitted {
                Ok(is_new) => assert!(may && *is_new == (other != here), "{other:?} after {silent_s} s"),
                Err(AttachError::NameTaken { free_in, .. }) => {
                    assert!(
                        !may && *free_in == SILENT - seconds(silent_s),
                        "{other:?} after {silent_s} s"
                    );
                }
                Err(error) => panic!("{other:?} after {silent_s} s: {error}"),
            }
            // Who was refused has superseded nobody.
            let back = admission.admit(&worker, &here, now + SILENT);
            assert_eq!(back.is_ok(), !may || other == here, "{other:?}");
        }
        let mut admission = Admission::new(SILENT);
        let start = Instant::now();
        admission
            .admit(&worker, &process("1", None), start)
            .expect("nobody is there");
        let admitted = admission.admit(&worker, &process("2", None), start);
        assert!(admitted.is_err(), "two without a directory are two");
    }

    #[test]
    fn a_name_is_free_after_a_goodbye_or_a_long_silence() {
        let worker = WorkerId::new("w1").expect("a valid id");
        let (here, there) = (process("1", Some("here")), process("2", Some("there")));
        let start = Instant::now();
        let mut admission = Admission::new(SILENT);
        admission.remember(worker.clone(), here.clone(), start);
        assert!(
            admission.admit(&worker, &there, start).is_err(),
            "kept over a restart"
        );
        assert!(admission.is_awake(&worker, start + seconds(14)));
        assert!(admission.free_names(start + seconds(14), |_| false).is_empty());
        assert!(admission.free_names(start + seconds(15), |_| true).is_empty());
        admission.heard(&worker, start + seconds(10));
        assert!(admission.free_names(start + seconds(15), |_| false).is_empty());
        assert_eq!(
            admission.free_names(start + seconds(25), |_| false),
            std::slice::from_ref(&worker)
        );
        assert!(!admission.is_awake(&worker, start + seconds(10)));
        let now = start + seconds(25);
        assert_eq!(admission.admit(&worker, &there, now), Ok(true));
        assert_eq!(admission.admit(&worker, &there, now), Ok(false), "known already");
        admission.left(&worker);
        let third = process("3", Some("elsewhere"));
        assert_eq!(admission.admit(&worker, &third, now), Ok(true));
        let back = admission.admit(&worker, &there, now + SILENT);
        assert!(matches!(back, Err(AttachError::Superseded { .. })), "{back:?}");
    }
}
