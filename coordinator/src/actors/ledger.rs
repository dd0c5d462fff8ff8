//! What calls to service LLMs cost, and whether another may be made.
//!
//! Invariant: a call's record is durable before leave is given, and its reply before it counts; the sum of what was
//! spent, what is reserved and what may have been spent unseen never exceeds the budget.
//!
//! Each call has a record of its own, so that calls are begun and ended side by side; the sums are kept in memory and
//! counted anew from the records after a restart.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{AttemptId, CallHash, LeaseToken, ReservationId, RunId, TaskId};
use llamaduo_proto::run::{Budget, Cost};
use llamaduo_proto::session::{BeginCall, CallLeave, CallOutcome, CallReply, EndCall};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, RwLockReadGuard};

use super::commit::{self, decode, encode};
use crate::machine::Run;
use crate::store::{self, Compare, Entry, Outcome, Revision, StateStore, Txn, keys, range_all};

/// Reservations that one call may have open at once: workers with the same prompt, and those that vanished. Beyond it
/// the oldest is written off as a call of unknown outcome.
const OPEN_MAX: usize = 16;
/// Conflicts in a row on one call's record before the request is answered with "try again".
const CONFLICTS_MAX: u32 = 16;

/// Why a call could not be begun or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The attempt may not call any more.
    #[error("the attempt no longer holds its lease; stop it")]
    StaleToken,
    /// No such leave was given, or it was used with another reply.
    #[error("reservation {reservation} is not open for this call; begin the call again")]
    UnknownReservation {
        /// As the worker named it.
        reservation: ReservationId,
    },
    /// The record cannot be read or written.
    #[error(transparent)]
    Commit(#[from] commit::Error),
    /// Too many at once on one record.
    #[error("too many calls on one record at once; try again")]
    Contended,
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Commit(error.into())
    }
}

/// What the store holds of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct CallRecord {
    /// The first reply; it is what every repetition gets.
    reply: Option<Digest>,
    n_replies: u64,
    input_tokens: u64,
    output_tokens: u64,
    nano_usd: u64,
    n_unpriced: u64,
    n_unknown: u64,
    /// Most that the calls of unknown outcome may have cost.
    unknown_nano_usd: u64,
    /// Leaves given so far; numbers the next reservation.
    n_begun: u64,
    open: BTreeMap<ReservationId, Open>,
}

/// A leave that was given and not used up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    task: TaskId,
    token: LeaseToken,
    nano_usd_max: Option<u64>,
}

/// Sums over the calls of a run.
#[derive(Clone, Debug, Default)]
struct Sums {
    n_calls: u64,
    input_tokens: u64,
    output_tokens: u64,
    nano_usd: u64,
    n_unpriced: u64,
    n_unknown: u64,
    unknown_nano_usd: u64,
    /// Leaves being written down at this moment, and what they may cost.
    n_pending: u64,
    pending_nano_usd: u64,
    open: BTreeMap<(CallHash, ReservationId), Open>,
}

impl Sums {
    fn add(&mut self, call: CallHash, record: &CallRecord) {
        self.n_calls = self.n_calls.saturating_add(record.n_replies);
        self.input_tokens = self.input_tokens.saturating_add(record.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(record.output_tokens);
        self.nano_usd = self.nano_usd.saturating_add(record.nano_usd);
        self.n_unpriced = self.n_unpriced.saturating_add(record.n_unpriced);
        self.n_unknown = self.n_unknown.saturating_add(record.n_unknown);
        self.unknown_nano_usd = self.unknown_nano_usd.saturating_add(record.unknown_nano_usd);
        self.open.extend(
            record
                .open
                .iter()
                .map(|(id, open)| ((call, id.clone()), open.clone())),
        );
    }

    fn remove(&mut self, call: CallHash, record: &CallRecord) {
        self.n_calls = self.n_calls.saturating_sub(record.n_replies);
        self.input_tokens = self.input_tokens.saturating_sub(record.input_tokens);
        self.output_tokens = self.output_tokens.saturating_sub(record.output_tokens);
        self.nano_usd = self.nano_usd.saturating_sub(record.nano_usd);
        self.n_unpriced = self.n_unpriced.saturating_sub(record.n_unpriced);
        self.n_unknown = self.n_unknown.saturating_sub(record.n_unknown);
        self.unknown_nano_usd = self.unknown_nano_usd.saturating_sub(record.unknown_nano_usd);
        for id in record.open.keys() {
            self.open.remove(&(call, id.clone()));
        }
    }

    /// Dollars and calls that are spent or may be.
    fn committed(&self) -> (u64, u64) {
        let open_nano_usd = self.open.values().filter_map(|open| open.nano_usd_max);
        let nano_usd = open_nano_usd
            .chain([self.nano_usd, self.unknown_nano_usd, self.pending_nano_usd])
            .fold(0, u64::saturating_add);
        let n_open = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        let n_calls = [self.n_calls, self.n_unknown, self.n_pending, n_open]
            .into_iter()
            .fold(0, u64::saturating_add);
        (nano_usd, n_calls)
    }

    /// Sets aside one call, or says why there is no room for it.
    fn reserve(&mut self, budget: Budget, nano_usd_max: Option<u64>) -> Result<(), String> {
        let (nano_usd, n_calls) = self.committed();
        if let Some(calls_max) = budget.calls_max
            && n_calls >= calls_max
        {
            return Err(format!(
                "{n_calls} of {calls_max} calls are spent or reserved; raise budget.max_calls"
            ));
        }
        if let Some(limit) = budget.nano_usd_max {
            let Some(most) = nano_usd_max else {
                return Err(
                    "the budget is in dollars but the price of this service LLM is unknown; \
                            set input_usd_per_mtok and output_usd_per_mtok"
                        .to_owned(),
                );
            };
            if nano_usd.saturating_add(most) > limit {
                let dollars = |nano: u64| nano as f64 / 1e9;
                return Err(format!(
                    "{:.4} of {:.4} USD are spent or reserved and the next call may cost {:.4}; raise budget.max_usd",
                    dollars(nano_usd),
                    dollars(limit),
                    dollars(most)
                ));
            }
        }
        self.n_pending += 1;
        self.pending_nano_usd = self.pending_nano_usd.saturating_add(nano_usd_max.unwrap_or(0));
        Ok(())
    }

    fn unreserve(&mut self, nano_usd_max: Option<u64>) {
        self.n_pending = self.n_pending.saturating_sub(1);
        self.pending_nano_usd = self.pending_nano_usd.saturating_sub(nano_usd_max.unwrap_or(0));
    }
}

/// The calls of all runs.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Arc<dyn StateStore>,
    /// Missing until a run's records were counted.
    sums: Mutex<BTreeMap<RunId, Sums>>,
    /// Held by whoever counts records, and shared by whoever changes one, so that none changes while it is counted.
    counting: RwLock<()>,
}

impl Ledger {
    pub(crate) fn new(store: Arc<dyn StateStore>) -> Self {
        Self {
            store,
            sums: Mutex::default(),
            counting: RwLock::default(),
        }
    }

    /// Leave for a call of an attempt of `run`. Must run to its end once begun: what it sets aside it also frees.
    pub(crate) async fn begin(&self, run: &Run, begin: &BeginCall) -> Result<CallLeave, Error> {
        let BeginCall {
            attempt,
            call,
            nano_usd_max,
        } = begin;
        if run.current(attempt).is_none() {
            return Err(Error::StaleToken);
        }
        let _counted = self.counted(&run.id).await?;
        for _ in 0..CONFLICTS_MAX {
            let (found, mut record) = self.read(&run.id, call).await?;
            if let Some(reply) = record.reply {
                return Ok(CallLeave::Cached(reply));
            }
            let before = record.clone();
            let reserved = self.with(&run.id, |sums| sums.reserve(run.work.budget(), *nano_usd_max));
            if let Err(why) = reserved.ok_or(Error::Contended)? {
                return Ok(CallLeave::BudgetSpent(why));
            }
            write_off_lost(&mut record, run);
            let reservation = open(&mut record, attempt, *nano_usd_max);
            let claim = Compare::Modified(keys::claim(&run.id, &attempt.task), Revision(attempt.token.0));
            let written = self
                .write(&run.id, call, found.as_ref(), &record, Some(claim))
                .await;
            let unreserve = |sums: &mut Sums| sums.unreserve(*nano_usd_max);
            if self.settle((&run.id, *call), (&before, &record), written, unreserve)? {
                return Ok(CallLeave::Go(reservation));
            }
            let claim = self.store.get(&keys::claim(&run.id, &attempt.task)).await?;
            if claim.is_none_or(|claim| claim.modified != Revision(attempt.token.0)) {
                return Err(Error::StaleToken);
            }
        }
        Err(Error::Contended)
    }

    /// Records what came of a call. Must run to its end once begun. A stale token does not matter: what is paid for is kept.
    pub(crate) async fn end(&self, end: &EndCall) -> Result<(), Error> {
        let EndCall {
            attempt: AttemptId { run, .. },
            call,
            reservation,
            outcome,
        } = end;
        let _counted = self.counted(run).await?;
        for _ in 0..CONFLICTS_MAX {
            let (found, mut record) = self.read(run, call).await?;
            let before = record.clone();
            let Some(opened) = record.open.remove(reservation) else {
                return match outcome {
                    CallOutcome::Answered(reply) if record.reply == Some(reply.reply) => Ok(()),
                    _ => Err(Error::UnknownReservation {
                        reservation: reservation.clone(),
                    }),
                };
            };
            match outcome {
                CallOutcome::Answered(reply) => answered(&mut record, *reply),
                CallOutcome::NotBilled(_) => {}
                CallOutcome::Unknown(_) => write_off(&mut record, &opened),
            }
            let written = self.write(run, call, found.as_ref(), &record, None).await;
            if self.settle((run, *call), (&before, &record), written, |_| {})? {
                return Ok(());
            }
        }
        Err(Error::Contended)
    }

    /// What a run has cost so far. Open calls of attempts that are over count as of unknown outcome.
    pub(crate) async fn cost(&self, run: &Run) -> Result<Cost, Error> {
        let _counted = self.counted(&run.id).await?;
        let cost = self.with(&run.id, |sums| {
            let n_lost = sums.open.values().filter(|open| !is_current(run, open)).count();
            Cost {
                n_calls: sums.n_calls,
                input_tokens: sums.input_tokens,
                output_tokens: sums.output_tokens,
                nano_usd: sums.nano_usd,
                n_calls_unpriced: sums.n_unpriced,
                n_calls_unknown: sums
                    .n_unknown
                    .saturating_add(u64::try_from(n_lost).unwrap_or(u64::MAX)),
            }
        });
        cost.ok_or(Error::Contended)
    }

    fn sums(&self) -> MutexGuard<'_, BTreeMap<RunId, Sums>> {
        // Nothing panics while the lock is held, so a poisoned lock still guards whole sums.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a run's sums; `None` when a failed write made them unknown meanwhile.
    fn with<T>(&self, run: &RunId, change: impl FnOnce(&mut Sums) -> T) -> Option<T> {
        self.sums().get_mut(run).map(change)
    }

    /// Makes sure that a run's records are counted. While the guard is held nobody counts them anew.
    async fn counted(&self, run: &RunId) -> Result<RwLockReadGuard<'_, ()>, Error> {
        for _ in 0..CONFLICTS_MAX {
            let guard = self.counting.read().await;
            if self.sums().contains_key(run) {
                return Ok(guard);
            }
            drop(guard);
            self.count(run).await?;
        }
        Err(Error::Contended)
    }

    async fn count(&self, run: &RunId) -> Result<(), Error> {
        let _alone = self.counting.write().await;
        if self.sums().contains_key(run) {
            return Ok(());
        }
        let mut sums = Sums::default();
        for entry in range_all(&*self.store, &keys::calls(run)).await?.0 {
            if let Ok(call) = keys::last_part(&entry.key).parse::<Digest>() {
                sums.add(call, &decode(&entry)?);
            }
        }
        self.sums().insert(run.clone(), sums);
        Ok(())
    }

    async fn read(&self, run: &RunId, call: &CallHash) -> Result<(Option<Entry>, CallRecord), Error> {
        let found = self.store.get(&keys::call(run, call)).await?;
        let record = found.as_ref().map(decode).transpose()?.unwrap_or_default();
        Ok((found, record))
    }

    async fn write(
        &self,
        run: &RunId,
        call: &CallHash,
        found: Option<&Entry>,
        record: &CallRecord,
        claim: Option<Compare>,
    ) -> Result<Outcome, Error> {
        let key = keys::call(run, call);
        let unchanged = match found {
            Some(entry) => Compare::Modified(key.clone(), entry.modified),
            None => Compare::Absent(key.clone()),
        };
        let compares = claim.into_iter().chain([unchanged]).collect();
        Ok(self
            .store
            .txn(Txn {
                compares,
                ops: vec![encode(key, record)?],
            })
            .await?)
    }

    /// Brings the sums in line with what became of a write, and frees what was set aside for it, both at once. `false`
    /// when the write was refused and has to be tried again.
    fn settle(
        &self,
        (run, call): (&RunId, CallHash),
        (before, after): (&CallRecord, &CallRecord),
        written: Result<Outcome, Error>,
        unreserve: impl FnOnce(&mut Sums),
    ) -> Result<bool, Error> {
        match written {
            Ok(outcome) => {
                let is_written = outcome != Outcome::Conflict;
                self.with(run, |sums| {
                    unreserve(sums);
                    if is_written {
                        sums.remove(call, before);
                        sums.add(call, after);
                    }
                });
                Ok(is_written)
            }
            Err(error) => {
                // Nobody knows what was written: the records are counted anew before the next call.
                self.sums().remove(run);
                Err(error)
            }
        }
    }
}

fn is_current(run: &Run, open: &Open) -> bool {
    let lease = run.tasks.get(&open.task).and_then(|task| task.lease.as_ref());
    lease.is_some_and(|lease| lease.token == open.token)
}

fn open(record: &mut CallRecord, attempt: &AttemptId, nano_usd_max: Option<u64>) -> ReservationId {
    record.n_begun = record.n_begun.saturating_add(1);
    let text = format!("{}-{}", attempt.token.0, record.n_begun);
    let reservation = ReservationId::new(&text).expect("digits and a hyphen, at most 41 characters");
    let opened = Open {
        task: attempt.task.clone(),
        token: attempt.token,
        nano_usd_max,
    };
    record.open.insert(reservation.clone(), opened);
    while record.open.len() > OPEN_MAX {
        if let Some((_, oldest)) = record.open.pop_first() {
            write_off(record, &oldest);
        }
    }
    reservation
}

fn answered(record: &mut CallRecord, reply: CallReply) {
    record.reply = record.reply.or(Some(reply.reply));
    record.n_replies = record.n_replies.saturating_add(1);
    record.input_tokens = record.input_tokens.saturating_add(reply.input_tokens);
    record.output_tokens = record.output_tokens.saturating_add(reply.output_tokens);
    match reply.nano_usd {
        Some(nano_usd) => record.nano_usd = record.nano_usd.saturating_add(nano_usd),
        None => record.n_unpriced = record.n_unpriced.saturating_add(1),
    }
}

/// Counts a call whose outcome nobody will ever report.
fn write_off(record: &mut CallRecord, open: &Open) {
    record.n_unknown = record.n_unknown.saturating_add(1);
    record.unknown_nano_usd = record
        .unknown_nano_usd
        .saturating_add(open.nano_usd_max.unwrap_or(0));
}

fn write_off_lost(record: &mut CallRecord, run: &Run) {
    let (current, lost) = std::mem::take(&mut record.open)
        .into_iter()
        .partition(|(_, open)| is_current(run, open));
    record.open = current;
    let lost: BTreeMap<ReservationId, Open> = lost;
    for open in lost.values() {
        write_off(record, open);
    }
}
