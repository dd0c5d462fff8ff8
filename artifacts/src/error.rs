//! What can go wrong with artifacts.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

/// An error of an artifact store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is stored under the digest.
    #[error("artifact {digest} is not in the store; it was never stored here or was removed by hand")]
    Missing {
        /// The artifact asked for.
        digest: Digest,
    },
    /// The stored bytes are not those that were stored.
    #[error(
        "artifact {digest} is damaged: its bytes hash to {actual}; it was moved to {moved_to}, and whatever made it \
         must run again"
    )]
    Damaged {
        /// The artifact asked for.
        digest: Digest,
        /// What the bytes on disk hash to.
        actual: Digest,
        /// Where they are now.
        moved_to: PathBuf,
    },
    /// The disk has no room left.
    #[error(
        "no space is left for writing {path}; free some space and resume: everything stored before is intact"
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// The system's own word.
        #[source]
        source: io::Error,
    },
    /// The store's directory refused something.
    #[error("cannot {action} {path}; check that the store's directory exists and may be written")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's own word.
        #[source]
        source: io::Error,
    },
    /// The source of the bytes to be stored failed; nothing was stored.
    #[error("cannot read the bytes that were to be stored")]
    Source {
        /// The source's own word.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the same call could succeed later or elsewhere. A full disk can be freed, and another worker's may
    /// have room; a missing or damaged artifact stays what it is.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Io { .. } | Self::Source { .. } => true,
            Self::Missing { .. } | Self::Damaged { .. } => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}
