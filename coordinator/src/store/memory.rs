//! The store that forgets: for tests and throw-away coordinators.
//!
//! Invariant: the simplest store that keeps the contract; what it does is right by definition.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::mirror::{Mirror, Staged};
use super::{Answer, Entry, Outcome, Page, Revision, StateStore, Txn, Watch};

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    mirror: Mutex<Mirror>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            mirror: Mutex::new(Mirror::new([], Revision(0))),
        }
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        // Nothing panics while the lock is held, so a poisoned lock still guards a whole mirror.
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl StateStore for Memory {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.mirror().get(key)) })
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move { Ok(self.mirror().range(prefix, after, limit)) })
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Outcome> {
        Box::pin(async move {
            txn.check()?;
            let mut mirror = self.mirror();
            let mut staged = Staged::default();
            let Some(revision) = staged.add(&mirror, txn) else {
                return Ok(Outcome::Conflict);
            };
            mirror.apply(staged);
            Ok(Outcome::Committed(revision))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> Answer<'a, Watch> {
        Box::pin(async move { self.mirror().watch(prefix, from) })
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;
    use crate::store::conformance;

    #[tokio::test]
    async fn keeps_the_contract_of_a_store() {
        conformance::all(|| async { Memory::new() }).await;
    }
}
