//! Which workers there are, and which of them gets what.
//!
//! Invariant: the table of sessions decides only where messages go; who holds which lease is read from the runs, so
//! that losing this table loses nothing.

mod admission;
mod cancels;
mod names;
mod questions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Incarnation, WorkerId};
use llamaduo_proto::session::{AttemptFailure, Credits, Hello, ToWorker, Welcome};
use llamaduo_proto::task::FailureKind;
use llamaduo_proto::view;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use admission::AttachError;
use admission::{Admission, Process};
pub(crate) use cancels::{Cancelled, Cancels};
pub(crate) use questions::holds;
use questions::{assignment_of, attempts_of, is_claimed, ready_tasks, worker_view};

use super::run::StepError;
use super::runs::Runs;
use crate::machine::{self, Event, ReadyTask, Run, WorkerView, place};

/// Messages waiting for the scheduler: a few per session of a large cluster. Beyond it senders wait.
const MAILBOX_LEN: usize = 1_024;
/// Messages waiting for one worker: far more than its slots. A worker that lets them pile up has its session ended.
pub(crate) const OUTBOX_LEN: usize = 256;
/// Longest pause between two rounds of placement.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(1);
/// First and longest rest after a claim that the store did not take.
const REST_FIRST: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(8);

/// What the scheduler is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A worker began a session.
    Attach {
        hello: Hello,
        outbox: mpsc::Sender<ToWorker>,
        close: CancellationToken,
        reply: oneshot::Sender<Result<SessionId, AttachError>>,
    },
    /// A worker's slots changed.
    Credits { session: SessionId, credits: Credits },
    /// A worker gave a sign of life.
    Heard { session: SessionId },
    /// A worker said goodbye.
    Left { session: SessionId },
    /// A session's stream ended, which says nothing about the worker.
    Detached { session: SessionId },
    /// Somebody asks a worker to finish. Answers whether it has a session.
    Drain {
        worker: WorkerId,
        reply: oneshot::Sender<bool>,
    },
    /// Somebody asks who is there.
    List {
        reply: oneshot::Sender<Vec<view::WorkerView>>,
    },
}

/// One session of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    number: u64,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    device: String,
    credits: Credits,
    is_draining: bool,
    outbox: mpsc::Sender<ToWorker>,
    close: CancellationToken,
}

/// The actor.
#[derive(Debug)]
pub(crate) struct Scheduler {
    runs: Arc<Runs>,
    mailbox: mpsc::Receiver<Message>,
    cancels: Cancelled,
    sessions: BTreeMap<WorkerId, Session>,
    admission: Admission,
    n_sessions: u64,
    /// Claims that the store did not take, in a row.
    n_untaken: u32,
    /// Nothing is claimed before this.
    claims_after: Instant,
}

impl Scheduler {
    pub(crate) fn new(runs: Arc<Runs>, cancels: Cancelled) -> (Self, mpsc::Sender<Message>) {
        let (sender, mailbox) = mpsc::channel(MAILBOX_LEN);
        let admission = Admission::new(runs.shared().timing.lease);
        (
            Self {
                runs,
                mailbox,
                cancels,
                sessions: BTreeMap::new(),
                admission,
                n_sessions: 0,
                n_untaken: 0,
                claims_after: Instant::now(),
            },
            sender,
        )
    }

    /// Runs until the coordinator stops.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let shared = Arc::clone(self.runs.shared());
        self.remember_workers().await;
        let mut next_round = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(message) = self.mailbox.recv() => {
                    if self.take(message).await {
                        next_round = Instant::now();
                    }
                }
                Some((worker, attempt, reason)) = self.cancels.recv() => {
                    self.tell(&worker, ToWorker::Cancel { attempt, reason });
                }
                () = shared.place.notified() => next_round = Instant::now(),
                () = tokio::time::sleep_until(next_round) => next_round = self.round().await,
            }
        }
    }

    /// Handles a message; says whether something may be placed now.
    async fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Attach {
                hello,
                outbox,
                close,
                reply,
            } => {
                let attached = self.attach(hello, outbox, close).await;
                let is_new = attached.is_ok();
                // A stream that ended meanwhile shows as soon as it is written to.
                let _ = reply.send(attached);
                is_new
            }
            Message::Credits { session, credits } => self.with(&session, |session| session.credits = credits),
            Message::Heard { session } => {
                if self.with(&session, |_| {}) {
                    self.admission.heard(&session.worker, Instant::now());
                }
                false
            }
            Message::Left { session } => {
                if !self.end(&session) {
                    return false;
                }
                let worker = session.worker;
                self.admission.left(&worker);
                self.free_name(&worker).await;
                self.everywhere(|_| Event::Left {
                    worker: worker.clone(),
                })
                .await;
                true
            }
            Message::Detached { session } => {
                self.end(&session);
                false
            }
            Message::Drain { worker, reply } => {
                let is_there = self
                    .sessions
                    .get_mut(&worker)
                    .map(|session| session.is_draining = true)
                    .is_some();
                self.tell(&worker, ToWorker::Drain);
                let _ = reply.send(is_there);
                false
            }
            Message::List { reply } => {
                let _ = reply.send(self.list());
                false
            }
        }
    }

    async fn attach(
        &mut self,
        hello: Hello,
        outbox: mpsc::Sender<ToWorker>,
        close: CancellationToken,
    ) -> Result<SessionId, AttachError> {
        let Hello {
            worker,
            incarnation,
            device,
            credits,
            running,
            directory,
        } = hello;
        let process = Process {
            incarnation: incarnation.clone(),
            directory,
        };
        if self.admission.admit(&worker, &process, Instant::now())? {
            self.keep_name(&worker, &process).await;
        }
        self.n_sessions += 1;
        let id = SessionId {
            worker: worker.clone(),
            incarnation: incarnation.clone(),
            number: self.n_sessions,
        };
        let session = Session {
            id: id.clone(),
            device,
            credits,
            is_draining: false,
            outbox,
            close,
        };
        if let Some(old) = self.sessions.remove(&worker) {
            old.close.cancel();
        }
        let runs = self.everywhere(|run| {
            let running = attempts_of(run, &running);
            Event::Attached {
                worker: worker.clone(),
                incarnation: incarnation.clone(),
                running,
            }
        });
        let runs = runs.await;
        let is_held = |attempt| runs.iter().any(|run| holds(run, attempt, &worker));
        let revoked = running
            .iter()
            .map(|running| &running.attempt)
            .filter(|attempt| !is_held(attempt));
        let timing = &self.runs.shared().timing;
        let welcome = Welcome {
            lease: timing.lease,
            heartbeat: timing.heartbeat,
            revoked: revoked.cloned().collect(),
        };
        tracing::info!(worker_id = %worker, device = %session.device, "worker attached");
        // The outbox is new and empty, so there is room unless the stream is gone already.
        let _ = session.outbox.try_send(ToWorker::Welcome(welcome));
        self.sessions.insert(worker, session);
        Ok(id)
    }

    /// Has an event happen to every live run, and gives the runs after it.
    async fn everywhere(&self, event: impl Fn(&Run) -> Event) -> Vec<Arc<Run>> {
        let mut after = Vec::new();
        for run in self.runs.snapshots() {
            match self.runs.step(&run.id, event(&run)).await {
                Ok(run) => after.push(run),
                // Its leases run out by themselves.
                Err(error) => {
                    tracing::warn!(run_id = %run.id, %error, "run did not take a change of workers")
                }
            }
        }
        after
    }

    fn with(&mut self, id: &SessionId, change: impl FnOnce(&mut Session)) -> bool {
        let session = self
            .sessions
            .get_mut(&id.worker)
            .filter(|session| session.id == *id);
        session.map(change).is_some()
    }

    /// Forgets a session, if it is still the worker's present one. The worker keeps its name.
    fn end(&mut self, id: &SessionId) -> bool {
        if self
            .sessions
            .get(&id.worker)
            .is_none_or(|session| session.id != *id)
        {
            return false;
        }
        self.sessions.remove(&id.worker);
        tracing::info!(worker_id = %id.worker, "session ended");
        true
    }

    /// Sends to a worker without waiting; a worker that does not read has its session ended.
    fn tell(&mut self, worker: &WorkerId, message: ToWorker) -> bool {
        let Some(session) = self.sessions.get(worker) else {
            return false;
        };
        if session.outbox.try_send(message).is_ok() {
            return true;
        }
        session.close.cancel();
        self.sessions.remove(worker);
        false
    }

    fn list(&self) -> Vec<view::WorkerView> {
        let runs = self.runs.snapshots();
        let running = |id: &SessionId| {
            let held = |run: &Arc<Run>| {
                let by_worker = run.tasks.iter().filter(|(_, task)| {
                    task.lease
                        .as_ref()
                        .is_some_and(|lease| lease.claim.worker == id.worker)
                });
                by_worker
                    .map(|(task, _)| (run.id.clone(), task.clone()))
                    .collect::<Vec<_>>()
            };
            runs.iter().flat_map(held).collect()
        };
        let views = self.sessions.values().map(|session| view::WorkerView {
            worker: session.id.worker.clone(),
            device: session.device.clone(),
            running: running(&session.id),
            draining: session.is_draining,
        });
        views.collect()
    }

    /// Places what can be placed and says when to look again.
    async fn round(&mut self) -> Instant {
        self.free_names().await;
        if Instant::now() < self.claims_after {
            return self.claims_after;
        }
        let now = self.runs.shared().now().clock;
        let runs = self.runs.snapshots();
        // Who was not heard of for a lease's time may be gone; it gets nothing new until it speaks.
        let heard_by = Instant::now();
        let awake = self
            .sessions
            .values()
            .filter(|session| self.admission.is_awake(&session.id.worker, heard_by));
        let workers: Vec<WorkerView> = awake
            .filter(|session| !session.is_draining)
            .map(|session| worker_view(&session.id, session.credits, &runs))
            .collect();
        let ready: Vec<ReadyTask> = runs
            .iter()
            .filter(|run| run.is_open())
            .flat_map(|run| ready_tasks(run))
            .collect();
        for assignment in place(&ready, &workers, now) {
            if self.assign(assignment).await {
                self.n_untaken = 0;
                continue;
            }
            // What the store does not take for one it does not take for the others.
            let rest = REST_FIRST
                .saturating_mul(1 << self.n_untaken.min(16))
                .min(REST_MAX);
            self.n_untaken = self.n_untaken.saturating_add(1);
            self.claims_after = Instant::now() + rest;
            return self.claims_after;
        }
        let backing_off = ready
            .iter()
            .map(|task| task.not_before)
            .filter(|not_before| *not_before > now)
            .min();
        let pause = backing_off
            .map_or(ROUND_PAUSE_MAX, |not_before| not_before - now)
            .min(ROUND_PAUSE_MAX);
        Instant::now() + pause
    }

    /// Claims a task for a worker and tells it. `false` when the store did not take the claim.
    async fn assign(&mut self, assignment: machine::Assignment) -> bool {
        let machine::Assignment {
            run: run_id,
            task,
            worker,
            incarnation,
        } = assignment;
        let claim = Event::Claim {
            task: task.clone(),
            worker: worker.clone(),
            incarnation: incarnation.clone(),
        };
        let run = match self.runs.step(&run_id, claim).await {
            Ok(run) => run,
            // Somebody changed the run since the round began; the next round sees it.
            Err(StepError::Refused(_)) => return true,
            Err(error) => {
                tracing::warn!(%run_id, task_id = %task, %error, "claim of unknown outcome");
                // The run was read back: either the claim is there, or the next round makes it.
                match self.runs.find(&run_id).await {
                    Ok(Some(run)) if is_claimed(&run, &task, &worker, &incarnation) => run,
                    Ok(_) | Err(_) => return false,
                }
            }
        };
        let Some(message) = assignment_of(&run, &task) else {
            return true;
        };
        let attempt = message.attempt.clone();
        tracing::info!(%run_id, task_id = %task, attempt = attempt.attempt.0, worker_id = %worker, "task assigned");
        if !self.tell(&worker, ToWorker::Assignment(Box::new(message))) {
            // It never left this process, so it may go to another worker at once.
            let failure = AttemptFailure {
                kind: FailureKind::Released,
                message: format!("the session of worker {worker} ended before the task was sent"),
                checkpoint: None,
            };
            let digest = Digest::of(b"never sent");
            let _ = self
                .runs
                .step(
                    &run_id,
                    Event::Failed {
                        attempt,
                        failure,
                        digest,
                    },
                )
                .await;
        }
        true
    }
}
