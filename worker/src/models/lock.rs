//! One process at a time fetches a model into the cache.
//!
//! Invariant: the lock belongs to an open file, so a process that dies leaves it free.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::{Error, Fetching, Waiting};

/// How often a lock that another process holds is tried.
const PERIOD: Duration = Duration::from_millis(200);

/// A held lock; free again when dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Waits for the lock of `path`.
pub(super) async fn acquire(path: &Path, waiting: Waiting<'_>) -> Result<Lock, Error> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::cache("create", directory))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.map_err(Error::cache("open", path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(Error::cache("lock", path)(source)),
        }
        let what = "waiting for another process that fetches the model".to_owned();
        (waiting.tell)(Fetching {
            what,
            n_bytes: 0,
            n_bytes_total: None,
        });
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = waiting.stopped.cancelled() => return Err(Error::Stopped),
        }
    }
}
