//! Transactions that were accepted but are not applied yet, as seen by those behind them.
//!
//! Invariant: pure but for what it is given to read; nothing is applied here.

use std::collections::BTreeMap;

use super::{Batch, Change, Compare, Entry, Op, Revision, Txn};

/// Accepted transactions in order.
#[derive(Debug)]
pub(super) struct Staged {
    before: Revision,
    entries: BTreeMap<String, Option<Entry>>,
    batches: Vec<Batch>,
}

impl Staged {
    /// On top of a store at revision `before`.
    pub(super) fn new(before: Revision) -> Self {
        Self {
            before,
            entries: BTreeMap::new(),
            batches: Vec::new(),
        }
    }

    /// Adds `txn` if its compares hold on what `read` finds in the store, with what is staged already.
    pub(super) fn add<E>(
        &mut self,
        read: impl Fn(&str) -> Result<Option<Entry>, E>,
        txn: Txn,
    ) -> Result<Option<Revision>, E> {
        for compare in &txn.compares {
            let found = self.find(&read, compare.key())?;
            let holds = match compare {
                Compare::Absent(_) => found.is_none(),
                Compare::Modified(_, revision) => found.is_some_and(|entry| entry.modified == *revision),
            };
            if !holds {
                return Ok(None);
            }
        }
        let last = self.batches.last().map_or(self.before, |batch| batch.revision);
        let revision = Revision(last.0 + 1);
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let found = self.find(&read, op.key())?;
            changes.extend(change(op, found, revision));
        }
        for change in &changes {
            let entry = match change {
                Change::Put(entry) => Some(entry.clone()),
                Change::Delete(_) => None,
            };
            self.entries.insert(change.key().to_owned(), entry);
        }
        self.batches.push(Batch { revision, changes });
        Ok(Some(revision))
    }

    /// What is staged, in order.
    pub(super) fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// The same, for whoever has applied it.
    pub(super) fn into_batches(self) -> Vec<Batch> {
        self.batches
    }

    fn find<E>(
        &self,
        read: impl Fn(&str) -> Result<Option<Entry>, E>,
        key: &str,
    ) -> Result<Option<Entry>, E> {
        match self.entries.get(key) {
            Some(staged) => Ok(staged.clone()),
            None => read(key),
        }
    }
}

/// What `op` does to the entry `found`. A transaction has each key once, so it does not matter what else it changes.
fn change(op: Op, found: Option<Entry>, revision: Revision) -> Option<Change> {
    match op {
        Op::Put(key, value) => Some(Change::Put(Entry {
            key,
            value,
            created: found.map_or(revision, |entry| entry.created),
            modified: revision,
        })),
        Op::Delete(key) => found.map(|_| Change::Delete(key)),
    }
}
