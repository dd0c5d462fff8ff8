//! The keys and values in memory, with the recent changes: all of the memory store, and what the embedded store
//! reads from.
//!
//! Invariant: `revision` is that of the last applied batch, and `history` holds the batches up to it without gaps.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Batch, Change, Compare, Entry, Error, Op, Page, RANGE_ENTRIES_MAX, Revision, Txn, Watch};

/// Batches kept for watchers that start in the past: seconds to minutes of history at the rates of one machine.
const HISTORY_BATCHES_MAX: usize = 10_000;
/// Batches a watcher may lag behind before it has to list anew.
const WATCH_LAG_BATCHES_MAX: usize = 1_024;

/// Keys, values, and what changed lately.
#[derive(Debug)]
pub(super) struct Mirror {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    history: VecDeque<Arc<Batch>>,
    live: broadcast::Sender<Arc<Batch>>,
}

/// Transactions that were accepted but are not applied yet, as seen by those behind them.
#[derive(Debug, Default)]
pub(super) struct Staged {
    entries: BTreeMap<String, Option<Entry>>,
    batches: Vec<Batch>,
}

impl Mirror {
    pub(super) fn new(entries: impl IntoIterator<Item = Entry>, revision: Revision) -> Self {
        let entries = entries
            .into_iter()
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let (live, _) = broadcast::channel(WATCH_LAG_BATCHES_MAX);
        Self {
            entries,
            revision,
            history: VecDeque::new(),
            live,
        }
    }

    /// Takes the contents of `fresh`, read back after a write of unknown outcome. Watchers have to list anew, since
    /// nobody knows which changes they miss.
    pub(super) fn replace(&mut self, fresh: Mirror) {
        *self = fresh;
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).cloned()
    }

    pub(super) fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let limit = limit.min(RANGE_ENTRIES_MAX);
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut under = self
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.key.starts_with(prefix));
        let entries: Vec<Entry> = under.by_ref().take(limit).cloned().collect();
        Page {
            entries,
            more: under.next().is_some(),
            revision: self.revision,
        }
    }

    pub(super) fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let oldest = self
            .history
            .front()
            .map_or(Revision(self.revision.0 + 1), |batch| batch.revision);
        if from < oldest {
            return Err(Error::Compacted { oldest });
        }
        let backlog = self
            .history
            .iter()
            .filter(|batch| batch.revision >= from)
            .cloned()
            .collect();
        Ok(Watch::new(prefix, from, backlog, self.live.subscribe()))
    }

    /// Makes `staged` visible and tells the watchers.
    pub(super) fn apply(&mut self, staged: Staged) {
        for (key, entry) in staged.entries {
            match entry {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key),
            };
        }
        for batch in staged.batches {
            self.revision = batch.revision;
            let batch = Arc::new(batch);
            self.history.push_back(Arc::clone(&batch));
            // Fails when nobody watches, which is no failure.
            let _ = self.live.send(batch);
        }
        let surplus = self.history.len().saturating_sub(HISTORY_BATCHES_MAX);
        self.history.drain(..surplus);
    }
}

impl Staged {
    /// Adds `txn` if its compares hold on `mirror` with what is staged already.
    pub(super) fn add(&mut self, mirror: &Mirror, txn: Txn) -> Option<Revision> {
        let holds = |compare: &Compare| match (compare, self.get(mirror, compare.key())) {
            (Compare::Absent(_), found) => found.is_none(),
            (Compare::Modified(_, revision), found) => found.is_some_and(|entry| entry.modified == *revision),
        };
        if !txn.compares.iter().all(holds) {
            return None;
        }
        let revision = Revision(
            self.batches
                .last()
                .map_or(mirror.revision, |batch| batch.revision)
                .0
                + 1,
        );
        let changes = txn
            .ops
            .into_iter()
            .filter_map(|op| self.change(mirror, op, revision))
            .collect();
        self.batches.push(Batch { revision, changes });
        Some(revision)
    }

    /// What is staged, in order.
    pub(super) fn batches(&self) -> &[Batch] {
        &self.batches
    }

    fn get<'a>(&'a self, mirror: &'a Mirror, key: &str) -> Option<&'a Entry> {
        match self.entries.get(key) {
            Some(staged) => staged.as_ref(),
            None => mirror.entries.get(key),
        }
    }

    fn change(&mut self, mirror: &Mirror, op: Op, revision: Revision) -> Option<Change> {
        match op {
            Op::Put(key, value) => {
                let created = self.get(mirror, &key).map_or(revision, |entry| entry.created);
                let entry = Entry {
                    key: key.clone(),
                    value,
                    created,
                    modified: revision,
                };
                self.entries.insert(key, Some(entry.clone()));
                Some(Change::Put(entry))
            }
            Op::Delete(key) => {
                self.get(mirror, &key)?;
                self.entries.insert(key.clone(), None);
                Some(Change::Delete(key))
            }
        }
    }
}
