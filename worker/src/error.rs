//! What can go wrong in a worker, and the one place where an error becomes the end of an attempt.
//!
//! Invariant: every error has one [`FailureKind`], and no message holds a key.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use llamaduo_engine::{Device, DeviceError};
use llamaduo_proto::Digest;
use llamaduo_proto::convert::InvalidMessage;
use llamaduo_proto::task::FailureKind;

use crate::service_llm::{CallFailure, FailureClass};

/// An error of a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option that makes no sense.
    #[error("worker option {field}: expected {expected}, found {found}")]
    Options {
        /// Which.
        field: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The coordinator will not have this worker, and trying again would not change that.
    #[error("the coordinator at {url} refuses this worker: {reason}")]
    RefusedByCoordinator {
        /// Its address.
        url: String,
        /// Its words.
        reason: String,
    },
    /// Another process works in the directory.
    #[error(
        "{} is in use by the worker of {holder}; stop that one, or give this one another --name and another directory with --data",
        directory.display()
    )]
    DirectoryInUse {
        /// The worker's directory.
        directory: PathBuf,
        /// Who has it.
        holder: llamaduo_artifacts::Holder,
    },
    /// The coordinator could not be asked.
    #[error("the coordinator did not {what}; check that it runs and can be reached")]
    Coordinator {
        /// What was asked.
        what: &'static str,
        /// What came back.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The coordinator sent something that breaks the protocol.
    #[error(
        "the coordinator sent a message that breaks the protocol; run worker and coordinator of the same release"
    )]
    Protocol(#[from] InvalidMessage),
    /// An artifact could not be read or stored.
    #[error(transparent)]
    Artifact(#[from] llamaduo_artifacts::Error),
    /// An artifact's bytes do not mean what they should.
    #[error("artifact {digest} is not {expected}")]
    Content {
        /// Which.
        digest: Digest,
        /// What it should hold.
        expected: &'static str,
        /// Where reading stopped.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A task asks for something its inputs do not hold.
    #[error("{what}: expected {expected}, found {found}")]
    Task {
        /// What was looked at.
        what: &'static str,
        /// What it needs.
        expected: String,
        /// What there is.
        found: String,
    },
    /// A model reference leads nowhere.
    #[error(transparent)]
    Model(#[from] crate::models::Error),
    /// A call to a service LLM failed for this attempt.
    #[error(transparent)]
    Service(#[from] CallFailure),
    /// The run may not make another call.
    #[error("the budget is spent: {0}")]
    BudgetSpent(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] llamaduo_engine::Error),
    /// What models run on cannot be asked for its memory.
    #[error("{device} cannot be used")]
    Device {
        /// Which.
        device: Device,
        /// Why not.
        #[source]
        source: DeviceError,
    },
    /// The pure side failed.
    #[error(transparent)]
    Data(#[from] llamaduo_data::Error),
    /// A prompt could not be read or rendered.
    #[error(transparent)]
    Prompt(#[from] llamaduo_prompts::Error),
    /// A file of the worker's own directory.
    #[error("cannot {action} {}; check that the directory may be written and has space", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A value could not be written as JSON.
    #[error("cannot write {what} as JSON")]
    Encode {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A thread or task of the worker ended when it should not have.
    #[error("the worker's {0} ended unexpectedly; restart the worker and report what its log says")]
    Gone(&'static str),
    /// The attempt was told to stop.
    #[error("the attempt was stopped: {0}")]
    Stopped(Stop),
}

/// Why an attempt was told to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Somebody cancelled it.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// Its lease belongs to somebody else.
    #[error("its lease is gone")]
    Revoked,
    /// The coordinator was silent for so long that the lease may be given away.
    #[error("no heartbeat was acknowledged within the lease")]
    LeaseLost,
    /// This worker finishes.
    #[error("the worker drains")]
    Draining,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn content<E: StdError + Send + Sync + 'static>(
        digest: Digest,
        expected: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Content {
            digest,
            expected,
            source: Box::new(source),
        }
    }

    /// Whether the device that the model was on has to be opened anew.
    pub(crate) fn has_lost_device(&self) -> bool {
        matches!(self, Self::Engine(error) if matches!(error.device(), Some(DeviceError::Lost { .. })))
    }

    /// Whether the same task could succeed at another time or elsewhere.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.failure_kind(),
            FailureKind::Retryable | FailureKind::OutOfMemory | FailureKind::ServiceUnavailable
        )
    }

    /// What the end of an attempt by this error is called.
    pub fn failure_kind(&self) -> FailureKind {
        if is_disk_full(self) {
            return FailureKind::Retryable;
        }
        match self {
            Self::Coordinator { .. } | Self::Io { .. } | Self::Gone(_) => FailureKind::Retryable,
            Self::Artifact(error) if error.is_retryable() => FailureKind::Retryable,
            Self::Artifact(_) | Self::Content { .. } => FailureKind::CorruptInput,
            // Files are there on one worker and not on another. A run on a single one gives up after a few seconds.
            Self::Model(_) => FailureKind::Retryable,
            Self::Engine(llamaduo_engine::Error::Read { .. } | llamaduo_engine::Error::NoModel { .. }) => {
                FailureKind::Retryable
            }
            Self::Engine(error) => error.device().map_or(FailureKind::Permanent, device_failure),
            Self::Device { source, .. } => device_failure(source),
            Self::Service(failure) => match failure.class {
                FailureClass::Transient | FailureClass::Unequipped => FailureKind::ServiceUnavailable,
                FailureClass::BadRequest => FailureKind::Permanent,
                FailureClass::Refused => FailureKind::ServiceRefused,
            },
            Self::BudgetSpent(_) => FailureKind::BudgetSpent,
            Self::Stopped(Stop::Cancelled(_)) => FailureKind::Cancelled,
            Self::Stopped(Stop::Revoked | Stop::LeaseLost) => FailureKind::LeaseExpired,
            Self::Stopped(Stop::Draining) => FailureKind::Released,
            Self::Options { .. }
            | Self::DirectoryInUse { .. }
            | Self::RefusedByCoordinator { .. }
            | Self::Protocol(_)
            | Self::Task { .. }
            | Self::Data(_)
            | Self::Prompt(_)
            | Self::Encode { .. } => FailureKind::Permanent,
        }
    }

    /// The sentence for people: this error and its causes.
    pub fn message(&self) -> String {
        let message = chain(self);
        if is_disk_full(self) && !message.contains("free some space") {
            return format!("the disk is full: {message}; free some space on the worker and resume");
        }
        message
    }
}

/// What the end of an attempt by a device's failure is called. The device was there when this worker started: one that is
/// gone may come back, and another worker's is there.
fn device_failure(error: &DeviceError) -> FailureKind {
    match error {
        DeviceError::OutOfMemory { .. } => FailureKind::OutOfMemory,
        DeviceError::DriverTooOld { .. }
        | DeviceError::DeviceTooOld { .. }
        | DeviceError::NoKernel { .. }
        | DeviceError::LeftOut { .. } => FailureKind::Permanent,
        DeviceError::NoDriver
        | DeviceError::DriverFails { .. }
        | DeviceError::NoDevice { .. }
        | DeviceError::Lost { .. }
        | DeviceError::Driver { .. } => FailureKind::Retryable,
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error).into_iter().skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The error itself, then what caused it. A chain of more than 16 is a cycle.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut causes = vec![error];
    let mut next = error.source();
    while let Some(cause) = next.filter(|_| causes.len() < 16) {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

fn is_disk_full(error: &(dyn StdError + 'static)) -> bool {
    causes(error)
        .into_iter()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| {
            matches!(
                cause.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        })
}

#[cfg(test)]
mod tests;
