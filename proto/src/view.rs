//! Runs, tasks and workers as clients submit and see them.
//!
//! Invariant: a view is a snapshot; nothing is decided from it.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::ids::{Cycle, RequestId, RunId, TaskId, WorkerId};
use crate::run::{Budget, Cost, GateDecision, RunSpec, RunStatus, Scores, ServiceLlmSpec, Stage, Subject};
use crate::task::{Failure, Progress, TaskResult, TaskSpec, TaskStatus};

/// Starts a migration.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmitRun {
    /// The same id is the same submission.
    pub request: RequestId,
    /// What to do.
    pub spec: RunSpec,
}

/// Starts a run of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct SubmitTask {
    /// The same id is the same submission.
    pub request: RequestId,
    /// Shown to people.
    pub name: String,
    /// What to do.
    pub spec: TaskSpec,
    /// What may be spent.
    pub budget: Budget,
}

/// Goes on with a run that ended without passing.
#[derive(Clone, Debug, PartialEq)]
pub struct ResumeRun {
    /// Its id.
    pub run: RunId,
    /// New limits, counted from the run's start; `None` is as before.
    pub budget: Option<Budget>,
    /// How the teacher is reached from now on; `None` is as before.
    pub service_llm: Option<ServiceLlmSpec>,
    /// How the judge is reached from now on; `None` follows the teacher where that judges, else is as before.
    pub judge_llm: Option<ServiceLlmSpec>,
    /// Training cycles before the run gives up; `None` is as before.
    pub cycles_max: Option<u32>,
    /// What the command line changes in the config from now on; empty is as before.
    pub overrides: Vec<String>,
}

/// A run as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Its id.
    pub run: RunId,
    /// Shown to people.
    pub name: String,
    /// Where it stands.
    pub status: RunStatus,
    /// Why it ended.
    pub reason: Option<String>,
    /// The current cycle.
    pub cycle: Cycle,
    /// Tasks of the current cycle.
    pub stages: Vec<StageCount>,
    /// Spent so far.
    pub cost: Cost,
    /// Manifest of the report.
    pub report: Option<Digest>,
    /// Manifest of the adapter that passed, else of the best so far.
    pub adapter: Option<Digest>,
    /// Milliseconds since 1970.
    pub submitted_at_ms: u64,
    /// How it will end, while it is wound up.
    pub ending: Option<RunStatus>,
}

/// Tasks of one stage in the current cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCount {
    /// The stage.
    pub stage: Stage,
    /// Tasks done, at most `n_total`.
    pub n_done: u32,
    /// Tasks in all.
    pub n_total: u32,
}

/// A run with what it was asked for and what it measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDetails {
    /// As it stands.
    pub run: RunView,
    /// What was asked; `None` for a single task.
    pub spec: Option<RunSpec>,
    /// Scores so far.
    pub scores: Vec<SubjectScores>,
    /// Decisions so far.
    pub gates: Vec<CycleGate>,
    /// Curations so far.
    pub curations: Vec<CycleCuration>,
}

/// What curation made of the pairs synthesized in a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CycleCuration {
    /// The cycle, from 1.
    pub cycle: Cycle,
    /// Manifest of the kept and the dropped pairs.
    pub manifest: Digest,
}

/// Scores of a subject in a cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubjectScores {
    /// The cycle.
    pub cycle: Cycle,
    /// Who answered.
    pub subject: Subject,
    /// The scores.
    pub scores: Scores,
}

/// The gate's decision about a cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CycleGate {
    /// The cycle, from 1.
    pub cycle: Cycle,
    /// The decision.
    pub decision: GateDecision,
}

/// A task as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    /// Its run.
    pub run: RunId,
    /// Its id.
    pub task: TaskId,
    /// What it does.
    pub spec: TaskSpec,
    /// Where it stands.
    pub status: TaskStatus,
    /// Attempts started so far.
    pub n_attempts: u32,
    /// Who runs it.
    pub worker: Option<WorkerId>,
    /// What it gave back.
    pub result: Option<TaskResult>,
    /// The last failures, oldest first.
    pub failures: Vec<Failure>,
    /// Last reported progress.
    pub progress: Option<Progress>,
}

/// A worker with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its id.
    pub worker: WorkerId,
    /// What it computes on, for people.
    pub device: String,
    /// Tasks it holds leases on.
    pub running: Vec<(RunId, TaskId)>,
    /// Whether it takes nothing new.
    pub draining: bool,
}
