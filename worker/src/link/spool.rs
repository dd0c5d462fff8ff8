//! What has to be told to the coordinator and is not yet: the ends of attempts and of paid calls, on disk.
//!
//! ```text
//! ROOT/0000000000000007.call    an EndCallRequest, protobuf
//! ROOT/0000000000000008.end     a CompleteAttemptRequest, protobuf
//! ```
//!
//! Invariant: an entry is on disk, name and bytes, before [`Spool::put`] or [`Spool::hold`] returns, and entries are
//! told in the order they were put: an attempt's calls before its end.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamaduo_proto::session::{Completion, EndCall};
use llamaduo_proto::wire::{CompleteAttemptRequest, EndCallRequest};
use prost::Message as _;
use tempfile::NamedTempFile;
use tokio::sync::Notify;

use crate::error::Error;

/// One thing to be told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    /// A call ended.
    Call(EndCall),
    /// An attempt ended.
    End(Completion),
}

/// Names an entry; later ones are greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryName(String);

/// A spool in a directory that belongs to one worker.
#[derive(Debug)]
pub(crate) struct Spool {
    root: PathBuf,
    next: Mutex<u64>,
    /// Told by whoever put them, unless they cannot.
    held: Mutex<BTreeSet<EntryName>>,
    added: Notify,
}

/// An entry that its owner tells. Dropped, it is left to whoever tells the others.
#[derive(Debug)]
pub(crate) struct Held {
    spool: Arc<Spool>,
    name: EntryName,
    is_told: bool,
}

impl Held {
    /// Removes the entry: it was told.
    pub(crate) fn told(mut self) -> Result<(), Error> {
        self.spool.remove(&self.name)?;
        self.is_told = true;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.spool.held().remove(&self.name);
        if !self.is_told {
            self.spool.added.notify_one();
        }
    }
}

impl Spool {
    /// Opens the spool, making its directory if there is none.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let spool = Self {
            root: root.to_owned(),
            next: Mutex::new(0),
            held: Mutex::default(),
            added: Notify::new(),
        };
        let last = spool
            .names()?
            .into_iter()
            .filter_map(|name| number(&name.0))
            .max();
        *spool.next.lock().unwrap_or_else(PoisonError::into_inner) =
            last.map_or(0, |last| last.saturating_add(1));
        Ok(spool)
    }

    /// Puts an entry on disk, to be told.
    pub(crate) fn put(&self, entry: Entry) -> Result<(), Error> {
        self.write(entry, false)?;
        self.added.notify_one();
        Ok(())
    }

    /// Puts an entry on disk and leaves it to the caller to tell it.
    pub(crate) fn hold(self: Arc<Self>, entry: Entry) -> Result<Held, Error> {
        let name = self.write(entry, true)?;
        Ok(Held {
            spool: self,
            name,
            is_told: false,
        })
    }

    fn write(&self, entry: Entry, is_held: bool) -> Result<EntryName, Error> {
        let (bytes, extension) = match entry {
            Entry::Call(call) => (EndCallRequest::from(call).encode_to_vec(), "call"),
            Entry::End(completion) => (CompleteAttemptRequest::from(completion).encode_to_vec(), "end"),
        };
        let mut file = NamedTempFile::new_in(&self.root).map_err(Error::io("write into", &self.root))?;
        file.write_all(&bytes).map_err(Error::io("write", file.path()))?;
        file.as_file()
            .sync_all()
            .map_err(Error::io("write", file.path()))?;
        let name = {
            // Number and name together, or a later entry could be told before an earlier one has its name.
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let name = EntryName(format!("{:016}.{extension}", *next));
            if is_held {
                self.held().insert(name.clone());
            }
            let target = self.root.join(&name.0);
            if let Err(error) = file.persist(&target) {
                self.held().remove(&name);
                return Err(Error::io("write", &target)(error.error));
            }
            *next += 1;
            name
        };
        if let Err(error) = sync_directory(&self.root) {
            self.held().remove(&name);
            return Err(Error::io("sync", &self.root)(error));
        }
        Ok(name)
    }

    /// The names of all entries that nobody holds, in order.
    pub(crate) fn names(&self) -> Result<Vec<EntryName>, Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io("list", &self.root))? {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            if let Some(name) = entry.file_name().to_str().filter(|name| number(name).is_some()) {
                names.push(EntryName(name.to_owned()));
            }
        }
        let held = self.held();
        names.retain(|name| !held.contains(name));
        names.sort_unstable();
        Ok(names)
    }

    /// Reads an entry. One that cannot be read is set aside, and is nothing.
    pub(crate) fn read(&self, name: &EntryName) -> Result<Option<Entry>, Error> {
        let path = self.root.join(&name.0);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let entry = if name.0.ends_with(".call") {
            EndCallRequest::decode(&bytes[..])
                .ok()
                .and_then(|wire| EndCall::try_from(wire).ok())
                .map(Entry::Call)
        } else {
            let wire = CompleteAttemptRequest::decode(&bytes[..]).ok();
            wire.and_then(|wire| Completion::try_from(wire).ok())
                .map(Entry::End)
        };
        if entry.is_none() {
            let aside = path.with_extension("damaged");
            tracing::error!(path = %aside.display(), "a spooled entry cannot be read and was set aside");
            fs::rename(&path, &aside).map_err(Error::io("set aside", &path))?;
        }
        Ok(entry)
    }

    /// Removes an entry that was told.
    pub(crate) fn remove(&self, name: &EntryName) -> Result<(), Error> {
        let path = self.root.join(&name.0);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<EntryName>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an entry was put.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}

fn number(name: &str) -> Option<u64> {
    name.strip_suffix(".call")
        .or_else(|| name.strip_suffix(".end"))?
        .parse()
        .ok()
}

/// A name is on disk only when the directory is.
#[cfg(unix)]
fn sync_directory(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Directories cannot be opened for syncing here; the file system orders renames itself.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests;
