//! The store in one redb file, for a coordinator that is alone.
//!
//! Invariant: a transaction is answered only after it is on the disk, and reads see only what is on the disk.
//!
//! One thread owns the file. It takes whatever transactions are queued, decides them in order, writes them as one
//! redb commit, and answers them together. Readers use a mirror in memory that is changed after the commit.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::mirror::{Mirror, Staged};
use super::{Answer, Batch, Change, Entry, Error, Outcome, Page, Revision, StateStore, Txn, Watch};

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

/// redb's page cache: small, since everything is read from the mirror.
const CACHE_BYTES: usize = 16 << 20;

/// After a failed write nothing is written for this long, twice as long after each further one in a row: a full disk
/// stays full for a while, and each try reads the whole file.
const REST_FIRST: Duration = Duration::from_secs(1);
/// Longest such rest: soon enough after space was made.
const REST_MAX: Duration = Duration::from_secs(8);

/// Opens the database, at the start and again after a failed write.
type Opener = Box<dyn Fn() -> Result<Database, Error> + Send>;

type Reply = oneshot::Sender<Result<Outcome, Error>>;

/// A store in one file.
#[derive(Debug)]
pub struct Embedded {
    mirror: Arc<RwLock<Mirror>>,
    queue: mpsc::Sender<(Txn, Reply)>,
}

impl Embedded {
    /// Opens or makes the file. Blocks while it is read; call it before the actors start or on a blocking thread.
    /// The file is released once the store and all its requests are dropped; see [`Embedded::open`]'s second value.
    pub fn open(path: &Path) -> Result<(Self, std::thread::JoinHandle<()>), Error> {
        let owned = path.to_owned();
        Self::open_with(path, Box::new(move || open_database(&owned)))
    }

    fn open_with(path: &Path, opener: Opener) -> Result<(Self, std::thread::JoinHandle<()>), Error> {
        let database = opener()?;
        let mirror = Arc::new(RwLock::new(read_mirror(path, &database)?));
        let (queue, requests) = mpsc::channel(QUEUE_LEN);
        let writer = Writer {
            path: path.to_owned(),
            opener,
            database: Some(database),
            mirror: Arc::clone(&mirror),
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
        Ok((Self { mirror, queue }, thread))
    }

    fn mirror(&self) -> RwLockReadGuard<'_, Mirror> {
        // Nothing panics while the lock is held, so a poisoned lock still guards a whole mirror.
        self.mirror.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move { Ok(self.mirror().get(key)) })
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        Box::pin(async move { Ok(self.mirror().range(prefix, after, limit)) })
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
        Box::pin(async move { self.mirror().watch(prefix, from) })
    }
}

struct Writer {
    path: PathBuf,
    opener: Opener,
    /// `None` after a failed write, until the file could be opened and read back.
    database: Option<Database>,
    mirror: Arc<RwLock<Mirror>>,
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
            return refuse("its file cannot be opened after a failed write; check the space on its disk");
        }
        let mut staged = Staged::default();
        let decisions: Vec<Option<Revision>> = {
            let mirror = self.mirror.read().unwrap_or_else(PoisonError::into_inner);
            txns.into_iter().map(|txn| staged.add(&mirror, txn)).collect()
        };
        let written = match &self.database {
            Some(database) => write(database, staged.batches()),
            None => Ok(()),
        };
        match written {
            Ok(()) => {
                (self.n_failed, self.rests_until) = (0, None);
                self.mirror_mut().apply(staged);
                let outcome =
                    |decision: Option<Revision>| Ok(decision.map_or(Outcome::Conflict, Outcome::Committed));
                decisions.into_iter().map(outcome).collect()
            }
            Err(problem) => {
                let problem = problem.to_string();
                tracing::error!(problem, "state store write failed");
                // redb refuses everything after a failed write; the file is opened anew before the next.
                self.database = None;
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

    /// Opens the file again after a failed write and takes its contents, whatever became of that write.
    fn reopen(&mut self) -> Result<(), Error> {
        if self.database.is_some() {
            return Ok(());
        }
        let database = (self.opener)()?;
        let fresh = read_mirror(&self.path, &database)?;
        self.mirror_mut().replace(fresh);
        self.database = Some(database);
        Ok(())
    }

    fn mirror_mut(&self) -> RwLockWriteGuard<'_, Mirror> {
        self.mirror.write().unwrap_or_else(PoisonError::into_inner)
    }
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

fn read_mirror(path: &Path, database: &Database) -> Result<Mirror, Error> {
    prepare(database).map_err(|source| Error::Open {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let (entries, revision, layout) = read(database).map_err(|source| Error::Open {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    if layout != LAYOUT_VERSION {
        return Err(Error::Layout {
            path: path.to_owned(),
            found: layout,
            expected: LAYOUT_VERSION,
        });
    }
    Ok(Mirror::new(entries, revision))
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

fn read(database: &Database) -> Result<(Vec<Entry>, Revision, u64), redb::Error> {
    let txn = database.begin_read()?;
    let meta = txn.open_table(META)?;
    let number = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    let mut entries = Vec::new();
    for row in txn.open_table(ENTRIES)?.iter()? {
        let (key, value) = row?;
        let (created, modified, value) = value.value();
        entries.push(Entry {
            key: key.value().to_owned(),
            value: value.to_vec(),
            created: Revision(created),
            modified: Revision(modified),
        });
    }
    Ok((entries, Revision(number(REVISION)?), number(LAYOUT)?))
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
