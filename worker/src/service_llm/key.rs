//! Where an API key comes from.
//!
//! Invariant: a key is read when a call is made, so that a mounted file may change while a run goes on.

use std::io::Read as _;

use llamaduo_proto::run::ApiKeySource;

use super::failure::{CallFailure, FailureClass};
use crate::secret::Secret;

/// Longest key file: keys have some hundred characters, a longer file is the wrong file.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// What a key holds that cannot be sent.
pub(super) const UNSENDABLE: &str =
    "the API key holds characters that no header may hold; expected one line of visible ASCII";

/// Why there is no key. Names the source, never its content.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoKey {
    /// Not set, or set to nothing.
    #[error("environment variable {name}, which is to hold the API key, is not set")]
    Unset { name: String },
    /// No such file, or one that may not be read.
    #[error("cannot read the API key file {path} ({source})")]
    Unreadable { path: String, source: std::io::Error },
    /// Nothing in it.
    #[error("the API key file {path} is empty")]
    Empty { path: String },
}

impl NoKey {
    /// As the failure of a call. Another worker may have the key, and a file that is being replaced may be whole a moment
    /// later, so the task is tried again elsewhere and the run ends only when that does not help.
    pub(super) fn of_call(&self) -> CallFailure {
        let remedy = match self {
            Self::Unset { .. } => "set it where this worker runs",
            Self::Unreadable { .. } | Self::Empty { .. } => "put the key into it where this worker runs",
        };
        CallFailure::unbilled(
            FailureClass::Unequipped,
            format!("{self}; {remedy}, then resume the run"),
        )
    }
}

/// The key that `source` names, or nothing when none is to be sent.
pub(super) fn read(source: &ApiKeySource) -> Result<Option<Secret>, NoKey> {
    match source {
        ApiKeySource::None => Ok(None),
        ApiKeySource::Env(name) => {
            let text = std::env::var(name).unwrap_or_default();
            let unset = || NoKey::Unset { name: name.clone() };
            Secret::new(&text).map(Some).ok_or_else(unset)
        }
        ApiKeySource::File(path) => {
            let mut text = String::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(KEY_BYTES_MAX).read_to_string(&mut text))
                .map_err(|source| NoKey::Unreadable {
                    path: path.clone(),
                    source,
                })?;
            let empty = || NoKey::Empty { path: path.clone() };
            Secret::new(&text).map(Some).ok_or_else(empty)
        }
    }
}
