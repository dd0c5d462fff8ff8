//! One coordinator at a time in a directory.
//!
//! Invariant: the lock belongs to an open file, so a process that dies leaves it free.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;

use crate::error::Error;

/// Holds the number of the process that has the lock, for people.
const NAME: &str = "coordinator.lock";

/// A held lock; free again when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock of `directory`, or says who has it.
pub(crate) fn acquire(directory: &Path) -> Result<Lock, Error> {
    let path = directory.join(NAME);
    let failed = |source| Error::Lock {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(directory).map_err(failed)?;
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Who has it may be writing its number at this moment; then it is not named.
            let process = file.read_to_string(&mut text).ok();
            Err(Error::InUse {
                directory: directory.to_owned(),
                process: process.and_then(|_| text.trim().parse().ok()),
            })
        }
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
