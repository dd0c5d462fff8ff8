//! Events of runs and their tasks.

use super::*;
use crate::event::{RunEvent, RunEventKind};

impl Draw {
    pub(in super::super) fn event(&mut self) -> RunEvent {
        let kind = if self.flag() {
            self.task_event()
        } else {
            self.run_event()
        };
        let is_progress = matches!(kind, RunEventKind::AttemptProgress { .. });
        let seq = if is_progress {
            0
        } else {
            u64::from(self.count(999))
        };
        RunEvent {
            run: self.id(),
            seq,
            time_ms: self.next(),
            kind,
        }
    }

    fn task_event(&mut self) -> RunEventKind {
        let (task, stage, cycle, attempt) = (
            self.id(),
            self.stage(),
            self.cycle(),
            AttemptNumber(self.count(4)),
        );
        match self.below(6) {
            0 => RunEventKind::AttemptStarted {
                task,
                stage,
                cycle,
                attempt,
                worker: self.id(),
            },
            1 => RunEventKind::AttemptFailed {
                task,
                stage,
                cycle,
                failure: self.failure(),
                retry_in_ms: self.maybe(Self::next),
            },
            2 => RunEventKind::TaskDone {
                task,
                stage,
                cycle,
                subject: self.maybe(Self::subject),
                result: self.task_result(),
            },
            3 => RunEventKind::TaskQuarantined {
                task,
                stage,
                failure: self.failure(),
            },
            4 => RunEventKind::TaskReleased { task },
            _ => RunEventKind::AttemptProgress {
                task,
                stage,
                cycle,
                attempt,
                progress: self.progress(),
            },
        }
    }

    fn run_event(&mut self) -> RunEventKind {
        let cycle = self.cycle();
        match self.below(7) {
            0 => RunEventKind::RunSubmitted { name: self.text() },
            1 => RunEventKind::CycleStarted {
                cycle,
                n_samples: self.count(99),
            },
            2 => RunEventKind::SubjectScored {
                cycle,
                subject: self.subject(),
                scores: self.scores(),
            },
            3 => RunEventKind::GateDecided {
                cycle,
                decision: self.decision(),
            },
            4 => RunEventKind::Curated {
                cycle,
                counts: self.counts(),
                n_samples_next: self.count(999),
            },
            5 => RunEventKind::RunEnded {
                status: self.pick(&[
                    RunStatus::Passed,
                    RunStatus::GateNotReached,
                    RunStatus::BudgetSpent,
                    RunStatus::ServiceFailed,
                    RunStatus::Cancelled,
                    RunStatus::Failed,
                ]),
                reason: self.text(),
                report: self.maybe(Self::digest),
            },
            _ => RunEventKind::RunResumed {
                was: self.pick(&[RunStatus::Running, RunStatus::BudgetSpent, RunStatus::Cancelled]),
            },
        }
    }
}
