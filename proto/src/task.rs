//! Tasks, their results and their failures.
//!
//! Invariant: a [`TaskSpec`] names every input by digest; doing it needs nothing else.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::ids::{AttemptNumber, Cycle, WorkerId};
use crate::run::{
    InferSettings, JudgeSettings, LocalModelSpec, ServiceLlmSpec, Stage, Subject, SynthesisSettings,
    TrainSettings,
};

/// What a worker has to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskSpec {
    /// Fine-tune.
    Train(TrainTask),
    /// Answer test prompts.
    Infer(InferTask),
    /// Grade responses.
    Judge(JudgeTask),
    /// Write new pairs.
    Synthesize(SynthesizeTask),
}

/// Which of a worker's slots a task takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// The local model: train, and infer by base or adapter.
    LocalModel,
    /// Calls to service LLMs.
    Service,
}

impl TaskSpec {
    /// The stage it belongs to.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Train(_) => Stage::Train,
            Self::Infer(_) => Stage::Infer,
            Self::Judge(_) => Stage::Judge,
            Self::Synthesize(_) => Stage::Synthesize,
        }
    }

    /// The cycle it belongs to.
    pub fn cycle(&self) -> Cycle {
        match self {
            Self::Train(task) => task.cycle,
            Self::Infer(task) => task.cycle,
            Self::Judge(task) => task.cycle,
            Self::Synthesize(task) => task.cycle,
        }
    }

    /// Whose responses it makes or grades, where that is known.
    pub fn subject(&self) -> Option<Subject> {
        match self {
            Self::Infer(task) => Some(task.answerer.subject(task.cycle)),
            Self::Judge(task) => task.subject,
            Self::Train(_) | Self::Synthesize(_) => None,
        }
    }

    /// Which of a worker's slots it takes.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Train(_) => Lane::LocalModel,
            Self::Infer(task) => match task.answerer {
                Answerer::Service { .. } => Lane::Service,
                Answerer::Base { .. } | Answerer::Adapter { .. } => Lane::LocalModel,
            },
            Self::Judge(_) | Self::Synthesize(_) => Lane::Service,
        }
    }
}

/// Fine-tune the base on samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainTask {
    /// From 1.
    pub cycle: Cycle,
    /// The student.
    pub local_model: LocalModelSpec,
    /// Artifacts of JSONL samples, in order; at least one.
    pub data: Vec<Digest>,
    /// How to train.
    pub settings: TrainSettings,
    /// Seed of initialisation, data order and dropout.
    pub seed: u64,
    /// Manifest of the adapter to start from.
    pub init_adapter: Option<Digest>,
}

/// Answer some of the test prompts, K times each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferTask {
    /// 0 for floor and ceiling.
    pub cycle: Cycle,
    /// Who answers, and with what.
    pub answerer: Answerer,
    /// Artifact of the test split.
    pub test: Digest,
    /// First prompt, by position in the test split.
    pub first_prompt: u32,
    /// Prompts, at least 1.
    pub n_prompts: u32,
    /// How to answer.
    pub settings: InferSettings,
    /// Seed of sampling.
    pub seed: u64,
}

/// Who answers, with what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answerer {
    /// The bare base.
    Base {
        /// Model and how it is held.
        local_model: LocalModelSpec,
    },
    /// Base and adapter.
    Adapter {
        /// Model and how it is held.
        local_model: LocalModelSpec,
        /// Manifest of the adapter.
        adapter: Digest,
    },
    /// The service LLM.
    Service {
        /// How to reach it.
        service_llm: ServiceLlmSpec,
    },
}

impl Answerer {
    /// The subject it stands for in `cycle`.
    pub fn subject(&self, cycle: Cycle) -> Subject {
        match self {
            Self::Base { local_model } => Subject::Base(local_model.quantization),
            Self::Adapter { .. } => Subject::Adapter(cycle),
            Self::Service { .. } => Subject::Service,
        }
    }
}

/// Grade the responses of one infer task, M times each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeTask {
    /// The cycle.
    pub cycle: Cycle,
    /// Whose responses; `None` where responses are judged alone and nobody said.
    pub subject: Option<Subject>,
    /// The judge.
    pub judge_llm: ServiceLlmSpec,
    /// Artifact of the test split.
    pub test: Digest,
    /// Artifact of JSONL responses.
    pub responses: Digest,
    /// How to grade.
    pub settings: JudgeSettings,
}

/// Write new pairs like the train pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthesizeTask {
    /// The cycle that fell short.
    pub cycle: Cycle,
    /// The teacher.
    pub service_llm: ServiceLlmSpec,
    /// Artifact of the train split: the only source of examples.
    pub train: Digest,
    /// First call, by number within the cycle.
    pub first_call: u32,
    /// Calls, at least 1.
    pub n_calls: u32,
    /// How to write.
    pub settings: SynthesisSettings,
    /// What the prompts are about; may be empty.
    pub topic: String,
    /// Seed of the choice of examples.
    pub seed: u64,
}

/// What a finished attempt gives back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Names the files and their parents.
    pub manifest: Digest,
    /// By kind.
    pub output: TaskOutput,
}

/// What a finished attempt gives back, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutput {
    /// Of a train task.
    Train(TrainOutput),
    /// Of an infer task.
    Infer(InferOutput),
    /// Of a judge task.
    Judge(JudgeOutput),
    /// Of a synthesize task.
    Synthesize(SynthesizeOutput),
}

/// Of a train task; the manifest holds `adapter_config.json`, `adapter_model.safetensors`, `train_log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOutput {
    /// Samples.
    pub n_samples: u32,
    /// Tokens of one pass.
    pub n_tokens: u64,
    /// Optimizer steps.
    pub n_steps: u32,
    /// Loss of the first step.
    pub loss_first: f64,
    /// Loss of the last step.
    pub loss_last: f64,
    /// Seconds, over all attempts.
    pub seconds: f64,
}

/// Of an infer task; the manifest holds `responses.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferOutput {
    /// `responses.jsonl`.
    pub responses: Digest,
    /// Rows of it.
    pub n_responses: u32,
    /// Tokens generated.
    pub n_tokens: u64,
    /// Seconds.
    pub seconds: f64,
}

/// Of a judge task; the manifest holds `verdicts.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeOutput {
    /// `verdicts.jsonl`.
    pub verdicts: Digest,
    /// Verdicts with scores.
    pub n_graded: u32,
    /// Replies that could not be parsed.
    pub n_unparsed: u32,
}

/// Of a synthesize task; the manifest holds `samples.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthesizeOutput {
    /// `samples.jsonl`: raw items in call order.
    pub samples: Digest,
    /// Rows of it.
    pub n_raw: u32,
    /// Rows that are not a pair.
    pub n_malformed: u32,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    /// Ready to be leased, perhaps after a back-off.
    Ready,
    /// Leased.
    Running,
    /// Result committed.
    Done,
    /// Given up on.
    Quarantined,
    /// Its run ended first.
    Cancelled,
}

/// Why an attempt ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// May succeed another time.
    Retryable,
    /// Cannot succeed.
    Permanent,
    /// Not enough memory.
    OutOfMemory,
    /// Cancelled on request.
    Cancelled,
    /// The worker's process is gone.
    WorkerLost,
    /// No heartbeat within the lease.
    LeaseExpired,
    /// An artifact is missing or damaged.
    CorruptInput,
    /// The service LLM refuses for good; ends the run.
    ServiceRefused,
    /// The service LLM cannot be reached or keeps failing; ends the run after as many tries as any task gets.
    ServiceUnavailable,
    /// The budget allows no further call; ends the run.
    BudgetSpent,
    /// Given back while draining; does not count.
    Released,
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// A sentence for people.
    pub message: String,
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Who ran it.
    pub worker: WorkerId,
}

/// How far an attempt is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub n_done: u64,
    /// Units in all; 0 is unknown.
    pub n_total: u64,
    /// What is counted.
    pub unit: String,
    /// A few words; may be empty.
    pub detail: String,
}
