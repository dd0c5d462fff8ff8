//! Valid messages of workers and clients.

use std::time::Duration;

use super::Draw;
use crate::ids::{AttemptId, AttemptNumber, LeaseToken};
use crate::run::{Cost, RunStatus};
use crate::session::*;
use crate::task::TaskStatus;
use crate::view::*;

impl Draw {
    fn attempt(&mut self) -> AttemptId {
        AttemptId {
            run: self.id(),
            task: self.id(),
            attempt: AttemptNumber(self.count(4)),
            token: LeaseToken(self.next()),
        }
    }

    fn running(&mut self) -> RunningAttempt {
        RunningAttempt {
            attempt: self.attempt(),
            progress: self.maybe(Self::progress),
            checkpoint: self.maybe(Self::digest),
        }
    }

    fn credits(&mut self) -> Credits {
        Credits {
            local_model_slots: self.below(3) as u32,
            service_slots: self.below(9) as u32,
        }
    }

    pub(in super::super) fn hello(&mut self) -> Hello {
        Hello {
            worker: self.id(),
            incarnation: self.id(),
            device: self.text(),
            credits: self.credits(),
            running: self.some(Self::running),
            directory: self.maybe(Self::id),
        }
    }

    pub(in super::super) fn message_from_worker(&mut self) -> FromWorker {
        match self.below(4) {
            0 => FromWorker::Hello(self.hello()),
            1 => FromWorker::Credits(self.credits()),
            2 => FromWorker::Heartbeat(Heartbeat {
                seq: self.next(),
                running: self.some(Self::running),
            }),
            _ => FromWorker::Goodbye { reason: self.text() },
        }
    }

    pub(in super::super) fn message_to_worker(&mut self) -> ToWorker {
        match self.below(5) {
            0 => ToWorker::Welcome(Welcome {
                lease: Duration::from_millis(15_000 + self.below(1_000)),
                heartbeat: Duration::from_millis(5_000 + self.below(1_000)),
                revoked: self.some(Self::attempt),
            }),
            1 => ToWorker::Assignment(Box::new(Assignment {
                attempt: self.attempt(),
                spec: self.task_spec(),
                checkpoint: self.maybe(Self::digest),
                batch_halvings: self.below(33) as u32,
            })),
            2 => ToWorker::Cancel {
                attempt: self.attempt(),
                reason: self.text(),
            },
            3 => ToWorker::Drain,
            _ => ToWorker::HeartbeatAck {
                seq: self.next(),
                revoked: self.some(Self::attempt),
            },
        }
    }

    pub(in super::super) fn completion(&mut self) -> Completion {
        let outcome = if self.flag() {
            AttemptOutcome::Done(self.task_result())
        } else {
            AttemptOutcome::Failed(AttemptFailure {
                kind: self.failure_kind(),
                message: self.text(),
                checkpoint: self.maybe(Self::digest),
            })
        };
        Completion {
            attempt: self.attempt(),
            worker: self.id(),
            outcome,
        }
    }

    pub(in super::super) fn begin_call(&mut self) -> BeginCall {
        BeginCall {
            attempt: self.attempt(),
            call: self.digest(),
            nano_usd_max: self.maybe(Self::next),
            reservation: self.id(),
        }
    }

    pub(in super::super) fn call_leave(&mut self) -> CallLeave {
        match self.below(4) {
            0 => CallLeave::Cached(self.digest()),
            1 => CallLeave::Go(self.id()),
            2 => CallLeave::BudgetSpent(self.text()),
            _ => CallLeave::Wait(self.text()),
        }
    }

    pub(in super::super) fn end_call(&mut self) -> EndCall {
        EndCall {
            attempt: self.attempt(),
            call: self.digest(),
            reservation: self.id(),
            outcome: match self.below(3) {
                0 => CallOutcome::Answered(CallReply {
                    reply: self.digest(),
                    input_tokens: self.next(),
                    output_tokens: self.next(),
                    nano_usd: self.maybe(Self::next),
                }),
                1 => CallOutcome::NotBilled(self.text()),
                _ => CallOutcome::Unknown(self.text()),
            },
        }
    }

    pub(in super::super) fn submit_task(&mut self) -> SubmitTask {
        SubmitTask {
            request: self.id(),
            name: self.text(),
            spec: self.task_spec(),
            budget: self.budget(),
        }
    }

    pub(in super::super) fn resume_run(&mut self) -> ResumeRun {
        ResumeRun {
            run: self.id(),
            budget: self.maybe(Self::budget),
            service_llm: self.maybe(Self::service_llm),
            judge_llm: self.maybe(Self::service_llm),
            cycles_max: self.maybe(|d| d.count(1_000)),
            overrides: self.some(Self::text),
        }
    }

    fn run_view(&mut self) -> RunView {
        RunView {
            run: self.id(),
            name: self.text(),
            status: self.pick(&[RunStatus::Running, RunStatus::Passed]),
            reason: self.maybe(Self::text),
            cycle: self.cycle(),
            stages: self.some(|d| StageCount {
                stage: d.stage(),
                n_done: d.count(9),
                n_total: 9,
            }),
            cost: Cost {
                n_calls: self.next(),
                input_tokens: self.next(),
                output_tokens: self.next(),
                nano_usd: self.next(),
                n_calls_unpriced: self.next(),
                n_calls_unknown: self.next(),
            },
            report: self.maybe(Self::digest),
            adapter: self.maybe(Self::digest),
            submitted_at_ms: self.next(),
            ending: self.maybe(|d| d.pick(&[RunStatus::Cancelled, RunStatus::BudgetSpent])),
        }
    }

    pub(in super::super) fn run_details(&mut self) -> RunDetails {
        RunDetails {
            run: self.run_view(),
            spec: self.maybe(Self::run_spec),
            scores: self.some(|d| SubjectScores {
                cycle: d.cycle(),
                subject: d.subject(),
                scores: d.scores(),
            }),
            gates: self.some(|d| CycleGate {
                cycle: d.cycle(),
                decision: d.decision(),
            }),
            curations: self.some(|d| CycleCuration {
                cycle: d.cycle(),
                manifest: d.digest(),
            }),
        }
    }

    pub(in super::super) fn task_view(&mut self) -> TaskView {
        TaskView {
            run: self.id(),
            task: self.id(),
            spec: self.task_spec(),
            status: self.pick(&[
                TaskStatus::Ready,
                TaskStatus::Running,
                TaskStatus::Done,
                TaskStatus::Quarantined,
                TaskStatus::Cancelled,
            ]),
            n_attempts: self.count(4),
            worker: self.maybe(Self::id),
            result: self.maybe(Self::task_result),
            failures: self.some(Self::failure),
            progress: self.maybe(Self::progress),
        }
    }

    pub(in super::super) fn worker_view(&mut self) -> WorkerView {
        WorkerView {
            worker: self.id(),
            device: self.text(),
            running: self.some(|d| (d.id(), d.id())),
            draining: self.flag(),
        }
    }
}
