//! A run's specification and results as the rest of the product uses them: parsed once, valid ever after.
//!
//! Invariant: a [`RunSpec`] made by `TryFrom<wire::RunSpec>` needs no further checking.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::ids::Cycle;

/// Everything that decides what a run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Shown to people.
    pub name: String,
    /// What the prompts are about; may be empty.
    pub topic: String,
    /// The student.
    pub local_model: LocalModelSpec,
    /// The teacher.
    pub service_llm: ServiceLlmSpec,
    /// The judge.
    pub judge_llm: ServiceLlmSpec,
    /// The coverage dataset.
    pub coverage: CoverageDataset,
    /// Fine-tuning.
    pub train: TrainSettings,
    /// Batch inference.
    pub infer: InferSettings,
    /// Grading.
    pub judge: JudgeSettings,
    /// Writing new pairs.
    pub synthesis: SynthesisSettings,
    /// When the local model is good enough.
    pub gate: Gate,
    /// What may be spent.
    pub budget: Budget,
    /// Training cycles before the run gives up, at least 1.
    pub cycles_max: u32,
    /// Seed of every random choice.
    pub seed: u64,
    /// Also measure the base as the file holds it.
    pub measure_base_unquantized: bool,
    /// What the submitter's command line changed in its config, as `key=value`. Decides nothing: it is for whoever goes
    /// on with the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
}

/// The student model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalModelSpec {
    /// Directory, `.gguf` file, Hugging Face id, or known name.
    pub reference: String,
    /// How the frozen base is held.
    pub quantization: Quantization,
    /// Operands of matrix products on a CPU.
    #[serde(default)]
    pub compute: Compute,
}

/// What the operands of matrix products are rounded to; their sums are float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Not rounded: the default.
    #[default]
    F32,
    /// To bfloat16.
    Bf16,
    /// In reading and answering to integers of at most 14 bits with scales; in training not rounded.
    Int16,
}

impl Compute {
    /// What a model is trained with.
    pub fn for_training(self) -> Self {
        match self {
            Self::Int16 => Self::F32,
            Self::F32 | Self::Bf16 => self,
        }
    }
}

/// How a frozen base is held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// The file's own values.
    None,
    /// NF4 with float32 scales.
    Nf4,
    /// NF4 with 8-bit scales: the default.
    Nf4Double,
}

/// A service LLM as a worker reaches it; names its key, never holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceLlmSpec {
    /// Whose protocol it speaks.
    pub vendor: Vendor,
    /// Model name as the vendor spells it.
    pub model: String,
    /// Root of the API; `None` is the vendor's own.
    pub base_url: Option<String>,
    /// Where the worker finds the key.
    pub api_key: ApiKeySource,
    /// Sampling temperature, sent only when set.
    pub temperature: Option<f32>,
    /// Longest answer, tokens.
    pub tokens_max: u32,
    /// Calls a worker keeps in flight.
    pub concurrency_max: u32,
    /// Requests per minute a worker may start.
    pub requests_per_minute_max: Option<u32>,
    /// US dollars per million (input, output) tokens; `None` asks the price book.
    pub usd_per_mtok: Option<(f64, f64)>,
    /// Whether it takes a JSON schema.
    pub json_schema: bool,
    /// One call is given up after this many milliseconds.
    pub timeout_ms: u32,
}

/// Whose wire protocol a service LLM speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// OpenAI chat completions.
    Openai,
}

/// Where a worker finds a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeySource {
    /// None is sent.
    None,
    /// The worker's environment variable.
    Env(String),
    /// A file on the worker, read anew for each call.
    File(String),
}

/// The human-approved pairs, split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoverageDataset {
    /// Artifact of the train split.
    pub train: Digest,
    /// Artifact of the test split.
    pub test: Digest,
    /// Pairs in the train split, at least 1.
    pub n_train: u32,
    /// Prompts in the test split, at least 1.
    pub n_test: u32,
}

/// Fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// LoRA rank, at least 1.
    pub lora_rank: u32,
    /// LoRA alpha, above 0.
    pub lora_alpha: f32,
    /// Dropout on LoRA inputs, in [0, 1).
    pub lora_dropout: f32,
    /// Which linear layers get an adapter.
    pub lora_targets: LoraTargets,
    /// Passes over the data, above 0.
    pub epochs: f32,
    /// Peak learning rate, above 0.
    pub learning_rate: f32,
    /// Share of steps that warm up, in [0, 1].
    pub warmup_ratio: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest gradient norm; `None` is no clipping.
    pub gradient_norm_max: Option<f32>,
    /// Rows in one optimizer step, at least 1.
    pub batch_rows: u32,
    /// Longest sequence, tokens.
    pub sequence_tokens_max: u32,
    /// Where the loss is taken.
    pub loss_on: LossOn,
    /// Whether short samples share a row.
    pub packing: bool,
    /// Steps between checkpoints; `None` is each epoch's end, and every minute between.
    pub checkpoint_steps: Option<u32>,
    /// Recompute activations in the backward pass.
    pub recompute: bool,
    /// Which weights a cycle starts from.
    pub train_from: TrainFrom,
}

/// Linear layers that get an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTargets {
    /// Every linear layer of the blocks.
    AllLinear,
    /// Query and value projections.
    QueryValue,
}

/// Where the training loss is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Every token of the chat-templated sequence.
    WholeSequence,
    /// The assistant's tokens.
    ResponseOnly,
}

/// Which weights a cycle's training starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainFrom {
    /// The base, on all data so far.
    Base,
    /// The last cycle's adapter.
    LastAdapter,
}

/// Batch inference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferSettings {
    /// Responses per prompt, K, at least 1.
    pub responses_per_prompt: u32,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus; `None` is off.
    pub top_p: Option<f32>,
    /// Keep this many tokens; `None` is off.
    pub top_k: Option<u32>,
    /// Longest response, tokens, at least 1.
    pub tokens_max: u32,
    /// Test prompts in one task, at least 1.
    pub prompts_per_task: u32,
    /// Sequences decoded together, at least 1.
    pub batch_max: u32,
    /// Drop tokens less likely than this part of the likeliest one; `None` is off. This and what follows was added
    /// later and is left out where it says nothing, so that a run recorded before is still the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// On logits of tokens that were asked or said already; `None` is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Texts before which a response ends, beside the model's own end of turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Whether responses tell how likely each of their tokens was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
}

/// Grading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeSettings {
    /// Gradings per response, M, at least 1.
    pub gradings_per_response: u32,
    /// Artifact of the judge's prompt; `None` is the built-in one.
    pub prompt: Option<Digest>,
}

/// Writing new pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthesisSettings {
    /// Raw pairs asked for after a cycle that fell short, at least 1.
    pub samples_per_cycle: u32,
    /// Pairs asked for in one call, at least 1.
    pub pairs_per_call: u32,
    /// Train pairs shown in one call, at least 1.
    pub examples_per_call: u32,
    /// Calls in one task, at least 1.
    pub calls_per_task: u32,
    /// Artifact of the synthesis prompt; `None` is the built-in one.
    pub prompt: Option<Digest>,
    /// What new pairs must satisfy.
    pub curation: CurationSettings,
}

/// What new pairs must satisfy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurationSettings {
    /// Jaccard similarity of near-duplicates.
    pub near_duplicate_jaccard: f64,
    /// ROUGE-L F1 from which a prompt is not novel; above 1 is off.
    pub novelty_rouge_l: f64,
    /// ROUGE-L F1 against a test prompt from which a pair is contaminated.
    pub contamination_rouge_l: f64,
    /// Words of a run shared with a test prompt that contaminates.
    pub contamination_run_words: u32,
    /// Fewest words of a prompt.
    pub prompt_words_min: u32,
    /// Most words of a prompt.
    pub prompt_words_max: u32,
    /// Most words of a response.
    pub response_words_max: u32,
    /// Responses must be one JSON object with the keys that the train responses share.
    pub response_json: bool,
}

impl Default for CurationSettings {
    /// Where near-duplicates begin in the usual practice of instruction data (Jaccard 0.7, ROUGE-L 0.7), and stricter
    /// against the test split.
    fn default() -> Self {
        Self {
            near_duplicate_jaccard: 0.7,
            novelty_rouge_l: 0.7,
            contamination_rouge_l: 0.6,
            contamination_run_words: 10,
            prompt_words_min: 3,
            prompt_words_max: 1_000,
            response_words_max: 1_000,
            response_json: false,
        }
    }
}

/// When the local model is good enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The rule.
    pub rule: GateRule,
    /// Score from which a response counts as covered.
    pub coverage_score: f64,
    /// The rule that is reported beside it and decides nothing; `None` is the default of the other kind.
    #[serde(default)]
    pub compared: Option<GateRule>,
}

/// A gate's rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateRule {
    /// The lower bound of local / service must reach `ratio_min` on both metrics.
    Relative {
        /// The bound.
        ratio_min: f64,
    },
    /// The paper's fixed thresholds.
    Absolute {
        /// Smallest mean similarity.
        similarity_mean_min: f64,
        /// Smallest mean precision.
        precision_mean_min: f64,
        /// Smallest share of covered responses.
        coverage_min: f64,
    },
}

/// What may be spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Billionths of a US dollar.
    pub nano_usd_max: Option<u64>,
    /// Calls.
    pub calls_max: Option<u64>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Work remains.
    Running,
    /// The gate was passed, or the single task is done.
    Passed,
    /// All cycles were used.
    GateNotReached,
    /// The budget allows no further call.
    BudgetSpent,
    /// A service LLM refused for good.
    ServiceFailed,
    /// Cancelled.
    Cancelled,
    /// A task was quarantined or an input is unusable.
    Failed,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The untuned base, held in this way: the floor.
    Base(Quantization),
    /// The service LLM's own fresh answers: the ceiling.
    Service,
    /// The adapter of this cycle.
    Adapter(Cycle),
}

/// Scores of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Similarity to the references.
    pub similarity: MetricScore,
    /// Precision.
    pub precision: MetricScore,
    /// Verdicts with scores.
    pub n_verdicts: u32,
    /// Replies that could not be parsed.
    pub n_unparsed: u32,
}

/// One metric of one subject. Serialized as null where it is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricScore {
    /// Mean over responses; `None` when nothing was graded.
    pub mean: Option<f64>,
    /// Confidence interval of the mean, clustered by prompt; `None` with fewer than two prompts.
    pub interval: Option<(f64, f64)>,
    /// Share of covered responses; `None` when nothing was graded.
    pub coverage: Option<f64>,
}

/// What the gate decided about one cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateDecision {
    /// The rule in words.
    pub rule: String,
    /// The compared value; `None` when there was nothing to compare.
    pub value: Option<f64>,
    /// What it had to reach.
    pub threshold: f64,
    /// Whether it did.
    pub passed: bool,
    /// One sentence.
    pub reason: String,
}

/// What became of the synthesized pairs of one cycle. The parts add up to `n_raw`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurationCounts {
    /// Items received.
    pub n_raw: u32,
    /// Kept.
    pub n_kept: u32,
    /// Exact and near duplicates, and not novel.
    pub n_duplicates: u32,
    /// Malformed, or against a quality rule.
    pub n_filtered: u32,
    /// Too close to a test prompt.
    pub n_contaminated: u32,
}

/// What service-LLM calls cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Calls answered.
    pub n_calls: u64,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Billionths of a US dollar of the calls with a known price.
    pub nano_usd: u64,
    /// Calls whose price is unknown.
    pub n_calls_unpriced: u64,
    /// Calls whose outcome is unknown.
    pub n_calls_unknown: u64,
}

/// Which part of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Fine-tuning.
    Train,
    /// Answering.
    Infer,
    /// Grading.
    Judge,
    /// Writing new pairs.
    Synthesize,
}
