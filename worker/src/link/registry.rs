//! What runs on this worker, and how long each lease still lasts.
//!
//! Invariant: an attempt whose lease was not renewed in time is stopped here before the coordinator may give it away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llamaduo_proto::Digest;
use llamaduo_proto::convert::LIST_LEN_MAX;
use llamaduo_proto::ids::AttemptId;
use llamaduo_proto::session::RunningAttempt;
use llamaduo_proto::task::Progress;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Stop};

/// One attempt, as those who run it and those who report it see it.
#[derive(Debug)]
pub(crate) struct AttemptHandle {
    pub(crate) id: AttemptId,
    stopped: CancellationToken,
    stop: OnceLock<Stop>,
    state: Mutex<State>,
    moved: Arc<Notify>,
}

#[derive(Clone, Debug, Default)]
struct State {
    progress: Option<Progress>,
    checkpoint: Option<Digest>,
}

impl AttemptHandle {
    /// Fires when the attempt has to stop.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    /// Why it has to stop, if it has to.
    pub(crate) fn stop_reason(&self) -> Option<&Stop> {
        self.stop.get()
    }

    /// Fails once the attempt has to stop.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.stop
            .get()
            .map_or(Ok(()), |stop| Err(Error::Stopped(stop.clone())))
    }

    /// Tells the attempt to stop; the first reason stays.
    pub(crate) fn stop(&self, stop: Stop) {
        let _an_earlier_reason_stays = self.stop.set(stop);
        self.stopped.cancel();
    }

    /// Tells how far the attempt is.
    pub(crate) fn progress(&self, progress: Progress) {
        self.state().progress = Some(progress);
        self.moved.notify_one();
    }

    /// Counts one more unit.
    pub(crate) fn advance(&self) {
        if let Some(progress) = self.state().progress.as_mut() {
            progress.n_done += 1;
        }
        self.moved.notify_one();
    }

    /// Names the newest checkpoint, which is stored.
    pub(crate) fn set_checkpoint(&self, checkpoint: Digest) {
        self.state().checkpoint = Some(checkpoint);
        self.moved.notify_one();
    }

    pub(crate) fn checkpoint(&self) -> Option<Digest> {
        self.state().checkpoint
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Lease {
    handle: Arc<AttemptHandle>,
    renewed_at: Instant,
}

/// Everything that runs here, or ended and is not yet told.
#[derive(Debug)]
pub(crate) struct Registry {
    leases: Mutex<Leases>,
    /// Something that a heartbeat tells has moved.
    moved: Arc<Notify>,
    /// An attempt left.
    left: Notify,
    /// Fires when nothing new is to be taken.
    draining: CancellationToken,
}

#[derive(Debug)]
struct Leases {
    running: BTreeMap<AttemptId, Lease>,
    /// How long after its last renewal an attempt is stopped.
    fence_after: Duration,
}

/// Before a coordinator has said how long a lease is, attempts can only come from the spool, and those are over.
const FENCE_UNTIL_TOLD: Duration = Duration::from_secs(13);

/// Of 15 parts of a lease, a worker gives up after 13: 13 s of the default 15 s, so that it has stopped before the
/// coordinator gives the attempt away even if its clock runs a tenth slow.
const FENCE_PARTS: (u32, u32) = (13, 15);

impl Registry {
    pub(crate) fn new() -> Self {
        let leases = Leases {
            running: BTreeMap::new(),
            fence_after: FENCE_UNTIL_TOLD,
        };
        Self {
            leases: Mutex::new(leases),
            moved: Arc::new(Notify::new()),
            left: Notify::new(),
            draining: CancellationToken::new(),
        }
    }

    /// Takes an attempt in. Nothing when it is here already.
    pub(crate) fn begin(&self, id: AttemptId, now: Instant) -> Option<Arc<AttemptHandle>> {
        let mut leases = self.leases();
        if leases.running.contains_key(&id) {
            return None;
        }
        let handle = Arc::new(AttemptHandle {
            id: id.clone(),
            stopped: CancellationToken::new(),
            stop: OnceLock::new(),
            state: Mutex::new(State::default()),
            moved: Arc::clone(&self.moved),
        });
        if self.draining.is_cancelled() {
            handle.stop(Stop::Draining);
        }
        leases.running.insert(
            id,
            Lease {
                handle: Arc::clone(&handle),
                renewed_at: now,
            },
        );
        Some(handle)
    }

    /// Strikes an attempt off: its end is told, or nobody wants to hear it.
    pub(crate) fn forget(&self, id: &AttemptId) {
        self.leases().running.remove(id);
        self.left.notify_waiters();
        self.moved.notify_one();
    }

    /// What a heartbeat tells. A list that is too long would be refused whole; the lease of what is not in it runs out.
    pub(crate) fn running(&self) -> Vec<RunningAttempt> {
        let leases = self.leases();
        let told = |lease: &Lease| {
            let State { progress, checkpoint } = lease.handle.state().clone();
            RunningAttempt {
                attempt: lease.handle.id.clone(),
                progress,
                checkpoint,
            }
        };
        leases.running.values().take(LIST_LEN_MAX).map(told).collect()
    }

    /// The leases of these attempts were still good at `at`.
    pub(crate) fn renew(&self, attempts: &[AttemptId], at: Instant) {
        let mut leases = self.leases();
        for id in attempts {
            if let Some(lease) = leases.running.get_mut(id) {
                lease.renewed_at = lease.renewed_at.max(at);
            }
        }
    }

    /// Tells one attempt to stop.
    pub(crate) fn stop(&self, id: &AttemptId, stop: Stop) {
        let handle = self
            .leases()
            .running
            .get(id)
            .map(|lease| Arc::clone(&lease.handle));
        if let Some(handle) = handle {
            handle.stop(stop);
        }
    }

    /// Tells every attempt to stop.
    pub(crate) fn stop_all(&self, stop: &Stop) {
        let handles: Vec<_> = self
            .leases()
            .running
            .values()
            .map(|lease| Arc::clone(&lease.handle))
            .collect();
        for handle in handles {
            handle.stop(stop.clone());
        }
    }

    /// From now on what comes in is given back at once.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
        self.moved.notify_one();
    }

    /// Fires when nothing new is to be taken.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Learns how long leases are.
    pub(crate) fn set_lease(&self, lease: Duration) {
        self.leases().fence_after = fence_after(lease);
    }

    /// Stops every attempt whose lease was not renewed in time; says when to look again.
    pub(crate) fn fence(&self, now: Instant) -> Instant {
        let leases = self.leases();
        let fence_after = leases.fence_after;
        let mut next = now + fence_after;
        let mut late = Vec::new();
        for lease in leases
            .running
            .values()
            .filter(|lease| lease.handle.stop_reason().is_none())
        {
            let due = lease.renewed_at + fence_after;
            if due <= now {
                late.push(Arc::clone(&lease.handle))
            } else {
                next = next.min(due)
            }
        }
        drop(leases);
        for handle in late {
            tracing::warn!(run_id = %handle.id.run, task_id = %handle.id.task, "lease not renewed in time, stopping the attempt");
            handle.stop(Stop::LeaseLost);
        }
        next
    }

    /// Waits until something moved that a heartbeat tells.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Waits until nothing runs here and everything is told.
    pub(crate) async fn emptied(&self) {
        loop {
            let left = self.left.notified();
            if self.leases().running.is_empty() {
                return;
            }
            left.await;
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long after its last renewal a lease is given up.
fn fence_after(lease: Duration) -> Duration {
    lease / FENCE_PARTS.1 * FENCE_PARTS.0
}

#[cfg(test)]
mod tests;
