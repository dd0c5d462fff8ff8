//! What an HTTP status other than success means.
//!
//! Invariant: a decision from status, headers and body alone, so that each row of the table can be tested.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;

use super::wire::ErrorBody;
use crate::service_llm::failure::{Billing, CallFailure, FailureClass};

/// Words that say the money is used up: waiting does not help.
const QUOTA_CODES: &[&str] = &[
    "insufficient_quota",
    "credit_balance_exhausted",
    "billing_error",
    "billing_hard_limit_reached",
    "billing_not_active",
    "project_spend_limit_exceeded",
    "organization_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
];

/// What the headers say about trying again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    pub(super) should_retry: Option<bool>,
    pub(super) retry_after: Option<Duration>,
}

impl Hints {
    /// `x-should-retry`; then `retry-after-ms`, `retry-after` in seconds or as a date.
    pub(super) fn read(headers: &HeaderMap, now: Timestamp) -> Self {
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::trim)
        };
        let number = |name: &str| text(name).and_then(|text| text.parse::<f64>().ok());
        let date = || {
            let at = jiff::fmt::rfc2822::parse(text("retry-after")?).ok()?.timestamp();
            Some(at.duration_since(now).as_secs_f64())
        };
        let seconds = number("retry-after-ms")
            .map(|ms| ms / 1000.0)
            .or_else(|| number("retry-after"))
            .or_else(date);
        Self {
            should_retry: text("x-should-retry").and_then(|text| text.parse().ok()),
            retry_after: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        }
    }
}

/// The failure that `status` and `error` come to; `name` is the service as people know it.
pub(super) fn failure(name: &str, status: u16, hints: Hints, error: &ErrorBody) -> CallFailure {
    let quota = matches!(status, 402) || error.has_code(QUOTA_CODES);
    let (class, advice) = match status {
        _ if quota => (
            FailureClass::Refused,
            "the account has no credit left; raise its limit, then resume the run",
        ),
        401 | 403 => (
            FailureClass::Refused,
            "check the API key and what it is allowed to do",
        ),
        404 => (FailureClass::Refused, "check base_url and the model's name"),
        405 | 501 | 505 => (
            FailureClass::Refused,
            "it does not speak OpenAI's chat completions there; set base_url to where they are",
        ),
        300..=399 => (
            FailureClass::Refused,
            "it sends elsewhere, which is not followed; set base_url to the final address",
        ),
        _ if hints.should_retry == Some(true) => (FailureClass::Transient, "it asks for another try"),
        408 | 409 | 429 | 500.. if hints.should_retry != Some(false) => (
            FailureClass::Transient,
            "it may answer another time; lower service.concurrency or service.requests_per_minute if it happens often",
        ),
        _ => (
            FailureClass::BadRequest,
            "the request itself is refused; shorten it or change the service's settings",
        ),
    };
    // Behind a gateway the answer may have been computed and lost; every other refusal came instead of an answer.
    let billing = if matches!(status, 502 | 504) {
        Billing::Unknown
    } else {
        Billing::No
    };
    let codes = error.codes.join(", ");
    let codes = if codes.is_empty() {
        codes
    } else {
        format!(" ({codes})")
    };
    let message = format!(
        "{name} answered HTTP {status}{codes}: {}; {advice}",
        error.message
    );
    CallFailure {
        class,
        billing,
        retry_after: hints.retry_after,
        message,
    }
}

#[cfg(test)]
mod tests;
