//! Tells the coordinator what the spool holds, in order, until it is acknowledged.
//!
//! Invariant: an entry leaves the disk only after the coordinator took it or refused it for good.

use std::sync::Arc;
use std::time::Duration;

use super::registry::Registry;
use super::spool::{Entry, EntryName, Spool};
use crate::artifacts::Artifacts;
use crate::coordinator::{Coordinator, deepest, is_away, settled};
use crate::error::Error;
use crate::notice::Telling;
use crate::random;
use llamaduo_proto::Digest;
use llamaduo_proto::session::{AttemptOutcome, CallOutcome};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First and longest wait while the coordinator is away.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Tells the coordinator what the spool holds.
#[derive(Debug)]
pub(crate) struct Courier {
    pub(crate) spool: Arc<Spool>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) coordinator: Coordinator,
    pub(crate) artifacts: Artifacts,
    pub(crate) telling: Telling,
    /// The coordinator's address.
    pub(crate) url: String,
    /// Fires when nothing more is to be sent.
    pub(crate) ended: CancellationToken,
}

impl Courier {
    /// Delivers what an earlier process left, before this one says hello: a hello of a new process gives up the
    /// leases of the old one. Waits for a coordinator that is away, not for one that refuses this worker.
    pub(crate) async fn deliver_left_over(&self) {
        self.keep_delivering(true).await;
    }

    /// Delivers for as long as the worker lives.
    pub(crate) async fn run(self) {
        self.keep_delivering(false).await;
    }

    async fn keep_delivering(&self, until_empty: bool) {
        let mut n_failed = 0_u32;
        while !self.ended.is_cancelled() {
            match self.deliver_all().await {
                Ok(()) if until_empty => return,
                Ok(()) => n_failed = 0,
                Err(error) => {
                    let away = why_away(&error);
                    match &away {
                        // The link tells it too, once there is one.
                        Some(reason) if until_empty => self.telling.away(&self.url, reason, Instant::now()),
                        Some(_) if n_failed > 0 => {}
                        _ => {
                            tracing::warn!(reason = %error.message(), "cannot tell the coordinator what ended, trying again")
                        }
                    }
                    if until_empty && away.is_none() {
                        return;
                    }
                    n_failed = n_failed.saturating_add(1);
                }
            }
            let again = random::full_jitter(RETRY_FIRST, RETRY_MAX, n_failed.min(16));
            tokio::select! {
                () = self.spool.added(), if !until_empty => {}
                () = tokio::time::sleep(again), if n_failed > 0 => {}
                () = self.ended.cancelled() => {}
            }
        }
    }

    async fn deliver_all(&self) -> Result<(), Error> {
        for name in self.on_disk(|spool| spool.names()).await? {
            let read = name.clone();
            if let Some(entry) = self.on_disk(move |spool| spool.read(&read)).await? {
                self.deliver(entry).await?;
                self.remove(name).await?;
            }
        }
        Ok(())
    }

    async fn deliver(&self, entry: Entry) -> Result<(), Error> {
        match entry {
            Entry::Call(call) => {
                if let CallOutcome::Answered(reply) = &call.outcome {
                    self.publish(reply.reply).await?;
                }
                let hash = call.call;
                if let Some(status) = settled(self.coordinator.end_call(call).await, "record a call")? {
                    tracing::error!(call = %hash, reason = status.message(), "the coordinator refuses to record a call");
                }
                Ok(())
            }
            Entry::End(completion) => {
                if let AttemptOutcome::Failed(failure) = &completion.outcome
                    && let Some(checkpoint) = failure.checkpoint
                {
                    self.publish(checkpoint).await?;
                }
                let id = completion.attempt.clone();
                if let Some(status) = settled(
                    self.coordinator.complete(completion).await,
                    "take an attempt's end",
                )? {
                    tracing::warn!(run_id = %id.run, task_id = %id.task, reason = status.message(), "the coordinator refuses an attempt's end");
                }
                self.registry.forget(&id);
                Ok(())
            }
        }
    }

    /// An artifact that an earlier process wrote here, or that could not be sent when it was made.
    async fn publish(&self, digest: Digest) -> Result<(), Error> {
        match self.artifacts.publish(digest, &self.ended).await {
            // It is not here either, so nobody can send it; the coordinator will say what it thinks of that.
            Err(Error::Artifact(error)) if !error.is_retryable() => Ok(()),
            other => other,
        }
    }

    async fn remove(&self, name: EntryName) -> Result<(), Error> {
        self.on_disk(move |spool| spool.remove(&name)).await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let spool = Arc::clone(&self.spool);
        let done = tokio::task::spawn_blocking(move || work(&spool)).await;
        done.map_err(|_| Error::Gone("disk task"))?
    }
}

/// What came instead of an answer, where the coordinator is away and may come back.
fn why_away(error: &Error) -> Option<String> {
    match error {
        Error::Coordinator { source, .. } if is_away(source) => Some(deepest(source)),
        _ => None,
    }
}
