//! The way of a cancelled attempt from its run to its worker.

use llamaduo_proto::ids::{AttemptId, WorkerId};
use tokio::sync::mpsc;

/// Cancellations on their way: as many as leases may be taken back in a moment. What does not fit is dropped.
const QUEUE_LEN: usize = 1_024;

/// Attempts to be stopped, on their way to the scheduler. Messages may be lost: acknowledgements of heartbeats say the
/// same again.
#[derive(Clone, Debug)]
pub(crate) struct Cancels {
    sender: mpsc::Sender<(WorkerId, AttemptId, String)>,
}

/// The other end of [`Cancels`].
pub(crate) type Cancelled = mpsc::Receiver<(WorkerId, AttemptId, String)>;

impl Cancels {
    /// With the receiving end, for the scheduler.
    pub(crate) fn new() -> (Self, Cancelled) {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        (Self { sender }, receiver)
    }

    pub(in crate::actors) fn send(&self, worker: WorkerId, attempt: AttemptId, reason: String) {
        // Not awaited: a run must not wait for the scheduler, which waits for runs.
        let _ = self.sender.try_send((worker, attempt, reason));
    }
}
