//! `event.proto`: what happened.

use super::{
    InvalidMessage, Result, at_least_1, digest_text, enumeration, id, optional, optional_digest, required,
    text_for_people,
};
use crate::event::{RunEvent, RunEventKind};
use crate::ids::{AttemptNumber, Cycle};
use crate::run::{RunStatus, Stage};
use crate::wire;
use crate::wire::event::Kind;

impl TryFrom<wire::Event> for RunEvent {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Event) -> Result<Self> {
        let kind = wire.kind.ok_or_else(|| InvalidMessage::absent("kind"))?;
        let name = kind_name(&kind);
        let kind = RunEventKind::try_from(kind).map_err(|error| error.within(name))?;
        let is_progress = matches!(kind, RunEventKind::AttemptProgress { .. });
        if is_progress != (wire.seq == 0) {
            return Err(InvalidMessage::new(
                "seq",
                "0 for progress, else at least 1",
                wire.seq,
            ));
        }
        Ok(Self {
            run: id("run_id", &wire.run_id)?,
            seq: wire.seq,
            time_ms: wire.time_ms,
            kind,
        })
    }
}

impl From<RunEvent> for wire::Event {
    fn from(event: RunEvent) -> Self {
        Self {
            run_id: event.run.into(),
            seq: event.seq,
            time_ms: event.time_ms,
            kind: Some(event.kind.into()),
        }
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::RunSubmitted(_) => "run_submitted",
        Kind::RunResumed(_) => "run_resumed",
        Kind::CycleStarted(_) => "cycle_started",
        Kind::AttemptStarted(_) => "attempt_started",
        Kind::AttemptFailed(_) => "attempt_failed",
        Kind::TaskDone(_) => "task_done",
        Kind::TaskQuarantined(_) => "task_quarantined",
        Kind::TaskReleased(_) => "task_released",
        Kind::SubjectScored(_) => "subject_scored",
        Kind::GateDecided(_) => "gate_decided",
        Kind::Curated(_) => "curated",
        Kind::RunEnded(_) => "run_ended",
        Kind::AttemptProgress(_) => "attempt_progress",
    }
}

fn stage(number: i32) -> Result<Stage> {
    enumeration::<wire::Stage, _>("stage", number)
}

fn attempt(number: u32) -> Result<AttemptNumber> {
    at_least_1("attempt", number).map(AttemptNumber)
}

impl TryFrom<Kind> for RunEventKind {
    type Error = InvalidMessage;
    fn try_from(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::RunSubmitted(e) => Self::RunSubmitted {
                name: text_for_people(e.name),
            },
            Kind::RunResumed(e) => Self::RunResumed {
                was: enumeration::<wire::RunStatus, _>("was", e.was)?,
            },
            Kind::CycleStarted(e) => Self::CycleStarted {
                cycle: Cycle(e.cycle),
                n_samples: e.n_samples,
            },
            Kind::AttemptStarted(e) => Self::AttemptStarted {
                task: id("task_id", &e.task_id)?,
                stage: stage(e.stage)?,
                cycle: Cycle(e.cycle),
                attempt: attempt(e.attempt)?,
                worker: id("worker_id", &e.worker_id)?,
            },
            Kind::AttemptFailed(e) => Self::AttemptFailed {
                task: id("task_id", &e.task_id)?,
                stage: stage(e.stage)?,
                cycle: Cycle(e.cycle),
                failure: required("failure", e.failure)?,
                retry_in_ms: e.retry_in_ms,
            },
            Kind::TaskDone(e) => Self::TaskDone {
                task: id("task_id", &e.task_id)?,
                stage: stage(e.stage)?,
                cycle: Cycle(e.cycle),
                subject: optional("subject", e.subject)?,
                result: required("result", e.result)?,
            },
            Kind::TaskQuarantined(e) => Self::TaskQuarantined {
                task: id("task_id", &e.task_id)?,
                stage: stage(e.stage)?,
                failure: required("failure", e.failure)?,
            },
            Kind::TaskReleased(e) => Self::TaskReleased {
                task: id("task_id", &e.task_id)?,
            },
            Kind::SubjectScored(e) => Self::SubjectScored {
                cycle: Cycle(e.cycle),
                subject: required("subject", e.subject)?,
                scores: required("scores", e.scores)?,
            },
            Kind::GateDecided(e) => Self::GateDecided {
                cycle: Cycle(at_least_1("cycle", e.cycle)?),
                decision: required("decision", e.decision)?,
            },
            Kind::Curated(e) => Self::Curated {
                cycle: Cycle(e.cycle),
                counts: required("counts", e.counts)?,
                n_samples_next: e.n_samples_next,
            },
            Kind::RunEnded(e) => run_ended(e)?,
            Kind::AttemptProgress(e) => Self::AttemptProgress {
                task: id("task_id", &e.task_id)?,
                stage: stage(e.stage)?,
                cycle: Cycle(e.cycle),
                attempt: attempt(e.attempt)?,
                progress: required("progress", e.progress)?,
            },
        })
    }
}

fn run_ended(ended: wire::RunEnded) -> Result<RunEventKind> {
    let status = enumeration::<wire::RunStatus, _>("status", ended.status)?;
    if status == RunStatus::Running {
        return Err(InvalidMessage::new("status", "how the run ended", "RUNNING"));
    }
    Ok(RunEventKind::RunEnded {
        status,
        reason: text_for_people(ended.reason),
        report: optional_digest("report_digest", &ended.report_digest)?,
    })
}

impl From<RunEventKind> for Kind {
    fn from(kind: RunEventKind) -> Self {
        use RunEventKind as Event;
        let stage_number = |stage: Stage| wire::Stage::from(stage).into();
        match kind {
            Event::RunSubmitted { name } => Self::RunSubmitted(wire::RunSubmitted { name }),
            Event::RunResumed { was } => Self::RunResumed(wire::RunResumed {
                was: wire::RunStatus::from(was).into(),
            }),
            Event::CycleStarted { cycle, n_samples } => Self::CycleStarted(wire::CycleStarted {
                cycle: cycle.0,
                n_samples,
            }),
            Event::AttemptStarted {
                task,
                stage,
                cycle,
                attempt,
                worker,
            } => Self::AttemptStarted(wire::AttemptStarted {
                task_id: task.into(),
                stage: stage_number(stage),
                cycle: cycle.0,
                attempt: attempt.0,
                worker_id: worker.into(),
            }),
            Event::AttemptFailed {
                task,
                stage,
                cycle,
                failure,
                retry_in_ms,
            } => Self::AttemptFailed(wire::AttemptFailed {
                task_id: task.into(),
                stage: stage_number(stage),
                cycle: cycle.0,
                failure: Some(failure.into()),
                retry_in_ms,
            }),
            Event::TaskDone {
                task,
                stage,
                cycle,
                subject,
                result,
            } => Self::TaskDone(wire::TaskDone {
                task_id: task.into(),
                stage: stage_number(stage),
                cycle: cycle.0,
                subject: subject.map(Into::into),
                result: Some(result.into()),
            }),
            Event::TaskQuarantined { task, stage, failure } => Self::TaskQuarantined(wire::TaskQuarantined {
                task_id: task.into(),
                stage: stage_number(stage),
                failure: Some(failure.into()),
            }),
            Event::TaskReleased { task } => Self::TaskReleased(wire::TaskReleased { task_id: task.into() }),
            Event::SubjectScored {
                cycle,
                subject,
                scores,
            } => Self::SubjectScored(wire::SubjectScored {
                cycle: cycle.0,
                subject: Some(subject.into()),
                scores: Some(scores.into()),
            }),
            Event::GateDecided { cycle, decision } => Self::GateDecided(wire::GateDecided {
                cycle: cycle.0,
                decision: Some(decision.into()),
            }),
            Event::Curated {
                cycle,
                counts,
                n_samples_next,
            } => Self::Curated(wire::Curated {
                cycle: cycle.0,
                counts: Some(counts.into()),
                n_samples_next,
            }),
            Event::RunEnded {
                status,
                reason,
                report,
            } => Self::RunEnded(wire::RunEnded {
                status: wire::RunStatus::from(status).into(),
                reason,
                report_digest: digest_text(report),
            }),
            Event::AttemptProgress {
                task,
                stage,
                cycle,
                attempt,
                progress,
            } => Self::AttemptProgress(wire::AttemptProgress {
                task_id: task.into(),
                stage: stage_number(stage),
                cycle: cycle.0,
                attempt: attempt.0,
                progress: Some(progress.into()),
            }),
        }
    }
}
