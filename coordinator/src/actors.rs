//! The moving parts: each is a task that owns its state and a bounded mailbox, with a cheap handle before it.
//!
//! Invariant: an actor asks the pure machine, commits what it says, and only then acts. Every actor can be killed and
//! rebuilt from the store.

mod checkpoints;
pub(crate) mod commit;
pub(crate) mod events;
pub(crate) mod ledger;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod scheduler;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use llamaduo_artifacts::Directory;
use llamaduo_proto::event::RunEvent;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::machine::{Now, Rules};
use crate::store::StateStore;
use ledger::Ledger;

/// Progress reports that a slow watcher may lag behind before it misses some: they are not kept anyway.
const PROGRESS_LAG_MAX: usize = 1_024;

/// What all actors use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) artifacts: Directory,
    pub(crate) ledger: Ledger,
    pub(crate) timing: Timing,
    /// Wakes the scheduler.
    pub(crate) place: Notify,
    /// Progress of attempts, for whoever watches.
    pub(crate) progress: broadcast::Sender<RunEvent>,
    /// Attempts to be stopped, for the scheduler to pass on.
    pub(crate) cancels: scheduler::Cancels,
    started: Instant,
}

/// The durations of leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// A lease as the worker knows it.
    pub(crate) lease: Duration,
    /// How often a worker gives a sign of life.
    pub(crate) heartbeat: Duration,
    /// The same lease as the coordinator reckons.
    pub(crate) rules: Rules,
    /// How often a run looks for leases that ran out.
    pub(crate) tick: Duration,
}

impl Timing {
    pub(crate) fn new(lease: Duration, heartbeat: Duration) -> Self {
        // A fifth later than the worker stops itself, so that clocks that run apart and messages on their way never let
        // two workers hold one lease. A tick of a twentieth keeps that margin.
        let rules = Rules {
            lease_expiry: lease * 6 / 5,
        };
        Self {
            lease,
            heartbeat,
            rules,
            tick: (lease / 20).min(Duration::from_secs(1)),
        }
    }
}

impl Shared {
    pub(crate) fn new(
        store: Arc<dyn StateStore>,
        artifacts: Directory,
        timing: Timing,
        cancels: scheduler::Cancels,
    ) -> Self {
        let (progress, _) = broadcast::channel(PROGRESS_LAG_MAX);
        Self {
            ledger: Ledger::new(Arc::clone(&store)),
            store,
            artifacts,
            timing,
            place: Notify::new(),
            progress,
            cancels,
            started: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Now {
            clock: self.started.elapsed(),
            time_ms,
        }
    }
}
