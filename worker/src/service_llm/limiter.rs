//! How often, how many at once, and how many times: the one place where calls to services are paced and repeated.
//!
//! Invariant: only transient failures are repeated, a bounded number of times within a bounded time, and a wait the
//! service asks for is kept by every call to it that has not started yet.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::failure::{CallFailure, FailureClass};
use crate::random;

/// Tries of one call. The vendors' own clients make 3 to 5; beyond 6 the task's own attempts take over.
const TRIES_MAX: u32 = 6;

/// After this long a call is given up, whatever tries are left: the scheduler places its task anew.
const TOTAL_MAX: Duration = Duration::from_secs(600);

/// First wait, doubled each time: what OpenAI's and Anthropic's clients do.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// Longest wait of our own choice, as theirs.
const BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Share of a wait that jitter may take off, as theirs.
const JITTER: f64 = 0.25;

/// A service that asks for a longer wait is not waited for: a slot would be held for nothing.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// Calls in flight at most, whatever a run asks for: each holds a request and a reply in memory.
const CONCURRENCY_MAX: u32 = 1024;

/// Paces the calls to one service.
#[derive(Debug)]
pub struct Limiter {
    slots: Arc<Semaphore>,
    /// Between the starts of two calls; zero when the pace is free.
    spacing: Duration,
    /// The next call may start then.
    next_start: Mutex<Instant>,
}

impl Limiter {
    /// At most `concurrency_max` calls at once (0 is read as 1) and `requests_per_minute_max` starts a minute.
    pub fn new(concurrency_max: u32, requests_per_minute_max: Option<u32>) -> Self {
        let n_slots = concurrency_max.clamp(1, CONCURRENCY_MAX) as usize;
        let per_minute = requests_per_minute_max.filter(|n| *n > 0);
        Self {
            slots: Arc::new(Semaphore::new(n_slots)),
            spacing: per_minute.map_or(Duration::ZERO, |n| Duration::from_secs(60) / n),
            next_start: Mutex::new(Instant::now()),
        }
    }

    /// Waits until a call may start. The permit is held until the call has ended.
    pub async fn start(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed, so this is always a permit.
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        let start = {
            let mut next = self.next_start.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*next).max(Instant::now());
            *next = start + self.spacing;
            start
        };
        sleep_until(start).await;
        permit
    }

    /// Counts the tries of one call.
    pub fn tries(&self) -> Tries<'_> {
        Tries {
            limiter: self,
            n_failed: 0,
            deadline: Instant::now() + TOTAL_MAX,
        }
    }

    /// Nobody starts a call for `wait`.
    fn pause(&self, wait: Duration) {
        let mut next = self.next_start.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + wait);
    }
}

/// The tries of one call.
#[derive(Debug)]
pub struct Tries<'a> {
    limiter: &'a Limiter,
    n_failed: u32,
    deadline: Instant,
}

impl Tries<'_> {
    /// Waits before another try after `failure`, or gives the failure back when there is to be none.
    pub async fn again(&mut self, failure: CallFailure) -> Result<(), CallFailure> {
        self.n_failed += 1;
        let time_left = self.deadline.saturating_duration_since(Instant::now());
        let Some(wait) = wait(&failure, self.n_failed, time_left, random::unit()) else {
            return Err(exhausted(failure, self.n_failed));
        };
        let wait_ms = wait.as_millis() as u64;
        if self.n_failed == 1 {
            // One failure is weather; it is told to those who look closely.
            tracing::info!(wait_ms, reason = %failure, "service llm call failed, trying again");
        } else {
            tracing::warn!(n_failed = self.n_failed, wait_ms, reason = %failure, "service llm call failed again, trying again");
        }
        if failure.retry_after.is_some() {
            self.limiter.pause(wait);
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// How long to wait after the `n_failed`-th failure, or nothing when the call is to be given up.
fn wait(failure: &CallFailure, n_failed: u32, time_left: Duration, unit: f64) -> Option<Duration> {
    if failure.class != FailureClass::Transient || n_failed >= TRIES_MAX {
        return None;
    }
    let wait = match failure.retry_after {
        Some(asked) if asked > RETRY_AFTER_MAX => return None,
        Some(asked) => asked,
        None => {
            let doubled = BACKOFF_FIRST
                .saturating_mul(1 << (n_failed - 1).min(16))
                .min(BACKOFF_MAX);
            doubled.mul_f64(1.0 - JITTER * unit)
        }
    };
    (wait < time_left).then_some(wait)
}

fn exhausted(failure: CallFailure, n_failed: u32) -> CallFailure {
    if failure.class == FailureClass::Transient && n_failed > 1 {
        let message = format!("{} ({n_failed} tries)", failure.message);
        return CallFailure { message, ..failure };
    }
    failure
}

#[cfg(test)]
mod tests;
