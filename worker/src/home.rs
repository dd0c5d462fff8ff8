//! A worker's own directory: what it has to tell, and its cache of artifacts.
//!
//! Invariant: one process at a time holds it, and it has one id for as long as it exists; so a process that holds it is
//! the only one that may speak for what an earlier one left there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use llamaduo_artifacts::{LockError, ProcessLock};
use llamaduo_proto::ids::DirectoryId;

use crate::error::Error;
use crate::random;

/// Taken by the process that has the directory.
const LOCK: &str = "worker.lock";
/// Holds the directory's id.
const ID: &str = "worker.id";

/// A directory that this process holds; free again when dropped.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) id: DirectoryId,
    _lock: ProcessLock,
}

impl Home {
    /// Takes `root`, which is made if it is missing, or says who has it.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let lock = lock(root)?;
        let id = root.join(ID);
        let known = match fs::read_to_string(&id) {
            Ok(text) => DirectoryId::new(text.trim_end()).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &id)(error)),
        };
        let known = match known {
            Some(known) => known,
            None => new_id(root, &id)?,
        };
        Ok(Self {
            id: known,
            _lock: lock,
        })
    }
}

fn lock(root: &Path) -> Result<ProcessLock, Error> {
    ProcessLock::take(&root.join(LOCK)).map_err(|error| match error {
        LockError::Held { holder, .. } => Error::DirectoryInUse {
            directory: root.to_owned(),
            holder,
        },
        LockError::Io { action, path, source } => Error::io(action, &path)(source),
    })
}

/// Makes an id that lasts: it is told to a coordinator, so it is whole on the disk first.
fn new_id(root: &Path, path: &Path) -> Result<DirectoryId, Error> {
    let text = format!("{:016x}{:016x}", random::bits(), random::bits());
    let id = DirectoryId::new(&text).map_err(|error| Error::Options {
        field: "directory",
        expected: "a valid id",
        found: error.to_string(),
    })?;
    let beside = root.join(format!("{ID}.new"));
    let written = File::create(&beside).and_then(|mut file| {
        writeln!(file, "{id}")?;
        file.sync_all()
    });
    written.map_err(Error::io("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::io("write", path))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_always_the_same_id() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("new/worker");
        let first = Home::open(&root).unwrap();
        let message = Home::open(&root).unwrap_err().to_string();
        let own = format!("process {}", std::process::id());
        assert!(
            message.contains(&root.display().to_string()) && message.contains(&own),
            "{message}"
        );
        let id = first.id.clone();
        drop(first);
        assert_eq!(Home::open(&root).unwrap().id, id);
        fs::write(root.join(ID), "").unwrap();
        assert_ne!(Home::open(&root).unwrap().id, id);
    }
}
