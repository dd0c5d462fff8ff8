//! The changes of late, for those who watch them.
//!
//! Invariant: `revision` is that of the last batch pushed, and `batches` holds those up to it without gaps.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Batch, Error, Revision, Watch};

/// Batches kept for watchers that start in the past: seconds to minutes of history at the rates of one machine.
const BATCHES_MAX: usize = 10_000;
/// Batches a watcher may lag behind before it has to list anew.
const WATCH_LAG_BATCHES_MAX: usize = 1_024;

/// What changed lately. A new one ends every watch of the old: nobody knows which changes they would miss.
#[derive(Debug)]
pub(super) struct History {
    revision: Revision,
    batches: VecDeque<Arc<Batch>>,
    live: broadcast::Sender<Arc<Batch>>,
}

impl History {
    /// From `revision` on.
    pub(super) fn new(revision: Revision) -> Self {
        let (live, _) = broadcast::channel(WATCH_LAG_BATCHES_MAX);
        Self {
            revision,
            batches: VecDeque::new(),
            live,
        }
    }

    /// The last change.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let oldest = self
            .batches
            .front()
            .map_or(Revision(self.revision.0 + 1), |batch| batch.revision);
        if from < oldest {
            return Err(Error::Compacted { oldest });
        }
        let backlog = self
            .batches
            .iter()
            .filter(|batch| batch.revision >= from)
            .cloned()
            .collect();
        Ok(Watch::new(prefix, from, backlog, self.live.subscribe()))
    }

    /// Tells the watchers what was applied.
    pub(super) fn push(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            self.revision = batch.revision;
            let batch = Arc::new(batch);
            self.batches.push_back(Arc::clone(&batch));
            // Fails when nobody watches, which is no failure.
            let _ = self.live.send(batch);
        }
        let surplus = self.batches.len().saturating_sub(BATCHES_MAX);
        self.batches.drain(..surplus);
    }
}
