//! What follows from a failed attempt.
//!
//! Invariant: every kind of failure either ends the run, quarantines the task, or brings a bounded number closer to
//! its bound; only attempts that were given back on purpose or were moved forward by a checkpoint are free.

use std::collections::BTreeSet;
use std::time::Duration;

use llamaduo_proto::ids::WorkerId;
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::task::FailureKind;

use super::run::TaskRecord;

/// Failed attempts that quarantine a task: a fault that strikes four times in a row is no accident.
const FAILED_MAX: u32 = 4;
/// Lost workers that quarantine a task, if they were at least two different ones: the task may be what kills them.
const LOST_MAX: usize = 3;
/// Lost workers that quarantine a task even when it was always the same: it may be the only one there is, and a laptop
/// that is switched off now and then must not fail a run soon.
const LOST_ON_ONE_MAX: usize = 8;
/// Lost workers after which a task is placed again at once when its worker is back.
const AT_ONCE_MAX: usize = 3;
/// The first back-off; each further one may be twice as long.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What becomes of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It may be leased again after this long.
    Retry(Duration),
    /// It is given up on.
    Quarantine,
    /// Its run ends.
    End(RunStatus),
}

/// Counts a failure in `record` and decides. `progressed` says whether a checkpoint moved the task forward during the
/// attempt, `jitter` is uniform over all numbers.
pub(super) fn after(
    record: &mut TaskRecord,
    kind: FailureKind,
    worker: &WorkerId,
    progressed: bool,
    jitter: u64,
) -> Next {
    match kind {
        FailureKind::Retryable | FailureKind::OutOfMemory => {
            record.n_failed += 1;
            record.batch_halvings += u32::from(kind == FailureKind::OutOfMemory);
            match record.n_failed {
                FAILED_MAX.. => Next::Quarantine,
                n => Next::Retry(backoff(n, jitter)),
            }
        }
        FailureKind::WorkerLost | FailureKind::LeaseExpired => {
            if progressed {
                record.lost_on.clear();
                return Next::Retry(Duration::ZERO);
            }
            // The worker is known to be back, so waiting would only delay who restarted it. One that comes back again and
            // again may lack something that takes time to come.
            let is_back = kind == FailureKind::WorkerLost && record.lost_on.len() < AT_ONCE_MAX;
            record.lost_on.push(worker.clone());
            let n_lost = record.lost_on.len();
            let n_workers = record.lost_on.iter().collect::<BTreeSet<_>>().len();
            if (n_lost >= LOST_MAX && n_workers >= 2) || n_lost >= LOST_ON_ONE_MAX {
                Next::Quarantine
            } else if is_back {
                Next::Retry(Duration::ZERO)
            } else {
                // At most LOST_ON_ONE_MAX, so the cast keeps the value.
                Next::Retry(backoff(n_lost as u32, jitter))
            }
        }
        FailureKind::Permanent | FailureKind::CorruptInput => Next::Quarantine,
        FailureKind::ServiceUnavailable => {
            record.n_failed += 1;
            if record.n_failed < FAILED_MAX {
                return Next::Retry(backoff(record.n_failed, jitter));
            }
            // The task is not to blame: a resume finds it as fresh as the service may be.
            record.n_failed = 0;
            Next::End(RunStatus::ServiceFailed)
        }
        FailureKind::ServiceRefused => Next::End(RunStatus::ServiceFailed),
        FailureKind::BudgetSpent => Next::End(RunStatus::BudgetSpent),
        // Not at once, or a worker that gives back whatever it gets would be asked without a pause.
        FailureKind::Released | FailureKind::Cancelled => Next::Retry(BACKOFF_MIN),
    }
}

/// Full jitter: uniform up to 1 s · 2ⁿ⁻¹, at most 60 s.
fn backoff(n: u32, jitter: u64) -> Duration {
    let longest = BACKOFF_MIN
        .saturating_mul(1_u32 << n.saturating_sub(1).min(10))
        .min(BACKOFF_MAX);
    // Below 2^16 s in milliseconds times a fraction of 2^32: no overflow in u128, and the quotient fits in u64.
    Duration::from_millis(((longest.as_millis() * u128::from(jitter >> 32)) >> 32) as u64)
}
