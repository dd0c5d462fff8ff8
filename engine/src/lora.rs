//! Low-rank adapters: which linears get a pair, where each pair lies in the flat buffer, how they begin.
//!
//! Invariant: an [`Adapter`]'s parameters fill its layout exactly, so one AdamW step and one norm over the flat
//! buffer cover all of it.
//!
//! `y = x·Wᵀ + (alpha/R)·(drop(x)·Aᵀ)·Bᵀ` with `A [R, K]`, `B [N, R]` (Hu et al. 2021).

use llamaduo_kernels::{LoraSlot, random};
use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::weights::LayerTensor;

/// A linear layer of a transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LinearName {
    /// Query projection.
    #[serde(rename = "q_proj")]
    Query,
    /// Key projection.
    #[serde(rename = "k_proj")]
    Key,
    /// Value projection.
    #[serde(rename = "v_proj")]
    Value,
    /// Output projection of the attention.
    #[serde(rename = "o_proj")]
    Output,
    /// Gate of the feed-forward block.
    #[serde(rename = "gate_proj")]
    Gate,
    /// What the gate is multiplied with.
    #[serde(rename = "up_proj")]
    Up,
    /// Output projection of the feed-forward block.
    #[serde(rename = "down_proj")]
    Down,
}

impl LinearName {
    /// All of them, in the order a block uses them.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The module's name in transformers, as PEFT's `target_modules` spells it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// `(K, N)`: its input and output features.
    pub const fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let queries = config.heads.n_heads * config.heads.head_dim;
        let keys = config.heads.n_kv_heads * config.heads.head_dim;
        match self {
            Self::Query => (config.hidden, queries),
            Self::Key | Self::Value => (config.hidden, keys),
            Self::Output => (queries, config.hidden),
            Self::Gate | Self::Up => (config.hidden, config.ffn),
            Self::Down => (config.ffn, config.hidden),
        }
    }

    /// Its weight in a base checkpoint.
    pub(crate) const fn tensor(self) -> LayerTensor {
        match self {
            Self::Query => LayerTensor::Query,
            Self::Key => LayerTensor::Key,
            Self::Value => LayerTensor::Value,
            Self::Output => LayerTensor::Output,
            Self::Gate => LayerTensor::Gate,
            Self::Up => LayerTensor::Up,
            Self::Down => LayerTensor::Down,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Which linears of every block get a LoRA pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoraTargets {
    /// All seven: QLoRA's recipe.
    AllLinear,
    /// Queries and values: what PEFT picks by itself for these families, and so the paper's.
    Qv,
    /// These.
    #[serde(untagged)]
    List(Vec<LinearName>),
}

impl LoraTargets {
    /// The linears meant, each once, in the order of [`LinearName::ALL`].
    pub fn linears(&self) -> Vec<LinearName> {
        let wanted = |name: &LinearName| match self {
            Self::AllLinear => true,
            Self::Qv => matches!(name, LinearName::Query | LinearName::Value),
            Self::List(names) => names.contains(name),
        };
        LinearName::ALL.into_iter().filter(wanted).collect()
    }
}

/// Size and place of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// `R`.
    pub rank: usize,
    /// The pair's product is scaled by `alpha / R`.
    pub alpha: f32,
    /// Probability that training drops an element of a pair's input, in `[0, 1)`.
    pub dropout: f32,
    /// Which linears get a pair.
    pub targets: LoraTargets,
}

impl Default for LoraConfig {
    /// The paper's smallest rank on all linears.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.05,
            targets: LoraTargets::AllLinear,
        }
    }
}

/// Ranks beyond this are mistakes: no linear of the supported families gains from them, and memory is bounded by it.
const RANK_MAX: usize = 1024;

impl LoraConfig {
    /// Checks ranges; the error names the field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &'static str, expected: &str, found: String| {
            Err(Error::TrainConfig {
                field,
                expected: expected.to_owned(),
                found,
            })
        };
        if self.rank == 0 || self.rank > RANK_MAX {
            return refuse("lora.rank", "between 1 and 1024", self.rank.to_string());
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return refuse("lora.alpha", "a positive number", self.alpha.to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("lora.dropout", "at least 0 and below 1", self.dropout.to_string());
        }
        if self.targets.linears().is_empty() {
            return refuse("lora.targets", "at least one linear", "none".to_owned());
        }
        Ok(())
    }
}

/// Where each pair lies in the flat parameter buffer: layer by layer, linear by linear, `A` before `B`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayout {
    layers: Vec<[Option<LoraSlot>; 7]>,
    len: usize,
    rank: usize,
}

impl LoraLayout {
    /// The layout that `lora` gives on a model.
    pub fn new(config: &ModelConfig, lora: &LoraConfig) -> Self {
        let linears = lora.targets.linears();
        let mut len = 0;
        let mut layers = Vec::with_capacity(config.n_layers);
        for _ in 0..config.n_layers {
            let mut slots = [None; 7];
            for &name in &linears {
                let (n_in, n_out) = name.shape(config);
                let b_offset = len + lora.rank * n_in;
                let scale = lora.alpha / lora.rank as f32;
                slots[name.index()] = Some(LoraSlot {
                    a_offset: len,
                    b_offset,
                    rank: lora.rank,
                    n_in,
                    n_out,
                    scale,
                });
                len = b_offset + n_out * lora.rank;
            }
            layers.push(slots);
        }
        Self {
            layers,
            len,
            rank: lora.rank,
        }
    }

    /// The pair of a linear, where it has one.
    pub fn slot(&self, layer: usize, name: LinearName) -> Option<LoraSlot> {
        self.layers.get(layer).and_then(|slots| slots[name.index()])
    }

    /// All pairs in the order of the buffer.
    pub fn slots(&self) -> impl Iterator<Item = (usize, LinearName, LoraSlot)> + '_ {
        self.layers.iter().enumerate().flat_map(|(layer, slots)| {
            LinearName::ALL
                .into_iter()
                .filter_map(move |name| slots[name.index()].map(|slot| (layer, name, slot)))
        })
    }

    /// Parameters of all pairs together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no pair at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `R`.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

/// A LoRA adapter in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    config: LoraConfig,
    layout: LoraLayout,
    params: Vec<f32>,
}

impl Adapter {
    /// A fresh adapter that changes nothing yet: `A ~ U(±1/√K)` (Kaiming uniform with a = √5, as PEFT), `B = 0`.
    pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let layout = LoraLayout::new(model, config);
        let mut params = vec![0.0; layout.len()];
        for (layer, name, slot) in layout.slots() {
            let key = random::key(&[seed, INIT_STREAM, layer as u64, name.index() as u64]);
            let bound = 1.0 / (slot.n_in as f64).sqrt();
            for (i, value) in params[slot.a_offset..slot.b_offset].iter_mut().enumerate() {
                *value = (f64::from(random::uniform(key, i as u64)).mul_add(2.0, -1.0) * bound) as f32;
            }
        }
        Ok(Self {
            config: config.clone(),
            layout,
            params,
        })
    }

    /// An adapter of given parameters, which must fill the layout and be finite.
    pub fn from_params(model: &ModelConfig, config: LoraConfig, params: Vec<f32>) -> Result<Self> {
        config.validate()?;
        let layout = LoraLayout::new(model, &config);
        if params.len() != layout.len() {
            return Err(Error::AdapterMismatch {
                expected: format!("{} parameters", layout.len()),
                found: params.len().to_string(),
            });
        }
        for (layer, name, slot) in layout.slots() {
            let pair = &params[slot.a_offset..slot.b_offset + slot.n_out * slot.rank];
            if let Some(&value) = pair.iter().find(|value| !value.is_finite()) {
                return Err(Error::AdapterNotFinite {
                    layer,
                    module: name.module(),
                    value,
                });
            }
        }
        Ok(Self {
            config,
            layout,
            params,
        })
    }

    /// Size and place.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Where each pair lies.
    pub fn layout(&self) -> &LoraLayout {
        &self.layout
    }

    /// The flat parameters.
    pub fn params(&self) -> &[f32] {
        &self.params
    }
}

/// Sets the initial numbers apart from the run's other random streams.
const INIT_STREAM: u64 = 1;

#[cfg(test)]
mod tests;
