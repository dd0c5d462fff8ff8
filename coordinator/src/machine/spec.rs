//! What each task of a run has to do, worked out from the run's specification and the results before it.
//!
//! Invariant: the test split is named only by tasks that answer or grade; no Train or Synthesize task ever holds it.

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Cycle, TaskId};
use llamaduo_proto::run::{LocalModelSpec, Quantization, RunSpec, Stage, Subject, TrainFrom};
use llamaduo_proto::task::{
    Answerer, InferTask, JudgeTask, Lane, SynthesizeTask, TaskOutput, TaskSpec, TrainTask,
};

use super::hash::hash;
use super::run::{Run, Task, TaskKind, Work};

/// Shards of one subject or one synthesis. Three subjects of 32 and what else begins a cycle stay below the 128
/// operations of a transaction; larger runs get larger shards.
const SHARDS_MAX: u32 = 32;

/// Work that no run can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWork {
    /// Training on the test split.
    #[error(
        "train_digest and test_digest are the same artifact; split the coverage dataset so that the test prompts are never trained on"
    )]
    TrainIsTest,
}

/// Refuses a migration that would train on its test split.
pub fn check_work(work: &Work) -> Result<(), InvalidWork> {
    match work {
        Work::Migration(spec) if spec.coverage.train == spec.coverage.test => Err(InvalidWork::TrainIsTest),
        Work::Migration(_) | Work::Single { .. } => Ok(()),
    }
}

impl TaskKind {
    /// The id of such a task in `cycle`: the same whenever it is worked out.
    pub fn id(&self, cycle: Cycle) -> TaskId {
        let Cycle(cycle) = cycle;
        let text = match self {
            Self::Train => format!("c{cycle:02}-train"),
            Self::Infer { subject, shard } => format!("c{cycle:02}-infer-{}-{shard:03}", name(*subject)),
            Self::Judge { subject, shard } => format!("c{cycle:02}-judge-{}-{shard:03}", name(*subject)),
            Self::Synthesize { shard } => format!("c{cycle:02}-synthesize-{shard:03}"),
            Self::Single => "task".to_owned(),
        };
        TaskId::new(&text).expect("lower-case letters, digits and hyphens, at most 40 characters")
    }

    /// Which of a worker's slots it takes; a single task's is in its spec.
    fn lane(&self) -> Option<Lane> {
        match self {
            Self::Train => Some(Lane::LocalModel),
            Self::Infer {
                subject: Subject::Service,
                ..
            }
            | Self::Judge { .. }
            | Self::Synthesize { .. } => Some(Lane::Service),
            Self::Infer { .. } => Some(Lane::LocalModel),
            Self::Single => None,
        }
    }
}

fn name(subject: Subject) -> &'static str {
    match subject {
        Subject::Base(Quantization::None) => "base-none",
        Subject::Base(Quantization::Nf4) => "base-nf4",
        Subject::Base(Quantization::Nf4Double) => "base-nf4-double",
        Subject::Service => "service",
        Subject::Adapter(_) => "adapter",
    }
}

/// A division into shards: how many, and how large each but the last is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shards {
    pub(super) n: u32,
    size: u32,
    total: u32,
}

impl Shards {
    /// `total` things, `size` to a shard unless that makes more than [`SHARDS_MAX`].
    fn of(total: u32, size: u32) -> Self {
        let size = size.max(1).max(total.div_ceil(SHARDS_MAX));
        Self {
            n: total.div_ceil(size),
            size,
            total,
        }
    }

    /// The first thing of a shard and how many it has.
    fn get(self, shard: u32) -> (u32, u32) {
        let first = shard.saturating_mul(self.size);
        (first, self.size.min(self.total.saturating_sub(first)))
    }
}

/// Division of the test prompts.
pub(super) fn infer_shards(spec: &RunSpec) -> Shards {
    Shards::of(spec.coverage.n_test, spec.infer.prompts_per_task)
}

/// Division of the synthesis calls.
pub(super) fn synthesis_shards(spec: &RunSpec) -> Shards {
    let n_calls = spec
        .synthesis
        .samples_per_cycle
        .div_ceil(spec.synthesis.pairs_per_call.max(1));
    Shards::of(n_calls, spec.synthesis.calls_per_task)
}

/// Who is measured in a cycle: floor and ceiling in cycle 0, the cycle's adapter after.
pub(super) fn subjects(spec: &RunSpec, cycle: Cycle) -> Vec<Subject> {
    if cycle > Cycle(0) {
        return vec![Subject::Adapter(cycle)];
    }
    let quantization = spec.local_model.quantization;
    let mut subjects = vec![Subject::Base(quantization)];
    if spec.measure_base_unquantized && quantization != Quantization::None {
        subjects.push(Subject::Base(Quantization::None));
    }
    subjects.push(Subject::Service);
    subjects
}

impl Run {
    /// What a task has to do; `None` while what it builds on is missing.
    pub fn task_spec(&self, id: &TaskId) -> Option<TaskSpec> {
        let task = self.tasks.get(id)?;
        match &*self.work {
            Work::Single { spec, .. } => Some((**spec).clone()),
            Work::Migration(spec) => self.migration_task_spec(spec, task, id),
        }
    }

    /// Which of a worker's slots a task takes.
    pub fn lane(&self, task: &Task) -> Lane {
        match &*self.work {
            Work::Single { spec, .. } => spec.lane(),
            Work::Migration(_) => task.record.kind.lane().unwrap_or(Lane::Service),
        }
    }

    /// The stage and the subject of a task.
    pub fn stage(&self, task: &Task) -> (Stage, Option<Subject>) {
        match (task.record.kind, &*self.work) {
            (TaskKind::Train, _) => (Stage::Train, None),
            (TaskKind::Infer { subject, .. }, _) => (Stage::Infer, Some(subject)),
            (TaskKind::Judge { subject, .. }, _) => (Stage::Judge, Some(subject)),
            (TaskKind::Synthesize { .. }, _) => (Stage::Synthesize, None),
            (TaskKind::Single, Work::Single { spec, .. }) => (spec.stage(), spec.subject()),
            (TaskKind::Single, Work::Migration(_)) => (Stage::Train, None),
        }
    }

    fn migration_task_spec(&self, spec: &RunSpec, task: &Task, id: &TaskId) -> Option<TaskSpec> {
        let cycle = task.record.cycle;
        let seed = |parts: &[&str]| hash(spec.seed, parts);
        Some(match task.record.kind {
            TaskKind::Train => TaskSpec::Train(TrainTask {
                cycle,
                local_model: spec.local_model.clone(),
                data: self.training_data(spec, cycle).0,
                settings: spec.train.clone(),
                seed: seed(&[id.as_str()]),
                init_adapter: match spec.train.train_from {
                    TrainFrom::LastAdapter if cycle.0 > 1 => Some(self.adapter(Cycle(cycle.0 - 1))?),
                    TrainFrom::LastAdapter | TrainFrom::Base => None,
                },
            }),
            TaskKind::Infer { subject, shard } => {
                let (first_prompt, n_prompts) = infer_shards(spec).get(shard);
                TaskSpec::Infer(InferTask {
                    cycle,
                    answerer: self.answerer(spec, subject)?,
                    test: spec.coverage.test,
                    first_prompt,
                    n_prompts,
                    settings: spec.infer.clone(),
                    seed: seed(&[id.as_str()]),
                })
            }
            TaskKind::Judge { subject, shard } => TaskSpec::Judge(JudgeTask {
                cycle,
                subject: Some(subject),
                judge_llm: spec.judge_llm.clone(),
                test: spec.coverage.test,
                responses: self.responses(cycle, subject, shard)?,
                settings: spec.judge.clone(),
            }),
            TaskKind::Synthesize { shard } => {
                let (first_call, n_calls) = synthesis_shards(spec).get(shard);
                TaskSpec::Synthesize(SynthesizeTask {
                    cycle,
                    service_llm: spec.service_llm.clone(),
                    train: spec.coverage.train,
                    first_call,
                    n_calls,
                    settings: spec.synthesis.clone(),
                    topic: spec.topic.clone(),
                    seed: seed(&["synthesize", &cycle.0.to_string()]),
                })
            }
            TaskKind::Single => return None,
        })
    }

    fn answerer(&self, spec: &RunSpec, subject: Subject) -> Option<Answerer> {
        let reference = || spec.local_model.reference.clone();
        Some(match subject {
            Subject::Base(quantization) => Answerer::Base {
                local_model: LocalModelSpec {
                    reference: reference(),
                    quantization,
                    compute: spec.local_model.compute,
                },
            },
            Subject::Service => Answerer::Service {
                service_llm: spec.service_llm.clone(),
            },
            Subject::Adapter(cycle) => Answerer::Adapter {
                local_model: spec.local_model.clone(),
                adapter: self.adapter(cycle)?,
            },
        })
    }

    fn responses(&self, cycle: Cycle, subject: Subject, shard: u32) -> Option<Digest> {
        match self
            .tasks
            .get(&TaskKind::Infer { subject, shard }.id(cycle))?
            .record
            .result
            .as_ref()?
            .output
        {
            TaskOutput::Infer(output) => Some(output.responses),
            TaskOutput::Train(_) | TaskOutput::Judge(_) | TaskOutput::Synthesize(_) => None,
        }
    }
}
