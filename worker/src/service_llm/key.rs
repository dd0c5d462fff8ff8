//! Where an API key comes from.
//!
//! Invariant: a key is read when a call is made, so that a mounted file may change while a run goes on.

use std::io::Read as _;

use llamaduo_proto::run::ApiKeySource;

use super::failure::{CallFailure, FailureClass};
use crate::secret::Secret;

/// Longest key file: keys have some hundred characters, a longer file is the wrong file.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// The key that `source` names, or nothing when none is to be sent. Errors name the source, never its content.
pub(super) fn read(source: &ApiKeySource) -> Result<Option<Secret>, CallFailure> {
    // Keys are set up worker by worker, so another one may have what this one lacks.
    let refused = |message| CallFailure::unbilled(FailureClass::Unequipped, message);
    match source {
        ApiKeySource::None => Ok(None),
        ApiKeySource::Env(name) => {
            let text = std::env::var(name).unwrap_or_default();
            let expected = "expected an API key; set it where the worker runs";
            Secret::new(&text)
                .map(Some)
                .ok_or_else(|| refused(format!("environment variable {name} is not set; {expected}")))
        }
        ApiKeySource::File(path) => {
            let mut text = String::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(KEY_BYTES_MAX).read_to_string(&mut text))
                .map_err(|error| {
                    refused(format!(
                        "cannot read the API key file {path} ({error}); check that it exists and may be read"
                    ))
                })?;
            Secret::new(&text)
                .map(Some)
                .ok_or_else(|| refused(format!("the API key file {path} is empty; expected a key in it")))
        }
    }
}
