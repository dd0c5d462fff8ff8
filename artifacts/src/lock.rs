//! One process at a time: a lock on a file, for directories that must not have two owners.
//!
//! Invariant: the lock belongs to an open file, so a process that dies leaves it free.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A held lock; free again when dropped.
#[derive(Debug)]
pub struct ProcessLock {
    _file: File,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{path} is held by {holder}")]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The file cannot be used.
    #[error("cannot {action} {path}; check that its directory may be written")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's own word.
        #[source]
        source: io::Error,
    },
}

/// The process that holds a lock, as people are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number, where it could be read.
    pub process: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(number) => write!(f, "process {number}"),
            None => f.write_str("another process"),
        }
    }
}

impl ProcessLock {
    /// Takes the lock of the file `path`, which is made with its directory if it is missing, or says who has it. While it
    /// is held the file names this process, for people.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |action| {
            move |source| LockError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("create the directory of"))?;
        }
        let mut options = File::options();
        let options = options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(path).map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(failed("write"))?;
                writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who has it may be writing its number at this moment; then it is not named.
                let read = file.read_to_string(&mut text).ok();
                let process = read.and_then(|_| text.trim().parse().ok());
                Err(LockError::Held {
                    path: path.to_owned(),
                    holder: Holder { process },
                })
            }
            Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/directory/some.lock");
        let first = ProcessLock::take(&path).unwrap();
        let held = ProcessLock::take(&path).unwrap_err();
        let own = format!("process {}", std::process::id());
        assert!(
            matches!(&held, LockError::Held { holder, .. } if holder.to_string() == own),
            "{held}"
        );
        fs::write(&path, "no number").unwrap();
        let unnamed = ProcessLock::take(&path).unwrap_err().to_string();
        assert!(unnamed.ends_with("held by another process"), "{unnamed}");
        drop(first);
        ProcessLock::take(&path).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let path = folder.path().join("file/some.lock");
        let error = ProcessLock::take(&path).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error}");
        assert!(error.to_string().contains("some.lock"), "{error}");
    }
}
