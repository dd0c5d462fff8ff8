//! One call's record: the leaves that were given for it, and what came of them.
//!
//! Invariant: a leave is open, lost or ended, and is counted once whichever it is; a lost one that is answered after
//! all stops counting as unknown.

use std::collections::BTreeMap;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{LeaseToken, ReservationId, TaskId};
use llamaduo_proto::session::{BeginCall, CallOutcome, CallReply};
use serde::{Deserialize, Serialize};

use crate::machine::Run;

/// Reservations that one call may have open at once: workers with the same prompt, and those that vanished. Beyond it
/// the oldest is written off as a call of unknown outcome.
const OPEN_MAX: usize = 16;
/// Written-off reservations that are remembered, so that an answer that comes late finds its own. The oldest go first.
const LOST_MAX: usize = 16;

/// What the store holds of a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct CallRecord {
    /// The first reply; it is what every repetition gets.
    pub(super) reply: Option<Digest>,
    pub(super) n_replies: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) nano_usd: u64,
    pub(super) n_unpriced: u64,
    pub(super) n_unknown: u64,
    /// Most that the calls of unknown outcome, and the answered ones of unknown cost, may have cost.
    pub(super) unknown_nano_usd: u64,
    /// Leaves given so far; numbers the next one.
    pub(super) n_begun: u64,
    pub(super) open: BTreeMap<ReservationId, Open>,
    /// Written off, and so counted as of unknown outcome, but not forgotten.
    #[serde(default)]
    pub(super) lost: BTreeMap<ReservationId, Open>,
}

/// A leave that was given and not used up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) task: TaskId,
    pub(super) token: LeaseToken,
    pub(super) nano_usd_max: Option<u64>,
    /// Position among the call's leaves, from 1.
    #[serde(default)]
    pub(super) number: u64,
}

impl Open {
    /// Whether the attempt it was given to still runs.
    pub(super) fn is_current(&self, run: &Run) -> bool {
        let lease = run.tasks.get(&self.task).and_then(|task| task.lease.as_ref());
        lease.is_some_and(|lease| lease.token == self.token)
    }
}

impl CallRecord {
    /// Whether leave was given under this name and nobody has told what came of it.
    pub(super) fn has_begun(&self, reservation: &ReservationId) -> bool {
        self.open.contains_key(reservation) || self.lost.contains_key(reservation)
    }

    /// Gives leave. Leaves of attempts that are over are written off first.
    pub(super) fn begin(&mut self, begin: &BeginCall, run: &Run) {
        let over = self.open.iter().filter(|(_, open)| !open.is_current(run));
        for id in over.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.write_off(&id);
        }
        self.n_begun = self.n_begun.saturating_add(1);
        let open = Open {
            task: begin.attempt.task.clone(),
            token: begin.attempt.token,
            nano_usd_max: begin.nano_usd_max,
            number: self.n_begun,
        };
        self.open.insert(begin.reservation.clone(), open);
        while self.open.len() > OPEN_MAX
            && let Some(oldest) = oldest(&self.open)
        {
            self.write_off(&oldest);
        }
    }

    /// Notes what came of a call; `false` when there is no such leave. A repetition changes nothing.
    pub(super) fn end(&mut self, reservation: &ReservationId, outcome: &CallOutcome) -> bool {
        let opened = match self.open.remove(reservation) {
            Some(opened) => Some(opened),
            None => self.find_again(reservation),
        };
        match (opened, outcome) {
            (Some(opened), CallOutcome::Answered(reply)) => self.answered(*reply, &opened),
            (Some(_), CallOutcome::NotBilled(_)) => {}
            (Some(opened), CallOutcome::Unknown(_)) => self.count_unknown(&opened),
            (None, CallOutcome::Answered(reply)) => return self.reply == Some(reply.reply),
            // Nothing was to be kept, so nothing is lost.
            (None, CallOutcome::NotBilled(_) | CallOutcome::Unknown(_)) => {}
        }
        true
    }

    fn find_again(&mut self, reservation: &ReservationId) -> Option<Open> {
        let open = self.lost.remove(reservation)?;
        self.n_unknown = self.n_unknown.saturating_sub(1);
        let most = open.nano_usd_max.unwrap_or(0);
        self.unknown_nano_usd = self.unknown_nano_usd.saturating_sub(most);
        Some(open)
    }

    fn answered(&mut self, reply: CallReply, opened: &Open) {
        self.reply = self.reply.or(Some(reply.reply));
        self.n_replies = self.n_replies.saturating_add(1);
        self.input_tokens = self.input_tokens.saturating_add(reply.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(reply.output_tokens);
        match reply.nano_usd {
            Some(nano_usd) => self.nano_usd = self.nano_usd.saturating_add(nano_usd),
            None => {
                // A service that does not say what it used may have used all it was allowed.
                self.n_unpriced = self.n_unpriced.saturating_add(1);
                let most = opened.nano_usd_max.unwrap_or(0);
                self.unknown_nano_usd = self.unknown_nano_usd.saturating_add(most);
            }
        }
    }

    fn count_unknown(&mut self, open: &Open) {
        self.n_unknown = self.n_unknown.saturating_add(1);
        let most = open.nano_usd_max.unwrap_or(0);
        self.unknown_nano_usd = self.unknown_nano_usd.saturating_add(most);
    }

    /// Counts a call whose outcome hardly anybody will report any more.
    fn write_off(&mut self, reservation: &ReservationId) {
        let Some(open) = self.open.remove(reservation) else {
            return;
        };
        self.count_unknown(&open);
        self.lost.insert(reservation.clone(), open);
        while self.lost.len() > LOST_MAX
            && let Some(oldest) = oldest(&self.lost)
        {
            self.lost.remove(&oldest);
        }
    }
}

/// The leave that was given first.
fn oldest(leaves: &BTreeMap<ReservationId, Open>) -> Option<ReservationId> {
    let first = leaves.iter().min_by_key(|(_, open)| open.number);
    first.map(|(id, _)| id.clone())
}
