//! The store that forgets: for tests and throw-away coordinators.
//!
//! Invariant: the simplest store that keeps the contract; what it does is right by definition.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::history::History;
use super::staged::Staged;
use super::{Answer, Change, Entry, Outcome, Page, Revision, StateStore, Txn, Watch, page_start};

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<String, Entry>,
    history: History,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                entries: BTreeMap::new(),
                history: History::new(Revision(0)),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, so a poisoned lock still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn apply(&mut self, staged: Staged) {
        for change in staged.batches().iter().flat_map(|batch| &batch.changes) {
            match change {
                Change::Put(entry) => self.entries.insert(entry.key.clone(), entry.clone()),
                Change::Delete(key) => self.entries.remove(key),
            };
        }
        self.history.push(staged.into_batches());
    }
}

impl StateStore for Memory {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.state().entries.get(key).cloned()) })
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move {
            let state = self.state();
            let start = (page_start(prefix, after), Bound::Unbounded);
            let rows = state
                .entries
                .range::<str, _>(start)
                .map(|(_, entry)| Ok::<_, super::Error>(entry.clone()));
            Page::of(rows, prefix, limit, state.history.revision())
        })
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Outcome> {
        Box::pin(async move {
            txn.check()?;
            let mut state = self.state();
            let mut staged = Staged::new(state.history.revision());
            let read = |key: &str| Ok::<_, Infallible>(state.entries.get(key).cloned());
            let Ok(Some(revision)) = staged.add(read, txn) else {
                return Ok(Outcome::Conflict);
            };
            state.apply(staged);
            Ok(Outcome::Committed(revision))
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> Answer<'a, Watch> {
        Box::pin(async move { self.state().history.watch(prefix, from) })
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
