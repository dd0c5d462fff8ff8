//! The sections of `llamaduo.toml` as serde reads them, and every default, here and nowhere else.
//!
//! Invariant: a key that is not a field here does not exist; [`super::keys`] derives what it suggests from these.

use llamaduo_data::gate;
use llamaduo_data::score::DEFAULT_COVERAGE_SCORE;
use llamaduo_proto::run::{Compute, CurationSettings};
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) task: TaskSection,
    pub(crate) local: LocalSection,
    pub(crate) service: ServiceSection,
    pub(crate) judge: JudgeSection,
    pub(crate) data: DataSection,
    pub(crate) train: TrainSection,
    pub(crate) infer: InferSection,
    pub(crate) synthesis: SynthesisSection,
    pub(crate) gate: GateSection,
    pub(crate) budget: BudgetSection,
    pub(crate) run: RunSection,
}

/// What the workload is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TaskSection {
    /// Shown to people.
    pub(crate) name: String,
    /// What the prompts are about, told to the service LLM when it writes new pairs.
    pub(crate) topic: String,
}

impl Default for TaskSection {
    fn default() -> Self {
        Self {
            name: "migration".to_owned(),
            topic: String::new(),
        }
    }
}

/// The student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LocalSection {
    /// Directory, `.gguf` file, Hugging Face id, or known name.
    pub(crate) base: String,
    /// How the frozen base is held.
    pub(crate) quant: Quant,
    /// What the operands of matrix products are rounded to on a CPU.
    pub(crate) compute: Compute,
}

impl Default for LocalSection {
    fn default() -> Self {
        Self {
            base: "smollm2-135m-instruct".to_owned(),
            quant: Quant::Nf4,
            compute: Compute::F32,
        }
    }
}

/// How the frozen base is held, as the user spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quant {
    /// NF4 with 8-bit scales.
    Nf4,
    /// NF4 with float32 scales.
    #[value(name = "nf4_single")]
    Nf4Single,
    /// The file's own values.
    None,
}

/// The teacher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServiceSection {
    pub(crate) vendor: Vendor,
    /// Model name as the vendor spells it; has no default.
    pub(crate) model: Option<String>,
    /// Root of the API; absent is the vendor's own.
    pub(crate) base_url: Option<String>,
    /// Name of the environment variable that holds the key.
    pub(crate) api_key_env: Option<String>,
    /// File that holds the key.
    pub(crate) api_key_file: Option<String>,
    pub(crate) temperature: Option<f32>,
    /// Longest answer, tokens.
    pub(crate) max_tokens: u32,
    /// Calls a worker keeps in flight.
    pub(crate) concurrency: u32,
    pub(crate) requests_per_minute: Option<u32>,
    /// Absent: taken from the price book.
    pub(crate) input_usd_per_mtok: Option<f64>,
    pub(crate) output_usd_per_mtok: Option<f64>,
    /// Whether the server takes a JSON schema.
    pub(crate) json_schema: bool,
    /// One call is given up after so long.
    pub(crate) timeout_seconds: u32,
}

impl Default for ServiceSection {
    fn default() -> Self {
        Self {
            vendor: Vendor::Openai,
            model: None,
            base_url: None,
            api_key_env: None,
            api_key_file: None,
            temperature: None,
            // Enough for several synthesized pairs in one answer.
            max_tokens: 2048,
            concurrency: 4,
            requests_per_minute: None,
            input_usd_per_mtok: None,
            output_usd_per_mtok: None,
            json_schema: true,
            // Long answers of busy services take minutes; giving up early pays for them twice.
            timeout_seconds: 600,
        }
    }
}

/// Whose protocol a service LLM speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Vendor {
    /// OpenAI chat completions and everything compatible with it.
    Openai,
}

/// The judge: what is absent is as in `[service]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JudgeSection {
    pub(crate) vendor: Option<Vendor>,
    pub(crate) model: Option<String>,
    pub(crate) base_url: Option<String>,
    pub(crate) api_key_env: Option<String>,
    pub(crate) api_key_file: Option<String>,
    pub(crate) temperature: Option<f32>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) requests_per_minute: Option<u32>,
    pub(crate) input_usd_per_mtok: Option<f64>,
    pub(crate) output_usd_per_mtok: Option<f64>,
    pub(crate) json_schema: Option<bool>,
    pub(crate) timeout_seconds: Option<u32>,
    /// M.
    pub(crate) gradings_per_response: u32,
    /// File of a prompt template; absent is the built-in one.
    pub(crate) prompt: Option<String>,
}

impl Default for JudgeSection {
    fn default() -> Self {
        Self {
            vendor: None,
            model: None,
            base_url: None,
            api_key_env: None,
            api_key_file: None,
            temperature: None,
            max_tokens: None,
            concurrency: None,
            requests_per_minute: None,
            input_usd_per_mtok: None,
            output_usd_per_mtok: None,
            json_schema: None,
            timeout_seconds: None,
            // M of the paper.
            gradings_per_response: 10,
            prompt: None,
        }
    }
}

/// The coverage dataset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DataSection {
    /// JSONL file of `{"messages": [...]}` rows; has no default.
    pub(crate) coverage: Option<String>,
    /// Pairs in the test split; not together with `test_ratio`.
    pub(crate) test_count: Option<u32>,
    /// Share of pairs in the test split; 0.2 when neither is given.
    pub(crate) test_ratio: Option<f64>,
    /// Seed of the split.
    pub(crate) seed: u64,
}

/// Share of the test split when the user does not say: a fifth, as is common for a few hundred pairs.
pub(super) const TEST_RATIO_DEFAULT: f64 = 0.2;

/// Fine-tuning. LoRA as in the paper's Table 5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TrainSection {
    pub(crate) lora_rank: u32,
    pub(crate) lora_alpha: f32,
    pub(crate) lora_dropout: f32,
    pub(crate) lora_targets: LoraTargets,
    pub(crate) epochs: f32,
    pub(crate) learning_rate: f32,
    pub(crate) warmup_ratio: f32,
    pub(crate) weight_decay: f32,
    /// 0 is no clipping.
    pub(crate) gradient_norm_max: f32,
    /// Rows in one optimizer step.
    pub(crate) batch_rows: u32,
    /// Longest sequence.
    pub(crate) sequence_tokens: u32,
    pub(crate) loss_on: LossOn,
    /// Whether short samples share a row.
    pub(crate) packing: bool,
    /// Absent: a checkpoint at the end of each epoch, and one a minute between.
    pub(crate) checkpoint_steps: Option<u32>,
    pub(crate) recompute: bool,
    pub(crate) train_from: TrainFrom,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.05,
            lora_targets: LoraTargets::AllLinear,
            epochs: 1.0,
            learning_rate: 2e-4,
            warmup_ratio: 0.1,
            weight_decay: 0.0,
            gradient_norm_max: 1.0,
            batch_rows: 4,
            sequence_tokens: 1024,
            loss_on: LossOn::WholeSequence,
            packing: true,
            checkpoint_steps: None,
            recompute: false,
            train_from: TrainFrom::Base,
        }
    }
}

/// Linear layers that get an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoraTargets {
    AllLinear,
    QueryValue,
}

/// Where the loss is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LossOn {
    WholeSequence,
    ResponseOnly,
}

/// Which weights a cycle starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TrainFrom {
    Base,
    LastAdapter,
}

/// Answering the test prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct InferSection {
    /// K.
    pub(crate) responses_per_prompt: u32,
    /// 0 is greedy.
    pub(crate) temperature: f32,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    /// Texts before which a response ends.
    pub(crate) stop: Vec<String>,
    /// Whether responses tell how likely each of their tokens was.
    pub(crate) logprobs: bool,
    /// Longest response.
    pub(crate) max_tokens: u32,
    pub(crate) prompts_per_task: u32,
    /// Sequences decoded together.
    pub(crate) batch: u32,
}

impl Default for InferSection {
    fn default() -> Self {
        Self {
            // K of the paper.
            responses_per_prompt: 4,
            // As the paper samples.
            temperature: 0.4,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            stop: Vec::new(),
            logprobs: false,
            max_tokens: 512,
            prompts_per_task: 8,
            batch: 32,
        }
    }
}

/// Writing new pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SynthesisSection {
    /// Raw pairs asked for after a cycle that fell short.
    pub(crate) samples_per_cycle: u32,
    pub(crate) pairs_per_call: u32,
    pub(crate) examples_per_call: u32,
    pub(crate) calls_per_task: u32,
    /// File of a prompt template; absent is the built-in one.
    pub(crate) prompt: Option<String>,
    pub(crate) curation: CurationSection,
}

impl Default for SynthesisSection {
    fn default() -> Self {
        Self {
            samples_per_cycle: 500,
            pairs_per_call: 5,
            examples_per_call: 3,
            calls_per_task: 8,
            prompt: None,
            curation: CurationSection::default(),
        }
    }
}

/// What new pairs must satisfy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CurationSection {
    pub(crate) near_duplicate_jaccard: f64,
    /// Above 1 is off.
    pub(crate) novelty_rouge_l: f64,
    pub(crate) contamination_rouge_l: f64,
    pub(crate) contamination_run_words: u32,
    pub(crate) prompt_words_min: u32,
    pub(crate) prompt_words_max: u32,
    pub(crate) response_words_max: u32,
    /// Responses must be one JSON object with the keys that the train responses share.
    pub(crate) response_json: bool,
}

impl Default for CurationSection {
    /// The protocol's own defaults.
    fn default() -> Self {
        let CurationSettings {
            near_duplicate_jaccard,
            novelty_rouge_l,
            contamination_rouge_l,
            contamination_run_words,
            prompt_words_min,
            prompt_words_max,
            response_words_max,
            response_json,
        } = CurationSettings::default();
        Self {
            near_duplicate_jaccard,
            novelty_rouge_l,
            contamination_rouge_l,
            contamination_run_words,
            prompt_words_min,
            prompt_words_max,
            response_words_max,
            response_json,
        }
    }
}

/// When the local model is good enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GateSection {
    pub(crate) rule: GateRule,
    /// Of the relative rule. The keys of the rule that does not decide are those of the report's comparison.
    pub(crate) ratio_min: f64,
    /// Of the absolute rule.
    pub(crate) similarity_mean_min: f64,
    /// Of the absolute rule.
    pub(crate) precision_mean_min: f64,
    /// Of the absolute rule: a share.
    pub(crate) coverage_min: f64,
    /// Score from which a response counts as covered.
    pub(crate) coverage_score: f64,
}

impl Default for GateSection {
    fn default() -> Self {
        Self {
            rule: GateRule::Relative,
            ratio_min: gate::DEFAULT_RATIO,
            similarity_mean_min: gate::PAPER_MEAN,
            precision_mean_min: gate::PAPER_MEAN,
            coverage_min: gate::PAPER_COVERAGE,
            coverage_score: DEFAULT_COVERAGE_SCORE,
        }
    }
}

/// The gate's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GateRule {
    /// Against the service LLM on the same prompts.
    Relative,
    /// Fixed thresholds.
    Absolute,
}

/// What may be spent; absent is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BudgetSection {
    pub(crate) max_usd: Option<f64>,
    pub(crate) max_calls: Option<u64>,
}

/// The run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RunSection {
    /// Training cycles before the run gives up.
    pub(crate) cycles_max: u32,
    pub(crate) seed: u64,
    /// Also measure the base as the model file holds it.
    pub(crate) measure_base_unquantized: bool,
}

impl Default for RunSection {
    fn default() -> Self {
        Self {
            cycles_max: 5,
            seed: 0,
            measure_base_unquantized: false,
        }
    }
}
