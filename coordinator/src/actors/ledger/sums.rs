//! The sums over the calls of a run, and what the budget leaves.
//!
//! Invariant: what was spent, what is reserved and what may have been spent unseen never exceed the budget together.

use std::collections::BTreeMap;

use llamaduo_proto::ids::{CallHash, ReservationId};
use llamaduo_proto::run::Cost;
use llamaduo_proto::session::CallLeave;

use super::record::{CallRecord, Open};
use crate::machine::Run;

/// Sums over the calls of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
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

/// A part of the budget: what is gone for good, and what calls under way may still give back.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    spent: u64,
    under_way: u64,
}

impl Used {
    /// Leave for `more`, or why not.
    fn admit(self, more: u64, limit: u64, say: impl Fn(u64) -> String) -> Result<(), CallLeave> {
        let all = self.spent.saturating_add(self.under_way);
        if all.saturating_add(more) <= limit {
            Ok(())
        } else if self.spent.saturating_add(more) <= limit {
            Err(CallLeave::Wait(say(all)))
        } else {
            Err(CallLeave::BudgetSpent(say(all)))
        }
    }
}

impl Sums {
    pub(super) fn add(&mut self, call: CallHash, record: &CallRecord) {
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

    pub(super) fn remove(&mut self, call: CallHash, record: &CallRecord) {
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

    /// Dollars and calls that are spent or may be. An attempt that is over gives nothing back.
    fn used(&self, run: &Run) -> (Used, Used) {
        let mut nano_usd = Used {
            spent: self.nano_usd.saturating_add(self.unknown_nano_usd),
            under_way: self.pending_nano_usd,
        };
        let mut calls = Used {
            spent: self.n_calls.saturating_add(self.n_unknown),
            under_way: self.n_pending,
        };
        for open in self.open.values() {
            let most = open.nano_usd_max.unwrap_or(0);
            if open.is_current(run) {
                nano_usd.under_way = nano_usd.under_way.saturating_add(most);
                calls.under_way = calls.under_way.saturating_add(1);
            } else {
                nano_usd.spent = nano_usd.spent.saturating_add(most);
                calls.spent = calls.spent.saturating_add(1);
            }
        }
        (nano_usd, calls)
    }

    /// Sets aside one call, or says why there is no room for it: for good, or until calls under way have ended.
    pub(super) fn reserve(&mut self, run: &Run, nano_usd_max: Option<u64>) -> Result<(), CallLeave> {
        let (nano_usd, calls) = self.used(run);
        let budget = run.work.budget();
        if let Some(limit) = budget.calls_max {
            calls.admit(1, limit, |n_calls| {
                format!("{n_calls} of {limit} calls are spent or reserved; raise budget.max_calls")
            })?;
        }
        if let Some(limit) = budget.nano_usd_max {
            let most = nano_usd_max.ok_or_else(|| {
                CallLeave::BudgetSpent(
                    "the budget is in dollars but the price of this service LLM is unknown; \
                     set input_usd_per_mtok and output_usd_per_mtok"
                        .to_owned(),
                )
            })?;
            let dollars = |nano: u64| nano as f64 / 1e9;
            nano_usd.admit(most, limit, |nano_usd| {
                format!(
                    "{:.4} of {:.4} USD are spent or reserved and the next call may cost {:.4}; raise budget.max_usd",
                    dollars(nano_usd),
                    dollars(limit),
                    dollars(most)
                )
            })?;
        }
        self.n_pending = self.n_pending.saturating_add(1);
        self.pending_nano_usd = self.pending_nano_usd.saturating_add(nano_usd_max.unwrap_or(0));
        Ok(())
    }

    /// Gives back what [`Self::reserve`] set aside.
    pub(super) fn unreserve(&mut self, nano_usd_max: Option<u64>) {
        self.n_pending = self.n_pending.saturating_sub(1);
        self.pending_nano_usd = self.pending_nano_usd.saturating_sub(nano_usd_max.unwrap_or(0));
    }

    /// What the run has cost so far. Open calls of attempts that are over count as of unknown outcome.
    pub(super) fn cost(&self, run: &Run) -> Cost {
        let n_lost = self.open.values().filter(|open| !open.is_current(run)).count();
        Cost {
            n_calls: self.n_calls,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            nano_usd: self.nano_usd,
            n_calls_unpriced: self.n_unpriced,
            n_calls_unknown: self
                .n_unknown
                .saturating_add(u64::try_from(n_lost).unwrap_or(u64::MAX)),
        }
    }
}
