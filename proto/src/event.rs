//! What happens to a run, as a list that only grows.
//!
//! Invariant: durable events of a run are numbered 1, 2, 3, … without gaps.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::ids::{AttemptNumber, Cycle, RunId, TaskId, WorkerId};
use crate::run::{CurationCounts, GateDecision, RunStatus, Scores, Stage, Subject};
use crate::task::{Failure, Progress, TaskResult};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// The run.
    pub run: RunId,
    /// Number within the run, from 1; 0 is progress, which is not kept.
    pub seq: u64,
    /// Milliseconds since 1970, by the coordinator's clock.
    pub time_ms: u64,
    /// What.
    pub kind: RunEventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEventKind {
    /// The run was accepted.
    RunSubmitted {
        /// Its name.
        name: String,
    },
    /// A person had the run go on, under limits and ways to its service LLMs that may be others than before.
    RunResumed {
        /// How it had ended or was ending; `Running` where only what it goes on under changed.
        was: RunStatus,
    },
    /// A cycle began.
    CycleStarted {
        /// Its number.
        cycle: Cycle,
        /// Samples it trains on; 0 in cycle 0.
        n_samples: u32,
    },
    /// A worker got the lease of an attempt.
    AttemptStarted {
        /// The task.
        task: TaskId,
        /// Its stage.
        stage: Stage,
        /// Its cycle.
        cycle: Cycle,
        /// The attempt.
        attempt: AttemptNumber,
        /// Who runs it.
        worker: WorkerId,
    },
    /// An attempt ended without a result.
    AttemptFailed {
        /// The task.
        task: TaskId,
        /// Its stage.
        stage: Stage,
        /// Its cycle.
        cycle: Cycle,
        /// What happened.
        failure: Failure,
        /// Milliseconds until another try; `None` when there is none.
        retry_in_ms: Option<u64>,
    },
    /// A task's result was committed.
    TaskDone {
        /// The task.
        task: TaskId,
        /// Its stage.
        stage: Stage,
        /// Its cycle.
        cycle: Cycle,
        /// Whose responses.
        subject: Option<Subject>,
        /// The result.
        result: TaskResult,
    },
    /// A task was given up on.
    TaskQuarantined {
        /// The task.
        task: TaskId,
        /// Its stage.
        stage: Stage,
        /// The last failure.
        failure: Failure,
    },
    /// A quarantined task was released by a person.
    TaskReleased {
        /// The task.
        task: TaskId,
    },
    /// All verdicts on a subject are in.
    SubjectScored {
        /// The cycle.
        cycle: Cycle,
        /// Who answered.
        subject: Subject,
        /// The scores.
        scores: Scores,
    },
    /// The gate decided.
    GateDecided {
        /// The cycle.
        cycle: Cycle,
        /// The decision.
        decision: GateDecision,
    },
    /// Synthesized pairs were curated.
    Curated {
        /// The cycle that fell short.
        cycle: Cycle,
        /// What became of them.
        counts: CurationCounts,
        /// Samples that the next cycle trains on.
        n_samples_next: u32,
    },
    /// The run ended.
    RunEnded {
        /// How.
        status: RunStatus,
        /// Why.
        reason: String,
        /// Manifest of the report.
        report: Option<Digest>,
    },
    /// Progress of an attempt: `seq` is 0 and it is not kept.
    AttemptProgress {
        /// The task.
        task: TaskId,
        /// Its stage.
        stage: Stage,
        /// Its cycle.
        cycle: Cycle,
        /// The attempt.
        attempt: AttemptNumber,
        /// How far.
        progress: Progress,
    },
}

impl RunEventKind {
    /// The task it is about, where it is about one.
    pub fn task_mut(&mut self) -> Option<&mut TaskId> {
        match self {
            Self::AttemptStarted { task, .. }
            | Self::AttemptProgress { task, .. }
            | Self::AttemptFailed { task, .. }
            | Self::TaskDone { task, .. }
            | Self::TaskQuarantined { task, .. }
            | Self::TaskReleased { task } => Some(task),
            Self::RunSubmitted { .. }
            | Self::RunResumed { .. }
            | Self::CycleStarted { .. }
            | Self::SubjectScored { .. }
            | Self::GateDecided { .. }
            | Self::Curated { .. }
            | Self::RunEnded { .. } => None,
        }
    }
}
