//! What a model is: one struct of switches that describes every supported family to the one transformer.
//!
//! Invariant: a [`ModelConfig`] that exists is consistent: heads divide, sizes are positive and bounded, and there
//! is one window per layer.

mod gguf;
mod json;
mod rope;
#[cfg(test)]
mod tests;

use llamaduo_kernels::{GateActivation, HeadDims};

pub use rope::{Rope, RopeScaling};

/// A model family, which decides how its files spell things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2, SmolLM2.
    Llama,
    /// Mistral 7B.
    Mistral,
    /// Gemma v1.
    Gemma,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

impl Family {
    /// Every family, in the order error messages list them.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Gemma, Self::Qwen2, Self::Qwen3];

    /// The `model_type` of `config.json`, which is also how the family is written in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Gemma => "gemma",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }
}

/// Everything about a model that is not a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family it belongs to.
    pub family: Family,
    /// `V`: rows of the embedding.
    pub vocab_size: usize,
    /// `C`.
    pub hidden: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// `H`, `KV`, `D`; `H * D` may differ from `C`.
    pub heads: HeadDims,
    /// `F`.
    pub ffn: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_epsilon: f32,
    /// 1 where a stored norm weight `w` means `1 + w`, else 0.
    pub norm_weight_offset: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Most tokens the model was made for.
    pub context_len: usize,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Activation of the gated feed-forward block.
    pub activation: GateActivation,
    /// Factor on embedded tokens: `sqrt(C)` for Gemma, else 1.
    pub embedding_scale: f32,
    /// Whether query, key and value projections have a bias.
    pub attention_bias: bool,
    /// Whether queries and keys pass an RMS norm of width `D` before the rotation.
    pub qk_norm: bool,
    /// Per layer: a query at `t` sees keys in `(t - window, t]`; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Factor on `q·k`.
    pub attention_scale: f32,
    /// First token of a sequence, where the model wants one.
    pub bos: Option<u32>,
    /// Tokens that end a response; empty when the files name none.
    pub eos: Vec<u32>,
    /// Padding token, where there is one.
    pub pad: Option<u32>,
}

impl ModelConfig {
    /// Radians per position for each pair of a head, `[D/2]`, any scaling in them.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        self.rope.frequencies(self.heads.head_dim)
    }
}
