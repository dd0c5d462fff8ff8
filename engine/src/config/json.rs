//! `config.json` and `generation_config.json` as transformers writes them, in the older and the newer spelling.
//!
//! Invariant: a switch that would change the numbers and is not implemented is refused, never ignored.

use std::path::Path;

use llamaduo_kernels::{GateActivation, HeadDims};
use serde::Deserialize;

use super::{Family, ModelConfig, Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::files::read_json;

/// `config.json`, as far as it matters.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default = "mistral_window")]
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    /// transformers 5.
    rope_parameters: Option<RopeFile>,
    /// transformers 4.
    rope_theta: Option<f64>,
    /// transformers 4.
    rope_scaling: Option<RopeFile>,
    partial_rotary_factor: Option<f64>,
    /// transformers 5.
    dtype: Option<String>,
    /// transformers 4.
    torch_dtype: Option<String>,
    quantization_config: Option<QuantizationFile>,
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: TokenIds,
    pad_token_id: Option<i64>,
}

/// What transformers takes for Mistral when the key is absent; `null` means no window.
const fn mistral_window() -> Option<usize> {
    Some(4096)
}

#[derive(Debug, Deserialize)]
struct RopeFile {
    rope_type: Option<String>,
    /// The spelling before `rope_type`; some files hold both.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

#[derive(Debug, Deserialize)]
struct QuantizationFile {
    quant_method: Option<String>,
}

/// One id, several, or none.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::None => Vec::new(),
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

#[derive(Debug, Deserialize)]
struct GenerationFile {
    #[serde(default)]
    eos_token_id: TokenIds,
}

impl ModelConfig {
    /// Reads a checkpoint's `config.json`, and the end tokens of a `generation_config.json` beside it.
    ///
    /// Fails when a file cannot be read, a field is missing or contradicts another, or the model is of a kind that
    /// is not supported.
    pub fn from_json_file(path: &Path) -> Result<Self> {
        // The family first: a file of another one need not have the same fields.
        let json: serde_json::Value = read_json(path)?;
        let name = json
            .get("model_type")
            .and_then(serde_json::Value::as_str)
            .unwrap_or("");
        let family = Family::from_name(name).ok_or_else(|| super::unsupported(path, name))?;
        let file: ConfigFile = serde_json::from_value(json).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Reader {
            path,
            file: &file,
            family,
        }
        .config()?;
        let generation = path.with_file_name("generation_config.json");
        config.eos = file.eos_token_id.into_vec();
        if generation.is_file() {
            let eos = read_json::<GenerationFile>(&generation)?.eos_token_id.into_vec();
            config.eos = if eos.is_empty() { config.eos } else { eos };
        }
        config.checked(path)
    }
}

struct Reader<'f> {
    path: &'f Path,
    file: &'f ConfigFile,
    family: Family,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig> {
        let file = self.file;
        let family = self.family;
        self.refuse_unknown_switches()?;
        let n_heads = file.num_attention_heads;
        let plain_head_dim = file.hidden_size.checked_div(n_heads).unwrap_or(0);
        let head_dim = match (file.head_dim, family) {
            (Some(head_dim), _) => head_dim,
            // The default of transformers for these two does not follow from the other sizes.
            (None, Family::Gemma) => 256,
            (None, Family::Qwen3) => 128,
            (None, _) => plain_head_dim,
        };
        let heads = HeadDims {
            n_heads,
            n_kv_heads: file.num_key_value_heads.unwrap_or(n_heads),
            head_dim,
        };
        let is_gemma = family == Family::Gemma;
        Ok(ModelConfig {
            family,
            vocab_size: file.vocab_size,
            hidden: file.hidden_size,
            n_layers: file.num_hidden_layers,
            heads,
            ffn: file.intermediate_size,
            rms_norm_epsilon: file.rms_norm_eps.unwrap_or(1e-6),
            norm_weight_offset: if is_gemma { 1.0 } else { 0.0 },
            rope: self.rope()?,
            context_len: file.max_position_embeddings,
            tied_head: file.tie_word_embeddings.unwrap_or(is_gemma),
            activation: self.activation()?,
            embedding_scale: if is_gemma {
                self.gemma_embedding_scale()
            } else {
                1.0
            },
            attention_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
            windows: self.windows(),
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            bos: file.bos_token_id,
            eos: Vec::new(),
            // Some checkpoints write -1 for "none".
            pad: file.pad_token_id.and_then(|id| u32::try_from(id).ok()),
        })
    }

    fn error(&self, field: &str, expected: &str, found: impl std::fmt::Display) -> Error {
        Error::Config {
            path: self.path.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    fn refuse_unknown_switches(&self) -> Result<()> {
        let file = self.file;
        if file.attention_bias == Some(true) && self.family != Family::Qwen2 {
            return Err(self.error("attention_bias", "false", "true"));
        }
        if file.mlp_bias == Some(true) {
            return Err(self.error("mlp_bias", "false", "true"));
        }
        if let Some(part) = file.partial_rotary_factor.filter(|&part| part != 1.0) {
            return Err(self.error("partial_rotary_factor", "1", part));
        }
        if let Some(quantization) = &file.quantization_config {
            let method = quantization
                .quant_method
                .as_deref()
                .unwrap_or("an unnamed method");
            return Err(self.error(
                "quantization_config",
                "absent, with weights in F32, F16 or BF16",
                method,
            ));
        }
        Ok(())
    }

    /// Gemma's first configs say `gelu` and mean the tanh approximation; transformers reads them so.
    fn activation(&self) -> Result<GateActivation> {
        let name = self
            .file
            .hidden_activation
            .as_deref()
            .or(self.file.hidden_act.as_deref());
        match (self.family, name) {
            (Family::Gemma, None | Some("gelu" | "gelu_pytorch_tanh")) => Ok(GateActivation::GeluTanh),
            (Family::Gemma, Some(other)) => Err(self.error("hidden_act", "gelu_pytorch_tanh", other)),
            (_, None | Some("silu")) => Ok(GateActivation::Silu),
            (_, Some(other)) => Err(self.error("hidden_act", "silu", other)),
        }
    }

    /// `sqrt(C)` in the type of the weights, as transformers computes it.
    fn gemma_embedding_scale(&self) -> f32 {
        let scale = (self.file.hidden_size as f32).sqrt();
        match self.file.dtype.as_deref().or(self.file.torch_dtype.as_deref()) {
            Some("bfloat16") => half::bf16::from_f32(scale).to_f32(),
            Some("float16") => half::f16::from_f32(scale).to_f32(),
            _ => scale,
        }
    }

    fn windows(&self) -> Vec<Option<usize>> {
        let file = self.file;
        let window_of = |layer: usize| match self.family {
            Family::Llama | Family::Gemma => None,
            Family::Mistral => file.sliding_window,
            Family::Qwen2 | Family::Qwen3 => {
                let is_windowed = match file.layer_types.as_ref().and_then(|types| types.get(layer)) {
                    Some(layer_type) => layer_type == "sliding_attention",
                    None => file.max_window_layers.is_some_and(|first| layer >= first),
                };
                file.sliding_window
                    .filter(|_| is_windowed && file.use_sliding_window == Some(true))
            }
        };
        // A lying layer count must not be reserved for before it is checked.
        (0..file.num_hidden_layers.min(super::LAYERS_MAX))
            .map(window_of)
            .collect()
    }

    fn rope(&self) -> Result<Rope> {
        let parameters = self
            .file
            .rope_parameters
            .as_ref()
            .or(self.file.rope_scaling.as_ref());
        let theta = parameters
            .and_then(|rope| rope.rope_theta)
            .or(self.file.rope_theta)
            .unwrap_or(10_000.0);
        let Some(parameters) = parameters else {
            return Ok(Rope {
                theta,
                scaling: RopeScaling::Unscaled,
            });
        };
        let need = |value: Option<f32>, field: &str| {
            value
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| {
                    self.error(
                        field,
                        "a positive number beside this rope_type",
                        "none, or another value",
                    )
                })
        };
        let scaling = match parameters
            .rope_type
            .as_deref()
            .or(parameters.r#type.as_deref())
            .unwrap_or("default")
        {
            "default" => RopeScaling::Unscaled,
            "linear" => RopeScaling::Linear {
                factor: need(parameters.factor, "factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: need(parameters.factor, "factor")?,
                low_frequency_factor: need(parameters.low_freq_factor, "low_freq_factor")?,
                high_frequency_factor: need(parameters.high_freq_factor, "high_freq_factor")?,
                original_context_len: need(
                    parameters.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            other => return Err(self.error("rope_type", "default, linear or llama3", other)),
        };
        Ok(Rope { theta, scaling })
    }
}
