//! How one call to a service LLM fails, and what that means: to be repeated or not, billed or not.
//!
//! Invariant: a failure is classified where it is seen, once; its message holds no key.

use std::time::Duration;

/// One failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailure {
    /// What kind.
    pub class: FailureClass,
    /// Whether it may have cost money.
    pub billing: Billing,
    /// What the service asked to wait, where it did.
    pub retry_after: Option<Duration>,
    /// A sentence for people: what failed, what the service said, what to do.
    pub message: String,
}

/// What kind of failure a call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// May pass: the pace, an overload, a broken connection, a broken body.
    Transient,
    /// This request will never be answered: too long, or of a form the service does not take.
    BadRequest,
    /// This worker has not what the request needs, such as the key; another may.
    Unequipped,
    /// No request of this run will be answered: key, quota, model, address.
    Refused,
}

/// Whether a failed call may have cost money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Billing {
    /// It was refused before anything was computed.
    No,
    /// It may have been computed: the answer was lost on the way.
    Unknown,
}

impl CallFailure {
    /// A failure that cost nothing and names no wait.
    pub(crate) fn unbilled(class: FailureClass, message: impl Into<String>) -> Self {
        Self {
            class,
            billing: Billing::No,
            retry_after: None,
            message: message.into(),
        }
    }

    /// A failure after which nobody knows whether the call was computed.
    pub(crate) fn doubtful(message: impl Into<String>) -> Self {
        Self {
            class: FailureClass::Transient,
            billing: Billing::Unknown,
            retry_after: None,
            message: message.into(),
        }
    }

    /// Whether another try, now or later, could succeed.
    pub fn is_retryable(&self) -> bool {
        self.class == FailureClass::Transient
    }
}
