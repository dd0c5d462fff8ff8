//! Which worker has which name, kept over restarts of the coordinator.
//!
//! Invariant: what is kept is read once, at the start; from then on the admission in memory decides.

use llamaduo_proto::ids::WorkerId;
use tokio::time::Instant;

use super::Scheduler;
use super::admission::Process;
use crate::actors::commit::{decode, encode};
use crate::store::{Op, Txn, keys, range_all};

impl Scheduler {
    /// Takes over who had which name before this coordinator started, so that a restart gives no name away.
    pub(super) async fn remember_workers(&mut self) {
        let kept = range_all(&*self.runs.shared().store, keys::WORKERS).await;
        let kept = kept.unwrap_or_else(|error| {
            tracing::warn!(%error, "the workers of before cannot be read");
            Default::default()
        });
        for entry in &kept.0 {
            let worker = WorkerId::new(keys::last_part(&entry.key));
            if let (Ok(worker), Ok(process)) = (worker, decode::<Process>(entry)) {
                self.admission.remember(worker, process, Instant::now());
            }
        }
    }

    /// Frees the names of workers that are gone.
    pub(super) async fn free_names(&mut self) {
        let sessions = &self.sessions;
        let freed = self
            .admission
            .free_names(Instant::now(), |worker| sessions.contains_key(worker));
        for worker in freed {
            tracing::info!(worker_id = %worker, "worker is gone, its name is free");
            self.free_name(&worker).await;
        }
    }

    /// Keeps which process has a name.
    pub(super) async fn keep_name(&self, worker: &WorkerId, process: &Process) {
        match encode(keys::worker(worker), process) {
            Ok(put) => self.record(put).await,
            Err(error) => tracing::error!(worker_id = %worker, %error, "a worker's process cannot be kept"),
        }
    }

    /// Keeps that nobody has a name.
    pub(super) async fn free_name(&self, worker: &WorkerId) {
        self.record(Op::Delete(keys::worker(worker))).await;
    }

    /// As well as the store can: what it does not take matters only to a restart of this coordinator.
    async fn record(&self, op: Op) {
        let txn = Txn {
            compares: Vec::new(),
            ops: vec![op],
        };
        if let Err(error) = self.runs.shared().store.txn(txn).await {
            tracing::warn!(%error, "who has a worker's name was not kept");
        }
    }
}
