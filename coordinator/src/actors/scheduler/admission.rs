//! Which process may speak for a worker.
//!
//! Invariant: of two processes with one name only one is let in while both live, and none comes back in place of its
//! successor.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use llamaduo_proto::ids::{DirectoryId, Incarnation, WorkerId};

/// Dead processes of one worker that are remembered, so that none of them comes back in place of its successor.
const SUPERSEDED_MAX: usize = 32;
/// Workers whose processes are remembered; beyond it those without a session are forgotten.
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
         If that one is gone, its name is free within {silent_s} s"
    )]
    NameTaken {
        worker: WorkerId,
        /// Seconds after which a silent worker counts as gone.
        silent_s: u64,
    },
}

/// One process of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) incarnation: Incarnation,
    /// What it holds; `None` is a directory of nobody else.
    pub(super) directory: Option<DirectoryId>,
}

/// A process with a session, and how long it has been silent.
#[derive(Debug)]
pub(super) struct Present<'a> {
    pub(super) process: &'a Process,
    pub(super) silent_for: Duration,
}

/// The processes that were seen of one worker.
#[derive(Debug)]
struct Processes {
    newest: Incarnation,
    superseded: VecDeque<Incarnation>,
}

/// What is remembered of workers' processes. Kept when a session ends, so that an older process cannot come back.
#[derive(Debug, Default)]
pub(super) struct Admission {
    workers: BTreeMap<WorkerId, Processes>,
}

impl Admission {
    /// Lets a process in as `worker`, or says why not. `present` is who speaks for it now; one that was silent for
    /// `silent_after` counts as gone.
    pub(super) fn admit(
        &mut self,
        worker: &WorkerId,
        process: &Process,
        present: Option<Present<'_>>,
        silent_after: Duration,
    ) -> Result<(), AttachError> {
        if present.is_some_and(|present| present.is_in_the_way_of(process, silent_after)) {
            return Err(AttachError::NameTaken {
                worker: worker.clone(),
                silent_s: silent_after.as_secs().max(1),
            });
        }
        let incarnation = &process.incarnation;
        let new = || Processes {
            newest: incarnation.clone(),
            superseded: VecDeque::new(),
        };
        let processes = self.workers.entry(worker.clone()).or_insert_with(new);
        if processes.superseded.contains(incarnation) {
            return Err(AttachError::Superseded {
                worker: worker.clone(),
            });
        }
        if processes.newest != *incarnation {
            let old = std::mem::replace(&mut processes.newest, incarnation.clone());
            processes.superseded.push_back(old);
            let surplus = processes.superseded.len().saturating_sub(SUPERSEDED_MAX);
            processes.superseded.drain(..surplus);
        }
        Ok(())
    }

    /// Keeps the table within its bound; `has_session` says who must stay.
    pub(super) fn trim(&mut self, has_session: impl Fn(&WorkerId) -> bool) {
        if self.workers.len() >= WORKERS_MAX {
            self.workers.retain(|worker, _| has_session(worker));
        }
    }
}

impl Present<'_> {
    /// One from the same directory is its successor: it could not hold the directory if the other still lived.
    fn is_in_the_way_of(&self, process: &Process, silent_after: Duration) -> bool {
        let is_successor = process.directory.is_some() && self.process.directory == process.directory;
        self.process.incarnation != process.incarnation && !is_successor && self.silent_for < silent_after
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
            let mut admission = Admission::default();
            admission
                .admit(&worker, &here, None, SILENT)
                .expect("nobody is there");
            let present = Present {
                process: &here,
                silent_for: Duration::from_secs(silent_s),
            };
            let admitted = admission.admit(&worker, &other, Some(present), SILENT);
            assert_eq!(admitted.is_ok(), may, "{other:?} after {silent_s} s");
            // Who was refused has superseded nobody.
            let back = admission.admit(&worker, &here, None, SILENT);
            assert_eq!(back.is_ok(), !may || other == here, "{other:?}");
        }
        let nowhere = process("1", None);
        let present = Present {
            process: &nowhere,
            silent_for: Duration::ZERO,
        };
        let admitted = Admission::default().admit(&worker, &process("2", None), Some(present), SILENT);
        assert!(admitted.is_err(), "two without a directory are two");
    }
}
