//! One live run: its events one after another, each committed before anything follows from it.
//!
//! Invariant: the run in memory is what the store holds. After a conflict or a write of unknown outcome it is read back
//! before the next step, which waits for a store that cannot be read; nothing is ever written blindly again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::event::RunEvent;
use llamaduo_proto::ids::LeaseToken;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoints::{self, Superseded};
use super::{Shared, commit};
use crate::aggregate;
use crate::error::in_words;
use crate::machine::{Action, Aggregate, Event, Refusal, Run, step};
use crate::store::{self, Outcome, Revision};

/// Events waiting for a run: a few per lease of a large cluster. Beyond it senders wait.
const MAILBOX_LEN: usize = 256;
/// Conflicts in a row before a step is given up: each means that another writer won, and there is hardly ever one.
const CONFLICTS_MAX: u32 = 5;

/// First and longest rest before an aggregate is computed again whose outcome the store did not take.
const REST_FIRST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(8);

/// Why an event had no effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The machine refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not take it, or nobody knows whether it did. Asking again is safe: every event is idempotent.
    #[error("the run's state cannot be written now; try again")]
    Unavailable,
    /// There is no such run.
    #[error("there is no such run")]
    UnknownRun,
}

/// What a run's actor is asked.
#[derive(Debug)]
enum Message {
    /// To have an event happen.
    Step(Box<Event>, oneshot::Sender<Result<Arc<Run>, StepError>>),
    /// How the run stands after everything that was committed so far.
    Read(oneshot::Sender<Arc<Run>>),
}

/// A live run's mailbox and its newest state.
#[derive(Clone, Debug)]
pub(crate) struct RunHandle {
    mailbox: mpsc::Sender<Message>,
    snapshots: watch::Receiver<Arc<Run>>,
}

impl RunHandle {
    /// Has `event` committed, and gives the run after it. `None` when the actor is gone.
    pub(crate) async fn step(&self, event: Event) -> Option<Result<Arc<Run>, StepError>> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(Message::Step(Box::new(event), reply))
            .await
            .ok()?;
        answer.await.ok()
    }

    /// The run after everything that watchers of the store may have seen. `None` when the actor is gone.
    pub(crate) async fn read(&self) -> Option<Arc<Run>> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(Message::Read(reply)).await.ok()?;
        answer.await.ok()
    }

    /// The run as last published: a moment older than the store, perhaps.
    pub(crate) fn snapshot(&self) -> Arc<Run> {
        Arc::clone(&self.snapshots.borrow())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.mailbox.is_closed()
    }
}

/// The actor.
pub(crate) struct RunActor {
    shared: Arc<Shared>,
    run: Arc<Run>,
    head: Revision,
    /// The store may hold another than `run`.
    must_reload: bool,
    /// Times in a row that it could not be read back.
    n_unread: u32,
    snapshots: watch::Sender<Arc<Run>>,
    mailbox: mpsc::Receiver<Message>,
    aggregates: JoinSet<Event>,
    computing: BTreeSet<Aggregate>,
    superseded: Superseded,
    /// Removals of old checkpoints under way.
    removals: JoinSet<()>,
    /// What aggregates came to and the store did not take, in a row.
    n_untaken: u32,
    /// None is computed before this: its outcome could not be written down.
    computes_after: Instant,
    stop: CancellationToken,
}

impl RunActor {
    /// An actor for a run that was read from the store with this revision of its head.
    pub(crate) fn new(
        shared: Arc<Shared>,
        run: Run,
        head: Revision,
        stop: CancellationToken,
    ) -> (Self, RunHandle) {
        let run = Arc::new(run);
        let (mailbox_sender, mailbox) = mpsc::channel(MAILBOX_LEN);
        let (snapshots, snapshots_receiver) = watch::channel(Arc::clone(&run));
        let (aggregates, computing) = (JoinSet::new(), BTreeSet::new());
        let actor = Self {
            shared,
            run,
            head,
            must_reload: false,
            n_unread: 0,
            snapshots,
            mailbox,
            aggregates,
            computing,
            superseded: Superseded::default(),
            removals: JoinSet::new(),
            n_untaken: 0,
            computes_after: Instant::now(),
            stop,
        };
        (
            actor,
            RunHandle {
                mailbox: mailbox_sender,
                snapshots: snapshots_receiver,
            },
        )
    }

    /// Runs until nobody holds a handle or the coordinator stops.
    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.shared.timing.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                message = self.mailbox.recv() => {
                    let Some(message) = message else { break };
                    self.answer(message).await;
                }
                Some(computed) = self.aggregates.join_next() => self.take_aggregate(computed).await,
                _ = ticks.tick(), if !self.run.has_ended() => {
                    // An unwritten tick is made up for by the next.
                    let _ = self.take(Event::Tick).await;
                    self.remove_superseded();
                }
                Some(_) = self.removals.join_next() => {}
            }
        }
        self.aggregates.shutdown().await;
        self.remove_superseded();
        while self.removals.join_next().await.is_some() {}
    }

    async fn answer(&mut self, message: Message) {
        // Who stopped waiting asks again, so that nothing is lost when a reply is.
        match message {
            Message::Step(event, reply) => {
                let outcome = self.take(*event).await;
                let _ = reply.send(outcome);
            }
            Message::Read(reply) => {
                let _ = reply.send(Arc::clone(&self.run));
            }
        }
    }

    async fn take_aggregate(&mut self, computed: Result<Event, tokio::task::JoinError>) {
        match computed {
            Ok(event) => {
                let aggregate = match &event {
                    Event::AggregateFailed { aggregate, .. } => Some(*aggregate),
                    Event::Aggregated(aggregated) => Some(aggregated.aggregate()),
                    _ => None,
                };
                self.computing.retain(|computing| Some(*computing) != aggregate);
                // If it is not committed, a later tick asks for the aggregate again.
                if let Err(StepError::Unavailable) = self.take(event).await {
                    let rest = REST_FIRST
                        .saturating_mul(1 << self.n_untaken.min(16))
                        .min(REST_MAX);
                    self.n_untaken = self.n_untaken.saturating_add(1);
                    self.computes_after = Instant::now() + rest;
                } else {
                    self.n_untaken = 0;
                }
            }
            Err(error) => {
                tracing::error!(run_id = %self.run.id, %error, "aggregate task failed");
                self.computing.clear();
            }
        }
    }

    /// Steps, commits, acts.
    async fn take(&mut self, event: Event) -> Result<Arc<Run>, StepError> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let actions = self.commit(event).await?;
            if actions.contains(&Action::StepAgain) {
                next = Some(Event::Tick);
            }
            self.perform(actions);
        }
        Ok(Arc::clone(&self.run))
    }

    async fn commit(&mut self, event: Event) -> Result<Vec<Action>, StepError> {
        for _ in 0..CONFLICTS_MAX {
            if self.must_reload {
                self.reload().await?;
            }
            let (mut after, actions) = step(&self.run, event.clone(), self.shared.now())?;
            let written = self.write(&after).await;
            match written {
                Ok(Outcome::Committed(revision)) => {
                    if revision != self.head {
                        after.stamp(LeaseToken(revision.0));
                        self.head = revision;
                    }
                    self.publish(after);
                    return Ok(actions);
                }
                Ok(Outcome::Conflict) => self.must_reload = true,
                Err(commit::Error::Store(store::Error::Unavailable { reason })) => {
                    // Not written for certain, and the store has said why once already.
                    tracing::debug!(run_id = %self.run.id, reason, "run state not written");
                    return Err(StepError::Unavailable);
                }
                Err(error) => {
                    let error = in_words(&error);
                    tracing::error!(run_id = %self.run.id, error, "run state write failed");
                    self.must_reload = true;
                    self.reload().await?;
                    return Err(StepError::Unavailable);
                }
            }
        }
        Err(StepError::Unavailable)
    }

    /// Commits `after`; nothing to write counts as committed at the present revision.
    async fn write(&self, after: &Run) -> Result<Outcome, commit::Error> {
        let txn = commit::txn_of(Some((&self.run, self.head)), after)?;
        if txn.ops.is_empty() {
            return Ok(Outcome::Committed(self.head));
        }
        Ok(self.shared.store.txn(txn).await?)
    }

    /// Reads the run back, if the store can be read now.
    async fn reload(&mut self) -> Result<(), StepError> {
        let (shared, id) = (&self.shared, &self.run.id);
        match commit::load(&*shared.store, id, shared.timing.rules, shared.now()).await {
            Ok(Some((mut run, head))) => {
                // Not in the store, and still true: this process waits for the same thing.
                run.aggregate_not_before = self.run.aggregate_not_before;
                self.head = head;
                (self.must_reload, self.n_unread) = (false, 0);
                self.publish(run);
                Ok(())
            }
            Ok(None) => Err(StepError::UnknownRun),
            Err(error) => {
                // Tried at every tick, told ever less often.
                self.n_unread = self.n_unread.saturating_add(1);
                if self.n_unread.is_power_of_two() {
                    let error = in_words(&error);
                    tracing::warn!(run_id = %id, error, "run cannot be read back yet");
                }
                Err(StepError::Unavailable)
            }
        }
    }

    fn remove_superseded(&mut self) {
        let due = self.superseded.due(&self.run);
        if !due.is_empty() {
            let (shared, run) = (Arc::clone(&self.shared), self.run.id.clone());
            self.removals.spawn(checkpoints::remove(shared, run, due));
        }
    }

    fn publish(&mut self, run: Run) {
        self.superseded.note(&self.run, &run);
        self.run = Arc::new(run);
        self.snapshots.send_replace(Arc::clone(&self.run));
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Place => self.shared.place.notify_one(),
                Action::CancelAttempt {
                    worker,
                    attempt,
                    reason,
                } => {
                    self.shared.cancels.send(worker, attempt, reason);
                }
                Action::Aggregate(aggregate) => self.compute(aggregate),
                Action::Progress(kind) => {
                    let (run, time_ms) = (self.run.id.clone(), self.shared.now().time_ms);
                    // Fails when nobody watches, which is no failure.
                    let _ = self.shared.progress.send(RunEvent {
                        run,
                        seq: 0,
                        time_ms,
                        kind,
                    });
                }
                Action::StepAgain => {}
            }
        }
    }

    fn compute(&mut self, aggregate: Aggregate) {
        if Instant::now() >= self.computes_after && self.computing.insert(aggregate) {
            let (shared, run) = (Arc::clone(&self.shared), Arc::clone(&self.run));
            self.aggregates
                .spawn(async move { aggregate::compute(&shared, run, aggregate).await });
        }
    }
}
