//! The names of things. Each is its own type, so that a task's id cannot be passed where a run's is meant.
//!
//! Invariant: a value of one of these types has been checked; nothing needs to check it again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that is not a valid id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no {what}: expected {expected}")]
pub struct InvalidId {
    /// What was to be read.
    pub what: &'static str,
    /// What is allowed.
    pub expected: &'static str,
    /// The text, cut to 80 characters.
    pub found: String,
}

/// Longest id: ids are part of store keys and file names.
const ID_LEN_MAX: usize = 128;

fn check(what: &'static str, text: &str) -> Result<String, InvalidId> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > ID_LEN_MAX || !text.chars().all(allowed) || text.starts_with('.') {
        return Err(InvalidId {
            what,
            expected: "1 to 128 characters of [a-zA-Z0-9._-], not starting with a dot",
            found: text.chars().take(80).collect(),
        });
    }
    Ok(text.to_owned())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                check($what, text).map(Self)
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

text_id!(
    /// One migration, or one single task submitted by a client.
    RunId,
    "run id"
);
text_id!(
    /// A task within its run, for example `c01-infer-adapter-003`: deterministic, so that a repeated step makes the same tasks.
    TaskId,
    "task id"
);
text_id!(
    /// A worker, stable over restarts.
    WorkerId,
    "worker id"
);
text_id!(
    /// One process of a worker: random at each start.
    Incarnation,
    "incarnation"
);
text_id!(
    /// The data directory of a worker: random when it is made, and held by one process at a time.
    DirectoryId,
    "directory id"
);
text_id!(
    /// Chosen by a client to make a submission idempotent.
    RequestId,
    "request id"
);
text_id!(
    /// Leave to make one service-LLM call.
    ReservationId,
    "reservation id"
);

/// sha256 of (vendor, model, parameters, prompt, repeat index): what a service-LLM call is known by.
pub type CallHash = crate::Digest;

/// Fencing token of a lease: the store's revision of the claim. Only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseToken(pub u64);

/// Number of an attempt, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptNumber(pub u32);

/// Number of a cycle; 0 measures floor and ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cycle(pub u32);

/// An attempt and the lease it runs under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The run.
    pub run: RunId,
    /// The task.
    pub task: TaskId,
    /// Its number.
    pub attempt: AttemptNumber,
    /// Its fencing token.
    pub token: LeaseToken,
}
