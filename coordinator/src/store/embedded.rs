//! The store in one redb file, for a coordinator that is alone.
//!
//! Invariant: a transaction is answered only after it is on the disk, and reads see only what is on the disk.
//!
//! One thread writes. It takes whatever transactions are queued, decides them in order, writes them as one redb commit,
//! and answers them together. Readers each see the last commit; in memory there is no more than redb's page cache and
//! what changed of late, however many runs the file holds.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::history::History;
use super::staged::Staged;
use super::{
    Answer, Batch, Change, Entry, Error, Outcome, Page, Revision, StateStore, Txn, Watch, page_start,
};

/// Key to (created, modified, value).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// Numbers about the store itself.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const LAYOUT: &str = "layout";
/// Version of the two tables above.
const LAYOUT_VERSION: u64 = 1;

/// Transactions waiting for the thread: a few groups' worth; beyond it callers wait, which is the back-pressure.
const QUEUE_LEN: usize = 1_024;
/// Transactions in one commit: bounds the memory of a group at 256 × 1.5 MiB.
const GROUP_LEN_MAX: usize = 256;

/// redb's page cache: what the live runs of one machine read again and again.
const CACHE_BYTES: usize = 64 << 20;

/// After a failed write nothing is written for this long, twice as long after each further one in a row: a full disk
/// stays full for a while, and each try opens the file.
const REST_FIRST: Duration = Duration::from_secs(1);
/// Longest such rest: soon enough after space was made.
const REST_MAX: Duration = Duration::from_secs(8);

/// Opens the database, at the start and again after a failed write.
type Opener = Box<dyn Fn() -> Result<Database, Error> + Send>;

type Reply = oneshot::Sender<Result<Outcome, Error>>;

/// A store in one file.
#[derive(Debug)]
pub struct Embedded {
    file: Arc<File>,
    queue: mpsc::Sender<(Txn, Reply)>,
}

/// The file, as readers and the writing thread share it.
#[derive(Debug)]
struct File {
    /// `None` after a failed write, until it could be opened again, and after the end.
    database: RwLock<Option<Database>>,
    history: Mutex<History>,
}

impl Embedded {
    /// Opens or makes the file. Blocks while it is opened; call it before the actors start or on a blocking thread.
    /// The file is released once the store and all its requests are dropped; see [`Embedded::open`]'s second value.
    pub fn open(path: &Path) -> Result<(Self, std::thread::JoinHandle<()>), Error> {
        let owned = path.to_owned();
        Self::open_with(path, Box::new(move || open_database(&owned)))
    }

    fn open_with(path: &Path, opener: Opener) -> Result<(Self, std::thread::JoinHandle<()>), Error> {
        let (database, revision) = opened(path, &opener)?;
        let file = Arc::new(File {
            database: RwLock::new(Some(database)),
            history: Mutex::new(History::new(revision)),
        });
        let (queue, requests) = mpsc::channel(QUEUE_LEN);
        let writer = Writer {
            path: path.to_owned(),
            opener,
            file: Arc::clone(&file),
            n_failed: 0,
            rests_until: None,
        };
        let thread = std::thread::Builder::new()
            .name("state-store".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(|source| Error::Open {
                path: path.to_owned(),
                source: Box::new(redb::Error::Io(source)),
            })?;
        Ok((Self { file, queue }, thread))
    }

    /// Reads on a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshot) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || file.read(work));
        read.await.map_err(|_| Error::Unavailable {
            reason: "this process is stopping",
        })?
    }
}

impl File {
    fn read<T>(&self, work: impl FnOnce(&Snapshot) -> Result<T, redb::Error>) -> Result<T, Error> {
        // Nothing panics while the locks are held, so poisoned ones still guard what is whole.
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else {
            return Err(NOT_OPEN);
        };
        let read = Snapshot::of(database).and_then(|snapshot| work(&snapshot));
        read.map_err(|error| Error::Read {
            problem: error.to_string(),
        })
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, database: Option<Database>) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
    }
}

const NOT_OPEN: Error = Error::Unavailable {
    reason: "its file cannot be opened after a failed write; check the space on its disk",
};

/// The file after one commit.
struct Snapshot {
    entries: ReadOnlyTable<&'static str, (u64, u64, &'static [u8])>,
    meta: ReadOnlyTable<&'static str, u64>,
}

impl Snapshot {
    fn of(database: &Database) -> Result<Self, redb::Error> {
        let txn = database.begin_read()?;
        Ok(Self {
            entries: txn.open_table(ENTRIES)?,
            meta: txn.open_table(META)?,
        })
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, redb::Error> {
        let row = self.entries.get(key)?;
        Ok(row.map(|row| entry(key, row.value())))
    }

    fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, redb::Error> {
        let start = (page_start(prefix, after), Bound::Unbounded);
        let rows = self.entries.range::<&str>(start)?.map(|row| {
            let (key, row) = row?;
            Ok(entry(key.value(), row.value()))
        });
        Page::of(rows, prefix, limit, Revision(self.number(REVISION)?))
    }

    fn number(&self, name: &str) -> Result<u64, redb::Error> {
        Ok(self.meta.get(name)?.map_or(0, |value| value.value()))
    }
}

fn entry(key: &str, (created, modified, value): (u64, u64, &[u8])) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.to_vec(),
        created: Revision(created),
        modified: Revision(modified),
    }
}

impl StateStore for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(self.read(move |snapshot| snapshot.get(&key)))
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(self.read(move |snapshot| snapshot.page(&prefix, after.as_deref(), limit)))
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Outcome> {
        Box::pin(async move {
            txn.check()?;
            let (reply, answer) = oneshot::channel();
            let gone = || Error::Unavailable {
                reason: "its thread has stopped",
            };
            self.queue.send((txn, reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| Error::UnknownOutcome {
                problem: "the store's thread stopped".to_owned(),
            })?
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> Answer<'a, Watch> {
        Box::pin(async move { self.file.history().watch(prefix, from) })
    }
}

struct Writer {
    path: PathBuf,
    opener: Opener,
    file: Arc<File>,
    /// Failed writes in a row.
    n_failed: u32,
    rests_until: Option<Instant>,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<(Txn, Reply)>) {
        let mut group = Vec::new();
        while requests.blocking_recv_many(&mut group, GROUP_LEN_MAX) > 0 {
            let (txns, replies): (Vec<Txn>, Vec<Reply>) = group.drain(..).unzip();
            let outcomes = self.commit(txns);
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                // A caller that stopped waiting reads back what it needs.
                let _ = reply.send(outcome);
            }
        }
        // Closed when the thread has ended, whoever still holds a part of the store.
        self.file.set(None);
    }

    fn commit(&mut self, txns: Vec<Txn>) -> Vec<Result<Outcome, Error>> {
        let n_txns = txns.len();
        let refuse = |reason| (0..n_txns).map(|_| Err(Error::Unavailable { reason })).collect();
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return refuse(
                "its last write failed and it will try again in some seconds; check the space on its disk",
            );
        }
        if self.reopen().is_err() {
            self.rest();
            return (0..n_txns).map(|_| Err(NOT_OPEN)).collect();
        }
        let written = {
            let database = self.file.database.read().unwrap_or_else(PoisonError::into_inner);
            match &*database {
                Some(database) => decide_and_write(database, txns),
                None => return (0..n_txns).map(|_| Err(NOT_OPEN)).collect(),
            }
        };
        match written {
            Ok((staged, decisions)) => {
                (self.n_failed, self.rests_until) = (0, None);
                self.file.history().push(staged.into_batches());
                let outcome =
                    |decision: Option<Revision>| Ok(decision.map_or(Outcome::Conflict, Outcome::Committed));
                decisions.into_iter().map(outcome).collect()
            }
            Err(problem) => {
                let problem = problem.to_string();
                tracing::error!(problem, "state store write failed");
                // redb refuses everything after a failed write; the file is opened anew before the next.
                self.file.set(None);
                let _ = self.reopen();
                self.rest();
                (0..n_txns)
                    .map(|_| {
                        Err(Error::UnknownOutcome {
                            problem: problem.clone(),
                        })
                    })
                    .collect()
            }
        }
    }

    fn rest(&mut self) {
        let rest = REST_FIRST
            .saturating_mul(1 << self.n_failed.min(16))
            .min(REST_MAX);
        self.n_failed = self.n_failed.saturating_add(1);
        self.rests_until = Some(Instant::now() + rest);
    }

    /// Opens the file again after a failed write, whatever became of that write. Watchers have to list anew.
    fn reopen(&mut self) -> Result<(), Error> {
        let is_open = self
            .file
            .database
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some();
        if is_open {
            return Ok(());
        }
        let (database, revision) = opened(&self.path, &self.opener)?;
        *self.file.history() = History::new(revision);
        self.file.set(Some(database));
        Ok(())
    }
}

/// The database with its revision, once it is known to be one of ours.
fn opened(path: &Path, opener: &Opener) -> Result<(Database, Revision), Error> {
    let database = opener()?;
    let failed = |source| Error::Open {
        path: path.to_owned(),
        source: Box::new(source),
    };
    prepare(&database).map_err(failed)?;
    let numbers = Snapshot::of(&database)
        .and_then(|snapshot| Ok((snapshot.number(LAYOUT)?, snapshot.number(REVISION)?)));
    let (layout, revision) = numbers.map_err(failed)?;
    if layout != LAYOUT_VERSION {
        return Err(Error::Layout {
            path: path.to_owned(),
            found: layout,
            expected: LAYOUT_VERSION,
        });
    }
    Ok((database, Revision(revision)))
}

fn open_database(path: &Path) -> Result<Database, Error> {
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(path)
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::AlreadyOpen {
                path: path.to_owned(),
            },
            other => Error::Open {
                path: path.to_owned(),
                source: Box::new(other.into()),
            },
        })
}

/// Makes the tables of a new file.
fn prepare(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    let is_new = {
        txn.open_table(ENTRIES)?;
        let mut meta = txn.open_table(META)?;
        let is_new = meta.get(LAYOUT)?.is_none();
        if is_new {
            meta.insert(LAYOUT, LAYOUT_VERSION)?;
            meta.insert(REVISION, 0)?;
        }
        is_new
    };
    if is_new {
        txn.commit()?
    } else {
        txn.abort()?
    }
    Ok(())
}

/// Decides `txns` on the last commit and writes those that hold.
fn decide_and_write(
    database: &Database,
    txns: Vec<Txn>,
) -> Result<(Staged, Vec<Option<Revision>>), redb::Error> {
    let snapshot = Snapshot::of(database)?;
    let mut staged = Staged::new(Revision(snapshot.number(REVISION)?));
    let mut decisions = Vec::with_capacity(txns.len());
    for txn in txns {
        decisions.push(staged.add(|key| snapshot.get(key), txn)?);
    }
    write(database, staged.batches())?;
    Ok((staged, decisions))
}

fn write(database: &Database, batches: &[Batch]) -> Result<(), redb::Error> {
    let Some(last) = batches.last() else { return Ok(()) };
    let txn = database.begin_write()?;
    {
        let mut entries = txn.open_table(ENTRIES)?;
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            match change {
                Change::Put(entry) => {
                    let row = (entry.created.0, entry.modified.0, entry.value.as_slice());
                    entries.insert(entry.key.as_str(), row)?;
                }
                Change::Delete(key) => {
                    entries.remove(key.as_str())?;
                }
            }
        }
        txn.open_table(META)?.insert(REVISION, last.revision.0)?;
    }
    txn.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
