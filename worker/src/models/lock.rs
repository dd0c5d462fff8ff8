//! One process at a time fetches a model into the cache.
//!
//! Invariant: who waits can be stopped, and says what it waits for.

use std::path::Path;
use std::time::Duration;

use llamaduo_artifacts::{LockError, ProcessLock};

use super::{Error, Fetching, Waiting};

/// How often a lock that another process holds is tried.
const PERIOD: Duration = Duration::from_millis(200);

/// Waits for the lock of `path`.
pub(super) async fn acquire(path: &Path, waiting: Waiting<'_>) -> Result<ProcessLock, Error> {
    loop {
        match ProcessLock::take(path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) => {}
            Err(LockError::Io { action, path, source }) => return Err(Error::cache(action, &path)(source)),
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
