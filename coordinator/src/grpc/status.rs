//! Errors in gRPC's words: a code, a sentence, and details that a program can read.
//!
//! Invariant: every refusal carries an `ErrorInfo` reason in capitals; clients match on that and never on the sentence.

use std::collections::HashMap;
use std::time::Duration;

use llamaduo_proto::convert::InvalidMessage;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::actors::commit;
use crate::actors::ledger;
use crate::actors::run::StepError;
use crate::actors::runs::SubmitError;
use crate::actors::scheduler::AttachError;
use crate::error::in_words;
use crate::machine::Refusal;

/// Domain of all reasons.
const DOMAIN: &str = "llamaduo";
/// When to try again what the store could not take: it reads its file anew in well under this.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A status with a reason.
pub(super) fn named(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

pub(super) fn try_again(message: impl Into<String>) -> Status {
    let mut details = ErrorDetails::with_error_info("UNAVAILABLE", DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// The coordinator is stopping or one of its parts is being restarted.
pub(super) fn stopping() -> Status {
    try_again("the coordinator is stopping; try again when it is back")
}

/// A field that is not what it should be.
pub(super) fn invalid(error: &InvalidMessage) -> Status {
    invalid_field(&error.field, error.to_string())
}

pub(super) fn invalid_field(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let mut details = ErrorDetails::with_bad_request_violation(field, message.clone());
    details.set_error_info("INVALID_ARGUMENT", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

pub(super) fn unknown_run(run: &llamaduo_proto::ids::RunId) -> Status {
    named(
        Code::NotFound,
        "UNKNOWN_RUN",
        format!("there is no run {run}; list the runs to see their ids"),
    )
}

pub(super) fn unknown_task(task: &llamaduo_proto::ids::TaskId) -> Status {
    named(
        Code::NotFound,
        "UNKNOWN_TASK",
        format!("the run has no task {task}; list its tasks to see their ids"),
    )
}

pub(super) fn of_step(error: StepError) -> Status {
    match error {
        StepError::Refused(refusal) => of_refusal(&refusal),
        StepError::Unavailable => try_again(error.to_string()),
        StepError::UnknownRun => named(Code::NotFound, "UNKNOWN_RUN", error.to_string()),
    }
}

fn of_refusal(refusal: &Refusal) -> Status {
    let (code, reason) = match refusal {
        Refusal::UnknownTask { .. } => (Code::NotFound, "UNKNOWN_TASK"),
        Refusal::StaleToken { .. } => (Code::FailedPrecondition, "STALE_FENCING_TOKEN"),
        Refusal::AlreadyRecorded => (Code::AlreadyExists, "ALREADY_RECORDED"),
        Refusal::WrongOutput { .. } => (Code::InvalidArgument, "WRONG_OUTPUT"),
        Refusal::NotReady { .. } => (Code::FailedPrecondition, "NOT_READY"),
        Refusal::NotQuarantined { .. } => (Code::FailedPrecondition, "NOT_QUARANTINED"),
        Refusal::Passed => (Code::FailedPrecondition, "RUN_PASSED"),
        Refusal::NoCyclesLeft { .. } => (Code::FailedPrecondition, "NO_CYCLES_LEFT"),
        Refusal::FixedField { .. } => (Code::InvalidArgument, "FIXED_FIELD"),
    };
    named(code, reason, refusal.to_string())
}

/// An error of reading or writing records.
pub(super) fn of_commit(error: commit::Error) -> Status {
    let message = in_words(&error);
    tracing::error!(error = message, "state could not be read or written");
    match error {
        commit::Error::Store(_) => try_again(message),
        commit::Error::Decode { .. } | commit::Error::Encode { .. } | commit::Error::Incomplete { .. } => {
            named(Code::DataLoss, "DAMAGED_STATE", message)
        }
    }
}

pub(super) fn of_submit(error: SubmitError) -> Status {
    match error {
        SubmitError::RequestReused { .. } => named(Code::AlreadyExists, "REQUEST_REUSED", error.to_string()),
        SubmitError::Commit(error) => of_commit(error),
    }
}

pub(super) fn of_ledger(error: ledger::Error) -> Status {
    match error {
        ledger::Error::StaleToken => {
            named(Code::FailedPrecondition, "STALE_FENCING_TOKEN", error.to_string())
        }
        ledger::Error::UnknownReservation { .. } => {
            named(Code::FailedPrecondition, "UNKNOWN_RESERVATION", error.to_string())
        }
        ledger::Error::Contended => try_again(error.to_string()),
        ledger::Error::Commit(error) => of_commit(error),
    }
}

pub(super) fn of_attach(error: &AttachError) -> Status {
    match error {
        AttachError::Superseded { .. } => named(
            Code::FailedPrecondition,
            "SUPERSEDED_INCARNATION",
            error.to_string(),
        ),
        AttachError::NameTaken { free_in, .. } => {
            let mut details = ErrorDetails::with_error_info("WORKER_NAME_TAKEN", DOMAIN, HashMap::new());
            details.set_retry_info(Some(*free_in));
            Status::with_error_details(Code::FailedPrecondition, error.to_string(), details)
        }
    }
}

pub(super) fn of_artifacts(error: &llamaduo_artifacts::Error) -> Status {
    use llamaduo_artifacts::Error;
    let message = in_words(error);
    match error {
        Error::Missing { .. } => named(Code::NotFound, "ARTIFACT_MISSING", message),
        Error::Damaged { .. } => named(Code::DataLoss, "ARTIFACT_DAMAGED", message),
        Error::DiskFull { .. } => named(Code::ResourceExhausted, "DISK_FULL", message),
        Error::Source { .. } => named(Code::Aborted, "UPLOAD_BROKEN", message),
        Error::Io { .. } => try_again(message),
    }
}
