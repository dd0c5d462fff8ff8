//! What a model is: one struct of switches that describes every supported family to the one transformer.
//!
//! Invariant: a [`ModelConfig`] that exists is consistent: heads divide, sizes are positive and bounded, and there
//! is one window per layer.

mod gguf;
mod json;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use llamaduo_kernels::{GateActivation, HeadDims};

use crate::error::{Error, Result};

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
    /// Gemma 3, the text model.
    Gemma3,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
}

impl Family {
    /// Every family, in the order error messages list them.
    pub const ALL: [Self; 6] = [
        Self::Llama,
        Self::Mistral,
        Self::Gemma,
        Self::Gemma3,
        Self::Qwen2,
        Self::Qwen3,
    ];

    /// The architecture in GGUF, which is also how the family is written in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Gemma => "gemma",
            Self::Gemma3 => "gemma3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// From an architecture in GGUF or a `model_type` of `config.json`.
    fn from_name(name: &str) -> Option<Self> {
        // transformers keeps `gemma3` for the model that sees images too
        let name = if name == "gemma3_text" { "gemma3" } else { name };
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether it scales embedded tokens, gates with GELU and stores norms' weights as `w` for `1 + w`.
    const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma3)
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
    /// Rotary embedding of the layers with a window, where it is another.
    pub local_rope: Option<Rope>,
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
    /// Whether what a block adds to the residual stream passes an RMS norm before.
    pub post_norms: bool,
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
    /// Radians per position for each pair of a layer's heads, `[D/2]`, any scaling in them.
    pub fn rope_frequencies(&self, layer: usize) -> Vec<f32> {
        let has_window = matches!(self.windows.get(layer), Some(Some(_)));
        let local = self.local_rope.as_ref().filter(|_| has_window);
        local.unwrap_or(&self.rope).frequencies(self.heads.head_dim)
    }
}

/// Most layers of a model; the deepest in use have 126.
const LAYERS_MAX: usize = 1024;
/// Most of any other size, so that products of two stay far below the largest `usize`.
const SIZE_MAX: usize = 1 << 24;

impl ModelConfig {
    /// Holds the description to the invariant; `path` names it in errors.
    fn checked(self, path: &Path) -> Result<Self> {
        let refuse =
            |field: &str, expected: String, found: String| Err(refused(path, field, expected, found));
        self.check_sizes(path)?;
        let head_dim = self.heads.head_dim;
        if !(self.rms_norm_epsilon.is_finite() && self.rms_norm_epsilon >= 0.0) {
            return refuse(
                "rms norm epsilon",
                "finite, 0 or more".to_owned(),
                self.rms_norm_epsilon.to_string(),
            );
        }
        if let RopeScaling::Divisors(divisors) = &self.rope.scaling
            && divisors.len() != head_dim / 2
        {
            return refuse(
                "rope_freqs.weight",
                format!("{} long", head_dim / 2),
                divisors.len().to_string(),
            );
        }
        if self.windows.contains(&Some(0)) {
            return refuse("sliding window", "null or positive".to_owned(), "0".to_owned());
        }
        if !(self.attention_scale.is_finite() && self.attention_scale > 0.0) {
            return refuse(
                "attention scale",
                "finite and positive".to_owned(),
                self.attention_scale.to_string(),
            );
        }
        for rope in std::iter::once(&self.rope).chain(&self.local_rope) {
            let mut frequencies = rope.frequencies(head_dim).into_iter();
            if !frequencies.all(|frequency| frequency.is_finite() && frequency > 0.0) {
                return refuse(
                    "rope parameters",
                    "such that all frequencies are positive".to_owned(),
                    format!("{rope:?}"),
                );
            }
        }
        Ok(self)
    }

    /// Each size within its bounds, and those of the heads such that they divide one another.
    fn check_sizes(&self, path: &Path) -> Result<()> {
        let refuse =
            |field: &str, expected: String, found: String| Err(refused(path, field, expected, found));
        let HeadDims {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        for (field, size, max) in [
            ("vocabulary size", self.vocab_size, SIZE_MAX),
            ("hidden size", self.hidden, SIZE_MAX),
            ("layers", self.n_layers, LAYERS_MAX),
            ("attention heads", n_heads, SIZE_MAX),
            ("key/value heads", n_kv_heads, SIZE_MAX),
            ("head dimension", head_dim, SIZE_MAX),
            ("feed-forward size", self.ffn, SIZE_MAX),
            ("context length", self.context_len, SIZE_MAX),
        ] {
            if size == 0 || size > max {
                return refuse(field, format!("from 1 to {max}"), size.to_string());
            }
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return refuse(
                "key/value heads",
                format!("a divisor of {n_heads} heads"),
                n_kv_heads.to_string(),
            );
        }
        if !head_dim.is_multiple_of(2) {
            return refuse(
                "head dimension",
                "even, for the rotation of pairs".to_owned(),
                head_dim.to_string(),
            );
        }
        Ok(())
    }
}

fn refused(path: &Path, field: &str, expected: String, found: String) -> Error {
    Error::Config {
        path: path.to_owned(),
        field: field.to_owned(),
        expected,
        found,
    }
}

/// The error for a model of another family.
fn unsupported(path: &Path, model_type: &str) -> Error {
    Error::UnsupportedModel {
        path: path.to_owned(),
        model_type: model_type.to_owned(),
        supported: Family::ALL.map(Family::name).join(", "),
    }
}
