//! How much of a CUDA device's memory a model, a training step and a batch of responses take, and what to change where
//! that is more than there is.
//!
//! Invariant: nothing is read or allocated here: a plan is a function of sizes. It is never less than what the engine and
//! the backend ask the driver for, and more by at most [`SLACK_BYTES_PER_ROW`] for each row of a step, or by what operations
//! can share of what they keep: `tests.rs` counts.
//!
//! The shapes are those of `model/activations.rs`, `model/decoder.rs` and `model/cached.rs`; what an operation takes
//! beside its operands is `llamaduo_kernels::cuda::memory`'s to say.

mod fit;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::collections::BTreeSet;

use llamaduo_kernels::cuda::memory::{
    CONTEXT_BYTES, act, attention_backward, bf16_weight, choices, cross_entropy, kv_cache, lora_backward,
    lora_pairs, nf4_weight, sequences, sum_squares, words,
};
use serde::Serialize;

pub(crate) use fit::gib;
pub use fit::{StepSizes, fit_base, fit_generation, fit_training};

use crate::config::ModelConfig;
use crate::generate::{BatchOptions, PAGE_LEN, PREFILL_ROWS};
use crate::local_model::BaseQuant;
use crate::lora::{LinearName, LoraConfig, LoraLayout};

/// Documents are not planned one by one: their number is taken as if each row of a step were one of its own. So are labels:
/// where fewer rows have one than logits are held of, the logits of those rows are less than is planned.
pub const SLACK_BYTES_PER_ROW: u64 = 48;

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The linears of the blocks.
    Linears,
    /// Embedding and head.
    Embeddings,
    /// Norms, biases and the frequencies of the rotary embedding.
    Vectors,
    /// The adapters' parameters, and where of several each lies.
    Adapter,
    /// Its gradients and both moments.
    Optimizer,
    /// Keys and values of all layers.
    Cache,
    /// What a pass keeps for the backward.
    Kept,
    /// What lives within a step.
    Step,
    /// What operations need beside their operands.
    Operations,
    /// The driver's own.
    Context,
}

impl Part {
    /// All of them, those of the base first.
    pub const ALL: [Self; 10] = [
        Self::Linears,
        Self::Embeddings,
        Self::Vectors,
        Self::Adapter,
        Self::Optimizer,
        Self::Cache,
        Self::Kept,
        Self::Step,
        Self::Operations,
        Self::Context,
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linears => "linears of the blocks",
            Self::Embeddings => "embedding and head",
            Self::Vectors => "norms, biases, frequencies",
            Self::Adapter => "adapter",
            Self::Optimizer => "its gradients and moments",
            Self::Cache => "keys and values",
            Self::Kept => "activations kept for the backward",
            Self::Step => "a step's other buffers",
            Self::Operations => "what operations need beside",
            Self::Context => "the driver's own (assumed)",
        }
    }
}

/// Bytes by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    parts: Vec<(Part, u64)>,
}

impl MemoryPlan {
    /// Each part, those of the base first.
    pub fn parts(&self) -> &[(Part, u64)] {
        &self.parts
    }

    /// All together.
    pub fn bytes(&self) -> u64 {
        sum(self.parts.iter().map(|&(_, bytes)| bytes))
    }

    /// One part; 0 where it is not planned.
    pub fn part(&self, part: Part) -> u64 {
        sum(self
            .parts
            .iter()
            .filter(|(of, _)| *of == part)
            .map(|&(_, bytes)| bytes))
    }
}

/// A base model as it is held.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// What it is.
    pub config: &'a ModelConfig,
    /// How its linears are held. With [`BaseQuant::None`] they are taken for bf16; a file in NF4 needs less.
    pub quant: BaseQuant,
}

/// One forward and backward.
#[derive(Clone, Copy, Debug)]
pub struct TrainingStep<'a> {
    /// Size and place of the adapter.
    pub lora: &'a LoraConfig,
    /// Tokens that are run at once.
    pub tokens: usize,
    /// Whether activations are made again in the backward.
    pub recompute: bool,
}

/// Responses that grow together.
#[derive(Clone, Copy, Debug)]
pub struct GenerationBatch<'a> {
    /// What the responses go through, each once: adapters of this size and place, and `None` for the base alone.
    pub adapters: &'a [Option<&'a LoraConfig>],
    /// How many responses, and how many bytes of keys and values at most.
    pub options: BatchOptions,
    /// Most tokens of a response together with its prompt.
    pub context: usize,
}

impl Base<'_> {
    /// What it takes before anything is done with it.
    pub fn alone(&self) -> MemoryPlan {
        let mut parts = self.weights();
        parts.push((Part::Context, CONTEXT_BYTES));
        MemoryPlan { parts }
    }

    /// What training takes.
    pub fn training(&self, step: TrainingStep<'_>) -> MemoryPlan {
        let (config, m) = (self.config, step.tokens);
        let layout = LoraLayout::new(config, step.lora);
        let (n_streams, n_layers) = match step.recompute {
            true => (config.n_layers + 1, 1),
            false => (config.n_layers + 1, config.n_layers),
        };
        let kept = (n_streams as u64).saturating_mul(act(&[m, config.hidden]));
        let layers = (n_layers as u64).saturating_mul(layer_bytes(config, m, layout.rank()));
        let mut parts = self.weights();
        parts.extend([
            (Part::Adapter, words(&[layout.len()])),
            (Part::Optimizer, words(&[layout.len()]).saturating_mul(3)),
            (Part::Kept, kept.saturating_add(layers)),
            (
                Part::Step,
                step_bytes(config, m).saturating_add(gradient_bytes(config, m)),
            ),
            (Part::Operations, training_operations(config, &layout, step)),
            (Part::Context, CONTEXT_BYTES),
        ]);
        MemoryPlan { parts }
    }

    /// What generation takes.
    pub fn generation(&self, batch: GenerationBatch<'_>) -> MemoryPlan {
        let config = self.config;
        let n_responses = batch.options.max_batch;
        let m = PREFILL_ROWS.max(n_responses);
        let loras = || batch.adapters.iter().copied().flatten();
        let rank = loras().map(|lora| lora.rank).max().unwrap_or(0);
        let n_pages_each = batch.context.saturating_sub(1).div_ceil(PAGE_LEN).max(1);
        let n_pages = (batch.options.n_pages_max(config))
            .min(n_responses.saturating_mul(n_pages_each))
            .max(n_pages_each);
        let cache = kv_cache(config.heads, n_pages, PAGE_LEN).saturating_mul(config.n_layers as u64);
        let two_streams = 2 * act(&[m, config.hidden]);
        let logits = words(&[n_responses, config.vocab_size]);
        // Of a response's prompt, what it shares and what is its own are written as if they were two.
        let most = [m, n_responses.saturating_mul(2), batch.context];
        let n_windows = config.windows.iter().collect::<BTreeSet<_>>().len();
        let operations = [
            sequences(config.heads, most, PAGE_LEN, n_windows),
            choices(n_responses, config.vocab_size, batch.context),
            3 * words(&[m]), // tokens, positions and adapters
        ];
        let mut parts = self.weights();
        if rank > 0 {
            let params = sum(loras().map(|lora| words(&[LoraLayout::new(config, lora).len()])));
            let places = self.places_of_pairs(batch.adapters);
            parts.push((Part::Adapter, params.saturating_add(places)));
        }
        parts.extend([
            (Part::Cache, cache),
            (
                Part::Step,
                sum([
                    two_streams,
                    layer_bytes(config, m, rank),
                    step_bytes(config, m),
                    logits,
                ]),
            ),
            (Part::Operations, sum(operations)),
            (Part::Context, CONTEXT_BYTES),
        ]);
        MemoryPlan { parts }
    }

    /// Where the pairs of several adapters are, as `AdapterSet` holds it: of each linear in which one has a pair.
    fn places_of_pairs(&self, adapters: &[Option<&LoraConfig>]) -> u64 {
        let loras: Vec<&LoraConfig> = adapters.iter().copied().flatten().collect();
        let linears: BTreeSet<LinearName> = loras.iter().flat_map(|lora| lora.targets.linears()).collect();
        let n_tables = match adapters.len() {
            0 | 1 => 0,
            _ => (linears.len() * self.config.n_layers) as u64,
        };
        n_tables.saturating_mul(lora_pairs(loras.len()))
    }

    /// What the base itself takes, as `Model::load` loads it.
    fn weights(&self) -> Vec<(Part, u64)> {
        let config = self.config;
        let n_layers = config.n_layers as u64;
        let linears = LinearName::ALL.map(|name| {
            let (n_in, n_out) = name.shape(config);
            match self.quant {
                BaseQuant::Nf4 { double } => nf4_weight(n_out, n_in, double),
                BaseQuant::None => bf16_weight(n_out, n_in),
            }
        });
        let n_embeddings = if config.tied_head { 1 } else { 2 };
        vec![
            (Part::Linears, sum(linears).saturating_mul(n_layers)),
            (
                Part::Embeddings,
                n_embeddings * bf16_weight(config.vocab_size, config.hidden),
            ),
            (
                Part::Vectors,
                (layer_vectors(config).saturating_mul(n_layers)).saturating_add(words(&[config.hidden])),
            ),
        ]
    }
}

fn sum(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// Norms, biases and frequencies of one block.
fn layer_vectors(config: &ModelConfig) -> u64 {
    let (queries, keys) = head_widths(config);
    let head_dim = config.heads.head_dim;
    let n_norms = if config.post_norms { 4 } else { 2 };
    let biases = match config.attention_bias {
        true => words(&[queries]) + 2 * words(&[keys]),
        false => 0,
    };
    let head_norms = if config.qk_norm { 2 * words(&[head_dim]) } else { 0 };
    n_norms * words(&[config.hidden]) + words(&[head_dim / 2]) + biases + head_norms
}

/// `LayerActivations`.
fn layer_bytes(config: &ModelConfig, m: usize, rank: usize) -> u64 {
    let (queries, keys) = head_widths(config);
    let (n_heads, n_kv_heads) = (config.heads.n_heads, config.heads.n_kv_heads);
    let unnormed = match config.qk_norm {
        true => sum([
            act(&[m, queries]),
            act(&[m, keys]),
            words(&[m, n_heads]),
            words(&[m, n_kv_heads]),
        ]),
        false => 0,
    };
    let unnormed_out = match config.post_norms {
        true => 2 * (act(&[m, config.hidden]).saturating_add(words(&[m]))),
        false => 0,
    };
    sum([
        unnormed,
        unnormed_out,
        2 * act(&[m, queries]), // queries, what the heads read
        2 * act(&[m, keys]),
        words(&[m, n_heads]),
        LinearName::ALL.len() as u64 * words(&[m, rank]),
        act(&[m, config.hidden]),
        2 * act(&[m, config.ffn]),
    ])
}

/// `Scratch`, the final norm's output and the losses.
fn step_bytes(config: &ModelConfig, m: usize) -> u64 {
    sum([
        2 * act(&[m, config.hidden]),
        act(&[m, config.ffn]),
        2 * words(&[m]),
    ])
}

/// `Gradients`.
fn gradient_bytes(config: &ModelConfig, m: usize) -> u64 {
    let (queries, keys) = head_widths(config);
    sum([
        2 * act(&[m, config.hidden]),
        2 * act(&[m, queries]),
        2 * act(&[m, keys]),
        act(&[m, config.ffn]),
    ])
}

/// What the operations of a training step need beside their operands, and the step's tokens, labels and positions. All of
/// it at once: an operation's buffers are kept for the next step.
fn training_operations(config: &ModelConfig, layout: &LoraLayout, step: TrainingStep<'_>) -> u64 {
    let m = step.tokens;
    let widths: BTreeSet<usize> = (step.lora.targets.linears().into_iter())
        .map(|name| {
            let (n_in, n_out) = name.shape(config);
            n_in.max(n_out)
        })
        .collect();
    sum([
        3 * words(&[m]),
        cross_entropy(m, config.hidden, config.vocab_size),
        attention_backward(m, config.heads),
        lora_backward(m, step.lora.rank, widths),
        sum_squares(layout.len()),
    ])
}

/// Features of all query heads and of all key heads together.
fn head_widths(config: &ModelConfig) -> (usize, usize) {
    let heads = config.heads;
    (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim)
}
