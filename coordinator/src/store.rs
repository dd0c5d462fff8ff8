//! The state store: keys and values under one global revision, changed only by transactions that compare first.
//!
//! Invariant: a transaction is applied whole or not at all, and every backend refuses what the smallest of them
//! (etcd) would refuse, so that nothing works on one and breaks on another.

pub mod embedded;
mod history;
pub mod keys;
pub mod memory;
mod staged;
mod watch;

#[cfg(test)]
mod conformance;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::ops::Bound;
use std::path::PathBuf;
use std::pin::Pin;

pub use watch::{Batch, Change, Watch};

/// Operations, and compares, in one transaction: etcd's `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// Bytes of keys and values in one transaction: etcd's `--max-request-bytes`, less room for its framing.
pub const TXN_BYTES_MAX: usize = 1_572_864 - 16_384;
/// Entries of one page of a range: keeps an answer of full-size records within a few megabytes.
pub const RANGE_ENTRIES_MAX: usize = 1_000;

/// Number of a change of the whole store; the first transaction makes revision 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A key with its value and when it was made and last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Slash-separated text.
    pub key: String,
    /// Bytes, JSON by convention.
    pub value: Vec<u8>,
    /// The transaction that made it.
    pub created: Revision,
    /// The transaction that last wrote it.
    pub modified: Revision,
}

/// What must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written by this transaction.
    Modified(String, Revision),
}

impl Compare {
    fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Modified(key, _) => key,
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put(String, Vec<u8>),
    /// Removes a key; nothing happens when there is none.
    Delete(String),
}

impl Op {
    fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

/// Changes that are applied together if every compare holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Applied in order; each key at most once.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Refuses what a backend could not take.
    pub fn check(&self) -> Result<(), Error> {
        let n_ops = self.ops.len().max(self.compares.len());
        if n_ops > TXN_OPS_MAX {
            return Err(Error::TooManyOps { found: n_ops });
        }
        let bytes = self.ops.iter().map(Op::bytes).sum::<usize>()
            + self
                .compares
                .iter()
                .map(|compare| compare.key().len())
                .sum::<usize>();
        if bytes > TXN_BYTES_MAX {
            return Err(Error::TooLarge { bytes });
        }
        let mut keys = BTreeSet::new();
        match self.ops.iter().find(|op| !keys.insert(op.key())) {
            Some(op) => Err(Error::KeyTwice {
                key: op.key().to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied, and durable where the backend is.
    Committed(Revision),
    /// A compare did not hold; nothing changed.
    Conflict,
}

/// Part of the keys under a prefix, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most [`RANGE_ENTRIES_MAX`].
    pub entries: Vec<Entry>,
    /// Whether keys follow.
    pub more: bool,
    /// The store's revision when it was read.
    pub revision: Revision,
}

/// Where the page after key `after` begins.
fn page_start<'a>(prefix: &'a str, after: Option<&'a str>) -> Bound<&'a str> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

impl Page {
    /// The first `limit` of `rows` whose keys begin with `prefix`.
    fn of<E>(
        rows: impl Iterator<Item = Result<Entry, E>>,
        prefix: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<Self, E> {
        let limit = limit.min(RANGE_ENTRIES_MAX);
        let mut page = Self {
            entries: Vec::new(),
            more: false,
            revision,
        };
        for row in rows {
            let entry = row?;
            if !entry.key.starts_with(prefix) {
                break;
            }
            if page.entries.len() == limit {
                page.more = true;
                break;
            }
            page.entries.push(entry);
        }
        Ok(page)
    }
}

/// Why the store did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's transaction is too long.
    #[error("a transaction has {found} operations where at most {TXN_OPS_MAX} are taken")]
    TooManyOps {
        /// Its operations or compares.
        found: usize,
    },
    /// The caller's transaction is too large.
    #[error("a transaction has {bytes} bytes where at most {TXN_BYTES_MAX} are taken")]
    TooLarge {
        /// Its keys and values.
        bytes: usize,
    },
    /// The caller's transaction writes a key twice.
    #[error("a transaction writes {key} twice where once is taken")]
    KeyTwice {
        /// The key.
        key: String,
    },
    /// The watched revision is no longer kept.
    #[error("changes before revision {} are no longer kept; list the keys and watch from there", .oldest.0)]
    Compacted {
        /// The oldest revision that can still be watched from.
        oldest: Revision,
    },
    /// Another process has the file.
    #[error(
        "state file {path} is open in another process; stop that coordinator or choose another directory"
    )]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or read.
    #[error("cannot open state file {path}; check its directory, its permissions and the space on the disk")]
    Open {
        /// The file.
        path: PathBuf,
        /// The database's own word.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file was written by another version of this program.
    #[error(
        "state file {path} has layout {found} where {expected} was expected; use the version that wrote it"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u64,
        /// What this program writes.
        expected: u64,
    },
    /// Reading failed on the way.
    #[error("reading the state store failed ({problem}); check its disk")]
    Read {
        /// What the database said.
        problem: String,
    },
    /// Writing failed on the way; whether the transaction was applied must be read back.
    #[error(
        "writing to the state store failed ({problem}), so its outcome is unknown; check the space on its disk"
    )]
    UnknownOutcome {
        /// What the database said; text, because it is told to every transaction of a group.
        problem: String,
    },
    /// The store's thread is gone or its queue is full.
    #[error("the state store takes no request: {reason}")]
    Unavailable {
        /// Why.
        reason: &'static str,
    },
}

impl Error {
    /// Whether the same request may succeed later. An unknown outcome is not retried but read back.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Compacted { .. })
    }
}

/// The answer of a store, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A store of keys and values. Reads see every transaction that was answered before they were asked.
pub trait StateStore: Debug + Send + Sync {
    /// One entry, or `None`.
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>>;

    /// Up to `limit` (and [`RANGE_ENTRIES_MAX`]) entries whose keys begin with `prefix` and come after `after`.
    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page>;

    /// Applies `txn` if its compares hold.
    fn txn(&self, txn: Txn) -> Answer<'_, Outcome>;

    /// Changes to keys under `prefix`, from revision `from` on, each transaction's together and in order.
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> Answer<'a, Watch>;
}

/// Every entry under `prefix`, page by page, and the revision of the first page: changes since are seen by watching
/// from the revision after it.
pub async fn range_all(store: &dyn StateStore, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
    let first = store.range(prefix, None, RANGE_ENTRIES_MAX).await?;
    let (mut entries, mut more) = (first.entries, first.more);
    while more {
        let after = entries.last().map(|entry: &Entry| entry.key.clone());
        let page = store.range(prefix, after.as_deref(), RANGE_ENTRIES_MAX).await?;
        more = page.more;
        entries.extend(page.entries);
    }
    Ok((entries, first.revision))
}
