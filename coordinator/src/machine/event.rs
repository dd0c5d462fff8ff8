//! What can happen to a run, what follows from it, and why an event may be refused.
//!
//! Invariant: these are closed enums; whoever adds a variant is led by the compiler to everything that must know it.

use llamaduo_proto::Digest;
use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::{AttemptId, Cycle, Incarnation, TaskId, WorkerId};
use llamaduo_proto::run::{Budget, CurationCounts, GateDecision, Scores, ServiceLlmSpec, Subject};
use llamaduo_proto::session::{AttemptFailure, RunningAttempt};
use llamaduo_proto::task::TaskResult;

/// Something that happened to a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The scheduler chose a worker for a task.
    Claim {
        /// The task.
        task: TaskId,
        /// The worker.
        worker: WorkerId,
        /// Which process of it.
        incarnation: Incarnation,
    },
    /// A worker reports a result.
    Completed {
        /// The attempt.
        attempt: AttemptId,
        /// The result.
        result: TaskResult,
        /// sha256 of the report, to recognise it when it is repeated.
        digest: Digest,
    },
    /// A worker reports a failure.
    Failed {
        /// The attempt.
        attempt: AttemptId,
        /// The failure.
        failure: AttemptFailure,
        /// sha256 of the report.
        digest: Digest,
    },
    /// A worker lists what it runs of this run: the leases on it are renewed.
    Heartbeat {
        /// The worker.
        worker: WorkerId,
        /// Its attempts.
        running: Vec<RunningAttempt>,
    },
    /// A worker began a session: what it lists is adopted, even from a dead process whose result it found on its disk;
    /// its other leases are taken back.
    Attached {
        /// The worker.
        worker: WorkerId,
        /// Which process of it.
        incarnation: Incarnation,
        /// Its attempts.
        running: Vec<RunningAttempt>,
    },
    /// A worker said goodbye.
    Left {
        /// The worker.
        worker: WorkerId,
    },
    /// An aggregate was computed.
    Aggregated(Aggregated),
    /// An aggregate could not be computed.
    AggregateFailed {
        /// Which.
        aggregate: Aggregate,
        /// Why.
        message: String,
        /// Whether another try may succeed.
        retryable: bool,
    },
    /// Somebody cancels the run.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Somebody releases a quarantined task.
    RetryTask {
        /// The task.
        task: TaskId,
    },
    /// Somebody goes on with an ended run.
    Resume(Amendment),
    /// Time passes.
    Tick,
}

/// What a resume changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amendment {
    /// New limits.
    pub budget: Option<Budget>,
    /// How the teacher is reached.
    pub service_llm: Option<ServiceLlmSpec>,
    /// How the judge is reached.
    pub judge_llm: Option<ServiceLlmSpec>,
    /// Training cycles.
    pub cycles_max: Option<u32>,
    /// What the command line changes in the config; empty is as before.
    pub overrides: Vec<String>,
}

/// A computation over artifacts that decides what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aggregate {
    /// Scores of a subject from its verdicts.
    Score {
        /// The cycle.
        cycle: Cycle,
        /// Who answered.
        subject: Subject,
    },
    /// Whether a cycle's adapter passes.
    Gate {
        /// The cycle.
        cycle: Cycle,
    },
    /// What is kept of a cycle's synthesized pairs.
    Curate {
        /// The cycle.
        cycle: Cycle,
    },
    /// The report on an ending run.
    Report,
}

/// A computed aggregate.
#[derive(Clone, Debug, PartialEq)]
pub enum Aggregated {
    /// Scores of a subject.
    Scored {
        /// The cycle.
        cycle: Cycle,
        /// Who answered.
        subject: Subject,
        /// The scores.
        scores: Scores,
    },
    /// A gate decision.
    Gated {
        /// The cycle.
        cycle: Cycle,
        /// The decision.
        decision: GateDecision,
    },
    /// Curated pairs.
    Curated {
        /// The cycle.
        cycle: Cycle,
        /// How many, and why not.
        counts: CurationCounts,
        /// Names the files.
        manifest: Digest,
        /// The kept samples.
        samples: Digest,
    },
    /// A report.
    Reported {
        /// Its manifest.
        manifest: Digest,
    },
}

impl Aggregated {
    /// Which aggregate this is the outcome of.
    pub fn aggregate(&self) -> Aggregate {
        match *self {
            Self::Scored { cycle, subject, .. } => Aggregate::Score { cycle, subject },
            Self::Gated { cycle, .. } => Aggregate::Gate { cycle },
            Self::Curated { cycle, .. } => Aggregate::Curate { cycle },
            Self::Reported { .. } => Aggregate::Report,
        }
    }
}

/// What to do once the new run is committed.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Wake the scheduler: something may be leased.
    Place,
    /// Tell a worker to stop an attempt.
    CancelAttempt {
        /// Whom.
        worker: WorkerId,
        /// Which.
        attempt: AttemptId,
        /// Why.
        reason: String,
    },
    /// Compute this, unless it is being computed.
    Aggregate(Aggregate),
    /// Tell watchers how far an attempt is.
    Progress(RunEventKind),
    /// Step again at once: not all that is due fits in one transaction.
    StepAgain,
}

/// Why an event changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such task.
    #[error("run {run} has no task {task}")]
    UnknownTask {
        /// The run.
        run: String,
        /// The task.
        task: TaskId,
    },
    /// The task cannot be leased now.
    #[error("task {task} is not ready to be leased")]
    NotReady {
        /// The task.
        task: TaskId,
    },
    /// The lease is gone.
    #[error("attempt {} of task {} no longer holds its lease (token {}); stop it and drop its result", .attempt.attempt.0, .attempt.task, .attempt.token.0)]
    StaleToken {
        /// The attempt.
        attempt: Box<AttemptId>,
    },
    /// The end of the attempt is recorded with the same outcome.
    #[error("the end of this attempt was recorded before")]
    AlreadyRecorded,
    /// A result of another kind.
    #[error("task {task} does not give back a result of this kind")]
    WrongOutput {
        /// The task.
        task: TaskId,
    },
    /// The task is not quarantined.
    #[error("task {task} is not quarantined; only a quarantined task can be released")]
    NotQuarantined {
        /// The task.
        task: TaskId,
    },
    /// There is nothing to resume.
    #[error("a run that passed cannot be resumed; submit a new one")]
    Passed,
    /// All cycles were used.
    #[error("the run used all its {cycles_max} cycles; resume it with a larger cycles_max")]
    NoCyclesLeft {
        /// As it was.
        cycles_max: u32,
    },
    /// An amendment that would make the run another one.
    #[error("{field} of a run cannot be changed; submit a new run")]
    FixedField {
        /// Which.
        field: &'static str,
    },
}
