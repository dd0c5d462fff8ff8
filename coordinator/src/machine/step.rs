//! What an event makes of a run.
//!
//! Invariant: `step` either refuses and changes nothing, or returns a run whose difference to the old one fits in one
//! transaction of the store.

use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::{AttemptId, AttemptNumber, Cycle, Incarnation, LeaseToken, TaskId, WorkerId};
use llamaduo_proto::run::{RunStatus, Stage};
use llamaduo_proto::session::{AttemptFailure, RunningAttempt};
use llamaduo_proto::task::{Failure, FailureKind, Progress, TaskOutput, TaskResult, TaskStatus};

use super::event::{Action, Aggregate, Event, Refusal};
use super::failure::{self, Next};
use super::hash::hash;
use super::run::{Claim, EndedAttempt, Ending, FAILURES_MAX, Lease, Now, Run, Task, Work};

/// Leases taken back in one step: each takes up to four operations of a transaction's 128.
const REVOKED_PER_STEP_MAX: usize = 24;
/// Longest text of a failure or a reason that is stored, characters: eight of them stay within a record's 4 KiB.
const TEXT_CHARS_MAX: usize = 300;
/// After a failure others are preferred for this long; then even the worker that failed may have the task, since it
/// may be the only one with a free slot for hours.
const AVOID: Duration = Duration::from_secs(30);
/// Failures of one aggregate, other than the report, that end the run.
const AGGREGATE_FAILURES_MAX: u32 = 4;
/// Longest pause before a failed aggregate is tried again.
const AGGREGATE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A gap between ticks longer than this part of a lease is taken for a pause of this process.
const PAUSE_SHARE: u32 = 4;

/// What `event` makes of `run`, and what to do about it once that is committed.
pub fn step(run: &Run, event: Event, now: Now) -> Result<(Run, Vec<Action>), Refusal> {
    let mut step = Step {
        run: run.clone(),
        actions: Vec::new(),
        now,
    };
    step.run.journal.clear();
    match event {
        Event::Claim {
            task,
            worker,
            incarnation,
        } => step.claim(&task, worker, incarnation)?,
        Event::Completed {
            attempt,
            result,
            digest,
        } => step.completed(&attempt, result, digest)?,
        Event::Failed {
            attempt,
            failure,
            digest,
        } => step.failed(&attempt, failure, digest)?,
        Event::Heartbeat { worker, running } => step.renew(&worker, &running),
        Event::Attached {
            worker,
            incarnation,
            running,
        } => step.attached(&worker, &incarnation, &running),
        Event::Left { worker } => step.left(&worker),
        Event::Aggregated(aggregated) => step.aggregated(aggregated),
        Event::AggregateFailed {
            aggregate,
            message,
            retryable,
        } => {
            step.aggregate_failed(aggregate, &message, retryable);
        }
        Event::Cancel { reason } => step.end(RunStatus::Cancelled, &reason),
        Event::RetryTask { task } => step.retry_task(&task)?,
        Event::Resume(amendment) => step.resume(amendment)?,
        Event::Tick => step.tick(),
    }
    step.take_back_revoked();
    if step.release_quarantined() {
        step.actions.push(Action::StepAgain);
    } else {
        step.advance();
    }
    Ok((step.run, step.actions))
}

/// A step under way.
pub(super) struct Step {
    pub(super) run: Run,
    pub(super) actions: Vec<Action>,
    pub(super) now: Now,
}

impl Step {
    pub(super) fn task_mut(&mut self, id: &TaskId) -> Option<&mut Task> {
        self.run.tasks.get_mut(id).map(Arc::make_mut)
    }

    pub(super) fn emit(&mut self, kind: RunEventKind) {
        self.run.record(self.now, kind);
    }

    /// Starts winding the run up. The first reason stands.
    pub(super) fn end(&mut self, status: RunStatus, reason: &str) {
        if self.run.is_open() {
            self.run.head.ending = Some(Ending {
                status,
                reason: cut(reason),
            });
            self.run.head.n_aggregate_failures = 0;
            self.run.aggregate_not_before = Duration::ZERO;
        }
    }

    fn claim(&mut self, id: &TaskId, worker: WorkerId, incarnation: Incarnation) -> Result<(), Refusal> {
        let not_ready = || Refusal::NotReady { task: id.clone() };
        let (now, expiry) = (self.now, self.run.rules.lease_expiry);
        let is_open = self.run.is_open() && self.run.task_spec(id).is_some();
        let task = self.task_mut(id).ok_or_else(not_ready)?;
        if !is_open || task.record.status != TaskStatus::Ready || task.not_before > now.clock {
            return Err(not_ready());
        }
        task.record.status = TaskStatus::Running;
        task.record.n_attempts += 1;
        task.progress = None;
        let attempt = AttemptNumber(task.record.n_attempts);
        let checkpoint = task.checkpoint;
        task.lease = Some(Lease {
            claim: Claim {
                attempt,
                worker: worker.clone(),
                incarnation,
                checkpoint,
            },
            token: LeaseToken(0),
            deadline: now.clock + expiry,
            revoked: None,
        });
        let (stage, cycle) = self.stage_and_cycle(id);
        self.emit(RunEventKind::AttemptStarted {
            task: id.clone(),
            stage,
            cycle,
            attempt,
            worker,
        });
        Ok(())
    }

    /// The task of a reported end, if its attempt holds the lease.
    fn ending_task(&self, attempt: &AttemptId, digest: Digest) -> Result<&Task, Refusal> {
        let task = self
            .run
            .tasks
            .get(&attempt.task)
            .ok_or_else(|| Refusal::UnknownTask {
                run: self.run.id.to_string(),
                task: attempt.task.clone(),
            })?;
        if task.record.ended
            == Some(EndedAttempt {
                token: attempt.token,
                digest,
            })
        {
            return Err(Refusal::AlreadyRecorded);
        }
        match self.run.current(attempt) {
            Some(_) => Ok(task),
            None => Err(Refusal::StaleToken {
                attempt: Box::new(attempt.clone()),
            }),
        }
    }

    fn completed(&mut self, attempt: &AttemptId, result: TaskResult, digest: Digest) -> Result<(), Refusal> {
        let task = self.ending_task(attempt, digest)?;
        let (stage, subject) = self.run.stage(task);
        if !matches_stage(&result.output, stage) {
            return Err(Refusal::WrongOutput {
                task: attempt.task.clone(),
            });
        }
        let cycle = task.record.cycle;
        if let Some(task) = self.task_mut(&attempt.task) {
            task.record.status = TaskStatus::Done;
            task.record.result = Some(result.clone());
            task.record.ended = Some(EndedAttempt {
                token: attempt.token,
                digest,
            });
            task.lease = None;
            task.checkpoint = None;
            task.progress = None;
        }
        self.emit(RunEventKind::TaskDone {
            task: attempt.task.clone(),
            stage,
            cycle,
            subject,
            result,
        });
        Ok(())
    }

    fn failed(
        &mut self,
        attempt: &AttemptId,
        failure: AttemptFailure,
        digest: Digest,
    ) -> Result<(), Refusal> {
        self.ending_task(attempt, digest)?;
        if let Some(task) = self.task_mut(&attempt.task) {
            task.record.ended = Some(EndedAttempt {
                token: attempt.token,
                digest,
            });
            task.checkpoint = failure.checkpoint.or(task.checkpoint);
        }
        self.attempt_over(&attempt.task, failure.kind, &failure.message);
        Ok(())
    }

    /// Ends the running attempt of a task without a result.
    fn attempt_over(&mut self, id: &TaskId, kind: FailureKind, message: &str) {
        let now = self.now.clock;
        let (stage, cycle) = self.stage_and_cycle(id);
        let run_id = self.run.id.clone();
        let Some(task) = self.task_mut(id) else { return };
        let Some(Lease { claim, .. }) = task.lease.take() else {
            return;
        };
        let failure = Failure {
            kind,
            message: cut(message),
            attempt: claim.attempt,
            worker: claim.worker,
        };
        let jitter = hash(u64::from(claim.attempt.0), &[run_id.as_str(), id.as_str()]);
        let progressed = task.checkpoint != claim.checkpoint;
        // A damaged checkpoint is one input that can be done without.
        let kind = match kind {
            FailureKind::CorruptInput if claim.checkpoint.is_some() => {
                task.checkpoint = None;
                FailureKind::Retryable
            }
            kind => kind,
        };
        let next = failure::after(&mut task.record, kind, &failure.worker, progressed, jitter);
        task.record.failures.push(failure.clone());
        let surplus = task.record.failures.len().saturating_sub(FAILURES_MAX);
        task.record.failures.drain(..surplus);
        task.record.status = if next == Next::Quarantine {
            TaskStatus::Quarantined
        } else {
            TaskStatus::Ready
        };
        task.progress = None;
        task.avoid = Some((failure.worker.clone(), now + AVOID));
        let mut retry_in_ms = None;
        if let Next::Retry(delay) = next {
            task.not_before = now + delay;
            retry_in_ms = self
                .run
                .is_open()
                .then(|| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        }
        let task = id.clone();
        self.emit(RunEventKind::AttemptFailed {
            task,
            stage,
            cycle,
            failure: failure.clone(),
            retry_in_ms,
        });
        match next {
            Next::Retry(_) => {}
            Next::Quarantine => {
                // A run of one task is that task.
                let what = match &*self.run.work {
                    Work::Migration(_) => format!("task {id}"),
                    Work::Single { .. } => "the task".to_owned(),
                };
                let reason = format!("{what} was given up on: {}", failure.message);
                self.emit(RunEventKind::TaskQuarantined {
                    task: id.clone(),
                    stage,
                    failure,
                });
                self.end(RunStatus::Failed, &reason);
            }
            Next::End(status) => self.end(status, &failure.message),
        }
    }

    fn renew(&mut self, worker: &WorkerId, running: &[RunningAttempt]) {
        let deadline = self.now.clock + self.run.rules.lease_expiry;
        for RunningAttempt {
            attempt,
            progress,
            checkpoint,
        } in running
        {
            let holds = |lease: &Lease| lease.claim.worker == *worker;
            if !self.run.current(attempt).is_some_and(holds) {
                continue;
            }
            let Some(task) = self.task_mut(&attempt.task) else {
                continue;
            };
            if let Some(lease) = &mut task.lease {
                lease.deadline = deadline;
            }
            task.checkpoint = checkpoint.or(task.checkpoint);
            if progress.is_some() && task.progress != *progress {
                task.progress.clone_from(progress);
                self.tell_progress(
                    &attempt.task,
                    attempt.attempt,
                    progress.clone().unwrap_or_default(),
                );
            }
        }
    }

    fn tell_progress(&mut self, id: &TaskId, attempt: AttemptNumber, progress: Progress) {
        let (stage, cycle) = self.stage_and_cycle(id);
        let kind = RunEventKind::AttemptProgress {
            task: id.clone(),
            stage,
            cycle,
            attempt,
            progress,
        };
        self.actions.push(Action::Progress(kind));
    }

    fn attached(&mut self, worker: &WorkerId, incarnation: &Incarnation, running: &[RunningAttempt]) {
        self.renew(worker, running);
        let is_listed = |id: &TaskId, lease: &Lease| {
            running
                .iter()
                .any(|listed| listed.attempt.task == *id && listed.attempt.token == lease.token)
        };
        for (id, task) in &mut self.run.tasks {
            let Some(lease) = task.lease.as_ref().filter(|lease| lease.claim.worker == *worker) else {
                continue;
            };
            if is_listed(id, lease) {
                continue;
            }
            let why = if lease.claim.incarnation == *incarnation {
                let message = format!("worker {worker} attached again without this attempt");
                (FailureKind::Released, message)
            } else {
                let message = format!("worker {worker} was started anew; its old process is gone");
                (FailureKind::WorkerLost, message)
            };
            revoke(task, why);
        }
    }

    fn left(&mut self, worker: &WorkerId) {
        for task in self.run.tasks.values_mut() {
            let holds = |lease: &Lease| lease.claim.worker == *worker;
            if task.lease.as_ref().is_some_and(holds) {
                revoke(task, (FailureKind::Released, format!("worker {worker} left")));
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now.clock;
        let gap = now.saturating_sub(self.run.last_tick);
        self.run.last_tick = now;
        // This process was stopped or waited for its store: renewals wait in its queues, so the leases are not to blame.
        let pause = if gap > self.run.rules.lease_expiry / PAUSE_SHARE {
            gap
        } else {
            Duration::ZERO
        };
        for task in self.run.tasks.values_mut() {
            let Some(lease) = &task.lease else { continue };
            let deadline = lease.deadline + pause;
            if deadline <= now {
                let why = format!("no heartbeat from worker {} within the lease", lease.claim.worker);
                revoke(task, (FailureKind::LeaseExpired, why));
            } else if pause > Duration::ZERO
                && let Some(lease) = &mut Arc::make_mut(task).lease
            {
                lease.deadline = deadline;
            }
        }
    }

    /// Ends attempts whose leases were revoked, as many as fit in one transaction.
    fn take_back_revoked(&mut self) {
        if !self.run.is_open() {
            let reason = self
                .run
                .head
                .ending
                .as_ref()
                .map_or("the run has ended", |ending| &ending.reason);
            let why = (FailureKind::Cancelled, format!("the run is ending: {reason}"));
            for task in self.run.tasks.values_mut().filter(|task| task.lease.is_some()) {
                revoke(task, why.clone());
            }
        }
        let revoked =
            |(id, task): (&TaskId, &Arc<Task>)| Some((id.clone(), task.lease.as_ref()?.revoked.clone()?));
        let due: Vec<_> = self.run.tasks.iter().filter_map(revoked).collect();
        for (id, (kind, message)) in due.iter().take(REVOKED_PER_STEP_MAX) {
            if let (Some(attempt), Some(task)) = (self.run.attempt_id(id), self.run.tasks.get(id)) {
                let worker = task.lease.as_ref().map(|lease| lease.claim.worker.clone());
                let cancel = |worker| Action::CancelAttempt {
                    worker,
                    attempt,
                    reason: message.clone(),
                };
                self.actions.extend(worker.map(cancel));
            }
            self.attempt_over(id, *kind, message);
        }
        if due.len() > REVOKED_PER_STEP_MAX {
            self.actions.push(Action::StepAgain);
        }
    }

    fn aggregate_failed(&mut self, aggregate: Aggregate, message: &str, retryable: bool) {
        self.run.head.n_aggregate_failures = self.run.head.n_aggregate_failures.saturating_add(1);
        let n_failures = self.run.head.n_aggregate_failures;
        // A report is the whole outcome of a run that has ended already: it is waited for, as space on a disk is.
        if retryable && (n_failures < AGGREGATE_FAILURES_MAX || aggregate == Aggregate::Report) {
            let pause = Duration::from_secs(1 << n_failures.min(16)).min(AGGREGATE_PAUSE_MAX);
            self.run.aggregate_not_before = self.now.clock + pause;
        } else if aggregate == Aggregate::Report {
            self.finish(None);
        } else {
            self.end(RunStatus::Failed, message);
        }
    }

    fn stage_and_cycle(&self, id: &TaskId) -> (Stage, Cycle) {
        match self.run.tasks.get(id) {
            Some(task) => (self.run.stage(task).0, task.record.cycle),
            None => (Stage::Train, Cycle(0)),
        }
    }
}

/// Marks a lease to be taken back. The first reason stands.
fn revoke(task: &mut Arc<Task>, why: (FailureKind, String)) {
    if task.lease.as_ref().is_some_and(|lease| lease.revoked.is_none())
        && let Some(lease) = &mut Arc::make_mut(task).lease
    {
        lease.revoked = Some(why);
    }
}

fn matches_stage(output: &TaskOutput, stage: Stage) -> bool {
    match output {
        TaskOutput::Train(_) => stage == Stage::Train,
        TaskOutput::Infer(_) => stage == Stage::Infer,
        TaskOutput::Judge(_) => stage == Stage::Judge,
        TaskOutput::Synthesize(_) => stage == Stage::Synthesize,
    }
}

/// At most [`TEXT_CHARS_MAX`] characters of `text`.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}
