//! Immutable bytes named by their sha256, and the lock by which one process at a time has a directory.
//!
//! Invariant: under a digest there are the bytes that hash to it, or nothing. A writer that dies leaves no name
//! behind, and bytes that decayed on disk are moved aside instead of being handed out.

mod digest;
mod directory;
mod error;
mod lock;

pub use digest::{Digest, InvalidDigest};
pub use directory::Directory;
pub use error::Error;
pub use lock::{Holder, LockError, ProcessLock};
