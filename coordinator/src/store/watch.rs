//! Watching: what changed under a prefix, transaction by transaction, without gaps.
//!
//! Invariant: a watch yields every change from its first revision on, in order, or ends with
//! [`Error::Compacted`]; it never skips silently.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Entry, Error, Revision};

/// What a transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The transaction.
    pub revision: Revision,
    /// In the order of its operations.
    pub changes: Vec<Change>,
}

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(Entry),
    /// Removed.
    Delete(String),
}

impl Change {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete(key) => key,
        }
    }
}

/// A watch under way: first what happened before it began, then what happens.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    next: Revision,
    backlog: VecDeque<Arc<Batch>>,
    live: broadcast::Receiver<Arc<Batch>>,
}

impl Watch {
    pub(super) fn new(
        prefix: &str,
        next: Revision,
        backlog: VecDeque<Arc<Batch>>,
        live: broadcast::Receiver<Arc<Batch>>,
    ) -> Self {
        Self {
            prefix: prefix.to_owned(),
            next,
            backlog,
            live,
        }
    }

    /// The next batch with a change under the prefix, holding only such changes. Safe to cancel.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let batch = match self.backlog.pop_front() {
                Some(batch) => batch,
                None => match self.live.recv().await {
                    Ok(batch) => batch,
                    // Closed: the store read its file anew, so nobody knows what changed meanwhile.
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                        return Err(Error::Compacted { oldest: self.next });
                    }
                },
            };
            if batch.revision < self.next {
                continue;
            }
            self.next = Revision(batch.revision.0 + 1);
            let under = |change: &&Change| change.key().starts_with(&self.prefix);
            let changes: Vec<Change> = batch.changes.iter().filter(under).cloned().collect();
            if !changes.is_empty() {
                return Ok(Batch {
                    revision: batch.revision,
                    changes,
                });
            }
        }
    }
}
