//! A run in memory: exactly what the store holds of it, and beside that only what may be forgotten.
//!
//! Invariant: fields named `record`, `claim`, `checkpoint`, `head`, `work` and the cycles are persisted; everything
//! else can be rebuilt after a restart by giving each lease a fresh deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{
    AttemptId, AttemptNumber, Cycle, Incarnation, LeaseToken, RequestId, RunId, TaskId, WorkerId,
};
use llamaduo_proto::run::{Budget, CurationCounts, GateDecision, RunSpec, RunStatus, Scores, Subject};
use llamaduo_proto::task::{Failure, FailureKind, Progress, TaskOutput, TaskResult, TaskSpec, TaskStatus};
use serde::{Deserialize, Serialize};

/// Failures kept of a task, the newest.
pub(super) const FAILURES_MAX: usize = 8;

/// When a step happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since this coordinator started, by a clock that never jumps. Decides.
    pub clock: Duration,
    /// Milliseconds since 1970. Only written down.
    pub time_ms: u64,
}

/// What a run was asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A whole migration.
    Migration(Box<RunSpec>),
    /// One task.
    Single {
        /// Shown to people.
        name: String,
        /// The task.
        spec: Box<TaskSpec>,
        /// What may be spent.
        budget: Budget,
    },
}

impl Work {
    /// Shown to people.
    pub fn name(&self) -> &str {
        match self {
            Self::Migration(spec) => &spec.name,
            Self::Single { name, .. } => name,
        }
    }

    /// What may be spent.
    pub fn budget(&self) -> Budget {
        match self {
            Self::Migration(spec) => spec.budget,
            Self::Single { budget, .. } => *budget,
        }
    }
}

/// Durations that the coordinator was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A lease that was not renewed for this long is given away: the lease of the worker plus a fifth.
    pub lease_expiry: Duration,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// What to do.
    pub work: Arc<Work>,
    /// Where it stands.
    pub head: Head,
    /// What each cycle came to.
    pub cycles: BTreeMap<Cycle, Arc<CycleRecord>>,
    /// Every task so far.
    pub tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Events of the last step, to be committed with it.
    pub journal: Vec<RunEvent>,
    /// Durations.
    pub rules: Rules,
    /// When it was last ticked.
    pub last_tick: Duration,
    /// No aggregate is tried before this.
    pub aggregate_not_before: Duration,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The request that made it.
    pub request: RequestId,
    /// When, milliseconds since 1970.
    pub submitted_at_ms: u64,
    /// Running until everything is wound up.
    pub status: RunStatus,
    /// Why it ended; empty while it runs.
    pub reason: String,
    /// Manifest of its report.
    pub report: Option<Digest>,
    /// The current cycle.
    pub cycle: Cycle,
    /// Events so far; the last one's number.
    pub n_events: u64,
    /// How it will end once its leases are taken back and its report is made.
    pub ending: Option<Ending>,
    /// Failures of the pending aggregate in a row.
    pub n_aggregate_failures: u32,
}

/// How a run will end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its last status.
    pub status: RunStatus,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a cycle came to, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CycleRecord {
    /// Samples it trains on; 0 in cycle 0.
    pub n_samples: u32,
    /// By subject.
    pub scores: Vec<Scored>,
    /// Whether it passed.
    pub gate: Option<GateDecision>,
    /// What became of its synthesized pairs.
    pub curation: Option<Curation>,
}

/// A subject with its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Who answered.
    pub subject: Subject,
    /// How well.
    pub scores: Scores,
}

/// What became of synthesized pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Curation {
    /// How many, and why not.
    pub counts: CurationCounts,
    /// Names the files below and their parents.
    pub manifest: Digest,
    /// JSONL of the kept samples.
    pub samples: Digest,
}

/// What a task is for. With the run's work and the results before it, this decides its [`TaskSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Fine-tune.
    Train,
    /// Answer one shard of the test prompts.
    Infer {
        /// Who answers.
        subject: Subject,
        /// From 0.
        shard: u32,
    },
    /// Grade the responses of one infer task.
    Judge {
        /// Who answered.
        subject: Subject,
        /// That of the infer task.
        shard: u32,
    },
    /// Make one shard of the synthesis calls.
    Synthesize {
        /// From 0.
        shard: u32,
    },
    /// The one task of a single-task run.
    Single,
}

/// One task.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What the store holds of it.
    pub record: TaskRecord,
    /// Who runs it.
    pub lease: Option<Lease>,
    /// Newest checkpoint of any attempt.
    pub checkpoint: Option<Digest>,
    /// Not leased before this.
    pub not_before: Duration,
    /// Who failed it last, and until when others are preferred.
    pub avoid: Option<(WorkerId, Duration)>,
    /// How far the running attempt is.
    pub progress: Option<Progress>,
}

/// What the store holds of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its cycle.
    pub cycle: Cycle,
    /// What it is for.
    pub kind: TaskKind,
    /// Position in the order of creation, from 0.
    pub order: u32,
    /// Where it stands; `Cancelled` is never stored but follows from the run's status.
    pub status: TaskStatus,
    /// Attempts started.
    pub n_attempts: u32,
    /// Attempts that count towards quarantine.
    pub n_failed: u32,
    /// Workers that vanished during an attempt which no checkpoint had moved forward, newest last.
    pub lost_on: Vec<WorkerId>,
    /// Attempts that ran out of memory.
    pub batch_halvings: u32,
    /// The newest failures, at most [`FAILURES_MAX`].
    pub failures: Vec<Failure>,
    /// What it gave back.
    pub result: Option<TaskResult>,
    /// The last attempt whose end a worker reported, to recognise a repetition.
    pub ended: Option<EndedAttempt>,
}

/// An attempt whose end is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedAttempt {
    /// Its token.
    pub token: LeaseToken,
    /// sha256 of the reported outcome.
    pub digest: Digest,
}

/// What the store holds of a lease. Never rewritten while it is held, since its revision is the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Who holds it.
    pub worker: WorkerId,
    /// Which process of it.
    pub incarnation: Incarnation,
    /// The checkpoint it started from.
    pub checkpoint: Option<Digest>,
}

/// One worker's right to one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What the store holds.
    pub claim: Claim,
    /// Fencing token; `LeaseToken(0)` from the step that makes the claim until its commit gives the revision.
    pub token: LeaseToken,
    /// Given away after this.
    pub deadline: Duration,
    /// Set once the lease is to be taken back: why, and in which words.
    pub revoked: Option<(FailureKind, String)>,
}

impl Task {
    /// A task with nothing but its record.
    pub fn new(record: TaskRecord) -> Self {
        Self {
            record,
            lease: None,
            checkpoint: None,
            not_before: Duration::ZERO,
            avoid: None,
            progress: None,
        }
    }
}

impl Run {
    /// Whether nothing will happen any more unless somebody revives it.
    pub fn has_ended(&self) -> bool {
        self.head.status != RunStatus::Running
    }

    /// Whether tasks may be leased.
    pub fn is_open(&self) -> bool {
        !self.has_ended() && self.head.ending.is_none()
    }

    /// The migration's specification.
    pub fn spec(&self) -> Option<&RunSpec> {
        match &*self.work {
            Work::Migration(spec) => Some(spec),
            Work::Single { .. } => None,
        }
    }

    /// The lease under `attempt`, if it is the current one.
    pub fn current(&self, attempt: &AttemptId) -> Option<&Lease> {
        let lease = self.tasks.get(&attempt.task)?.lease.as_ref()?;
        let is_current = attempt.run == self.id
            && lease.token == attempt.token
            && lease.claim.attempt == attempt.attempt
            && lease.revoked.is_none();
        (is_current && self.is_open()).then_some(lease)
    }

    /// The running attempt of a task.
    pub fn attempt_id(&self, task: &TaskId) -> Option<AttemptId> {
        let lease = self.tasks.get(task)?.lease.as_ref()?;
        let (attempt, token) = (lease.claim.attempt, lease.token);
        Some(AttemptId {
            run: self.id.clone(),
            task: task.clone(),
            attempt,
            token,
        })
    }

    /// A task's status as clients see it: what never ran to its end in an ended run was cancelled.
    pub fn status_of(&self, task: &Task) -> TaskStatus {
        match task.record.status {
            TaskStatus::Ready | TaskStatus::Running if self.has_ended() => TaskStatus::Cancelled,
            status => status,
        }
    }

    /// Gives the claims of the last step the revision that committed them.
    pub fn stamp(&mut self, token: LeaseToken) {
        for task in self.tasks.values_mut() {
            let is_unstamped = task
                .lease
                .as_ref()
                .is_some_and(|lease| lease.token == LeaseToken(0));
            if is_unstamped && let Some(lease) = &mut Arc::make_mut(task).lease {
                lease.token = token;
            }
        }
    }

    /// Tasks in the order of creation.
    pub fn tasks_in_order(&self) -> Vec<(&TaskId, &Task)> {
        let mut tasks: Vec<_> = self.tasks.iter().map(|(id, task)| (id, &**task)).collect();
        tasks.sort_by_key(|(_, task)| task.record.order);
        tasks
    }

    /// The manifest of the adapter of [`Self::best_cycle`]; of a single training, its own.
    pub fn best_adapter(&self) -> Option<Digest> {
        let is_adapter = |result: &&TaskResult| matches!(result.output, TaskOutput::Train(_));
        let single = || {
            self.tasks
                .values()
                .find_map(|task| task.record.result.as_ref().filter(is_adapter))
        };
        self.best_cycle()
            .and_then(|cycle| self.adapter(cycle))
            .or_else(|| single().map(|result| result.manifest))
    }

    /// The cycle whose adapter is delivered: the one that passed, else the best gated one, else the newest trained.
    pub fn best_cycle(&self) -> Option<Cycle> {
        // A gate's value is a score in one cycle and a share in another, whichever was closest: only what it is of
        // the threshold can be compared.
        let margin = |gate: &GateDecision| match gate.value {
            None => f64::NEG_INFINITY,
            Some(_) if gate.threshold <= 0.0 => f64::INFINITY,
            Some(value) => value / gate.threshold,
        };
        let gated = |(cycle, record): (&Cycle, &Arc<CycleRecord>)| {
            let gate = record.gate.as_ref()?;
            self.adapter(*cycle).map(|_| (gate.passed, margin(gate), *cycle))
        };
        let best = self
            .cycles
            .iter()
            .filter_map(gated)
            .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let trained = |cycle: &&Cycle| self.adapter(**cycle).is_some();
        best.map(|(_, _, cycle)| cycle)
            .or_else(|| self.cycles.keys().rev().find(trained).copied())
    }

    /// Manifest of a cycle's adapter.
    pub fn adapter(&self, cycle: Cycle) -> Option<Digest> {
        Some(
            self.tasks
                .get(&TaskKind::Train.id(cycle))?
                .record
                .result
                .as_ref()?
                .manifest,
        )
    }

    /// Samples that the training of `cycle` takes, with how many there are: the train split, then what curation kept
    /// of each earlier cycle.
    pub fn training_data(&self, spec: &RunSpec, cycle: Cycle) -> (Vec<Digest>, u32) {
        let earlier = self
            .cycles
            .range(..cycle)
            .filter_map(|(_, record)| record.curation);
        let kept: Vec<Curation> = earlier.filter(|curation| curation.counts.n_kept > 0).collect();
        let n_kept = kept
            .iter()
            .fold(0_u32, |sum, curation| sum.saturating_add(curation.counts.n_kept));
        let data = std::iter::once(spec.coverage.train).chain(kept.iter().map(|curation| curation.samples));
        (data.collect(), spec.coverage.n_train.saturating_add(n_kept))
    }

    pub(super) fn record(&mut self, now: Now, kind: RunEventKind) {
        self.head.n_events += 1;
        self.journal.push(RunEvent {
            run: self.id.clone(),
            seq: self.head.n_events,
            time_ms: now.time_ms,
            kind,
        });
    }
}
