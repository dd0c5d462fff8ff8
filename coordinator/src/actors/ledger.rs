//! What calls to service LLMs cost, and whether another may be made.
//!
//! Invariant: a call's record is durable before leave is given, and its reply before it counts.
//!
//! Each call has a record of its own, so that calls are begun and ended side by side; the sums are kept in memory and
//! counted anew from the records after a restart.

mod record;
mod sums;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{AttemptId, CallHash, ReservationId, RunId};
use llamaduo_proto::run::Cost;
use llamaduo_proto::session::{BeginCall, CallLeave, EndCall};
use tokio::sync::{RwLock, RwLockReadGuard};

use self::record::CallRecord;
use self::sums::Sums;
use super::commit::{self, decode, encode};
use crate::machine::Run;
use crate::store::{self, Compare, Entry, Outcome, Revision, StateStore, Txn, keys, range_all};

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

    /// Leave for a call of an attempt of `run`; the same leave when it is asked for again under the same reservation.
    /// Must run to its end once begun: what it sets aside it also frees.
    pub(crate) async fn begin(&self, run: &Run, begin: &BeginCall) -> Result<CallLeave, Error> {
        let BeginCall {
            attempt,
            call,
            nano_usd_max,
            reservation,
        } = begin;
        if run.current(attempt).is_none() {
            return Err(Error::StaleToken);
        }
        let _counted = self.counted(&run.id).await?;
        for _ in 0..CONFLICTS_MAX {
            let (found, mut record) = self.read(&run.id, call).await?;
            let before = record.clone();
            if let Some(reply) = record.reply {
                // Leave was given and never heard of, so nothing was called under it.
                if record.open.remove(reservation).is_some() {
                    let written = self.write(&run.id, call, found.as_ref(), &record, None).await;
                    if !self.settle((&run.id, *call), (&before, &record), written, |_| {})? {
                        continue;
                    }
                }
                return Ok(CallLeave::Cached(reply));
            }
            if record.has_begun(reservation) {
                return Ok(CallLeave::Go(reservation.clone()));
            }
            let reserved = self.with(&run.id, |sums| sums.reserve(run, *nano_usd_max));
            if let Err(refused) = reserved.ok_or(Error::Contended)? {
                return Ok(refused);
            }
            record.begin(begin, run);
            let claim = Compare::Modified(keys::claim(&run.id, &attempt.task), Revision(attempt.token.0));
            let written = self
                .write(&run.id, call, found.as_ref(), &record, Some(claim))
                .await;
            let unreserve = |sums: &mut Sums| sums.unreserve(*nano_usd_max);
            if self.settle((&run.id, *call), (&before, &record), written, unreserve)? {
                return Ok(CallLeave::Go(reservation.clone()));
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
            if !record.end(reservation, outcome) {
                return Err(Error::UnknownReservation {
                    reservation: reservation.clone(),
                });
            }
            if record == before {
                return Ok(());
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
        let cost = self.with(&run.id, |sums| sums.cost(run));
        cost.ok_or(Error::Contended)
    }

    /// Forgets the sums of runs that are not to be kept, once there are more than `most`; who asks counts them anew.
    pub(crate) async fn forget(&self, most: usize, keep: impl Fn(&RunId) -> bool) {
        if self.sums().len() > most {
            let _alone = self.counting.write().await;
            self.sums().retain(|run, _| keep(run));
        }
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
            Err(error @ Error::Commit(commit::Error::Store(store::Error::Unavailable { .. }))) => {
                // Nothing was written.
                self.with(run, unreserve);
                Err(error)
            }
            Err(error) => {
                // Nobody knows what was written: the records are counted anew before the next call.
                self.sums().remove(run);
                Err(error)
            }
        }
    }
}
