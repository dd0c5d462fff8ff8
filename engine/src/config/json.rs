//! `config.json` and `generation_config.json` as transformers writes them, in the older and the newer spelling.
//!
//! Invariant: a switch that would change the numbers and is not implemented is refused, never ignored.

mod attention;

use std::path::Path;

use llamaduo_kernels::{GateActivation, HeadDims};
use serde::Deserialize;
use serde_json::Value;

use super::{Family, ModelConfig};
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
    /// Gemma 3 before there was `layer_types`: every so many layers, one without a window.
    sliding_window_pattern: Option<usize>,
    /// Gemma 3: its root divides `q·k`.
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    /// transformers 5.
    rope_parameters: Option<RopeFile>,
    /// transformers 4.
    rope_theta: Option<f64>,
    /// transformers 4.
    rope_scaling: Option<RopeFile>,
    /// transformers 4: base of Gemma 3's layers with a window.
    rope_local_base_freq: Option<f64>,
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
    partial_rotary_factor: Option<f64>,
    /// transformers 5, where layers differ: of those without a window.
    full_attention: Option<Box<RopeFile>>,
    /// And of those with one.
    sliding_attention: Option<Box<RopeFile>>,
}

#[derive(Debug, Deserialize)]
struct QuantizationFile {
    quant_method: Option<String>,
    #[serde(default)]
    load_in_4bit: bool,
    bnb_4bit_quant_type: Option<String>,
    bnb_4bit_quant_storage: Option<String>,
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
        let mut json = text_part(read_json(path)?);
        let name = json.get("model_type").and_then(Value::as_str).unwrap_or("");
        let family = Family::from_name(name).ok_or_else(|| super::unsupported(path, name))?;
        if family == Family::Gemma3 {
            fill_gemma3(&mut json);
        }
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

/// The text model's part of a file that also describes an image model, with what stands outside of that part.
fn text_part(mut json: Value) -> Value {
    const OUTSIDE: [&str; 7] = [
        "tie_word_embeddings",
        "dtype",
        "torch_dtype",
        "quantization_config",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ];
    if json.get("model_type").and_then(Value::as_str) != Some("gemma3") {
        return json;
    }
    let Some(Value::Object(mut text)) = json.get_mut("text_config").map(Value::take) else {
        return json;
    };
    for key in OUTSIDE {
        if let Some(value) = json.get_mut(key)
            && text.get(key).is_none_or(Value::is_null)
        {
            text.insert(key.to_owned(), value.take());
        }
    }
    Value::Object(text)
}

/// Puts in what published files of Gemma 3 leave to the defaults of transformers.
fn fill_gemma3(json: &mut Value) {
    let Some(file) = json.as_object_mut() else { return };
    for (key, value) in [
        ("vocab_size", 262_208),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 131_072),
    ] {
        file.entry(key).or_insert_with(|| value.into());
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
            (None, Family::Gemma | Family::Gemma3) => 256,
            (None, Family::Qwen3) => 128,
            (None, _) => plain_head_dim,
        };
        let heads = HeadDims {
            n_heads,
            n_kv_heads: file.num_key_value_heads.unwrap_or(n_heads),
            head_dim,
        };
        let is_gemma = family.is_gemma();
        // The factor on q·k divides by the root of the head's width, unless the file names another number.
        let scaled_by = match family {
            Family::Gemma3 => file.query_pre_attn_scalar.unwrap_or(256.0),
            _ => head_dim as f32,
        };
        let (rope, local_rope) = self.ropes()?;
        Ok(ModelConfig {
            family,
            vocab_size: file.vocab_size,
            hidden: file.hidden_size,
            n_layers: file.num_hidden_layers,
            heads,
            ffn: file.intermediate_size,
            rms_norm_epsilon: file.rms_norm_eps.unwrap_or(1e-6),
            norm_weight_offset: if is_gemma { 1.0 } else { 0.0 },
            rope,
            local_rope,
            context_len: file.max_position_embeddings,
            tied_head: file.tie_word_embeddings.unwrap_or(is_gemma),
            activation: self.activation()?,
            embedding_scale: if is_gemma {
                self.gemma_embedding_scale()
            } else {
                1.0
            },
            attention_bias: family == Family::Qwen2,
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            post_norms: family == Family::Gemma3,
            windows: self.windows()?,
            attention_scale: 1.0 / scaled_by.sqrt(),
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
        for (field, cap) in [
            ("attn_logit_softcapping", file.attn_logit_softcapping),
            ("final_logit_softcapping", file.final_logit_softcapping),
        ] {
            if let Some(cap) = cap {
                return Err(self.error(field, "null", cap));
            }
        }
        if file.use_bidirectional_attention == Some(true) {
            return Err(self.error("use_bidirectional_attention", "false", "true"));
        }
        match &file.quantization_config {
            Some(quantization) => self.refuse_other_than_nf4(quantization),
            None => Ok(()),
        }
    }

    fn refuse_other_than_nf4(&self, quantization: &QuantizationFile) -> Result<()> {
        const EXPECTED: &str = "absent, or bitsandbytes in 4 bits of type nf4";
        let method = quantization
            .quant_method
            .as_deref()
            .unwrap_or("an unnamed method");
        let (field, found) = match (method, quantization.bnb_4bit_quant_type.as_deref()) {
            ("bitsandbytes", _) if !quantization.load_in_4bit => {
                ("quantization_config", "bitsandbytes in 8 bits")
            }
            ("bitsandbytes", Some("nf4")) => match quantization.bnb_4bit_quant_storage.as_deref() {
                None | Some("uint8") => return Ok(()),
                Some(other) => {
                    return Err(self.error("quantization_config.bnb_4bit_quant_storage", "uint8", other));
                }
            },
            // what bitsandbytes takes where the file does not say
            ("bitsandbytes", other) => ("quantization_config.bnb_4bit_quant_type", other.unwrap_or("fp4")),
            (other, _) => ("quantization_config", other),
        };
        Err(self.error(field, EXPECTED, found))
    }

    /// Gemma's first configs say `gelu` and mean the tanh approximation; transformers reads them so.
    fn activation(&self) -> Result<GateActivation> {
        let name = self
            .file
            .hidden_activation
            .as_deref()
            .or(self.file.hidden_act.as_deref());
        match (self.family, name) {
            (Family::Gemma | Family::Gemma3, None | Some("gelu" | "gelu_pytorch_tanh")) => {
                Ok(GateActivation::GeluTanh)
            }
            (Family::Gemma | Family::Gemma3, Some(other)) => {
                Err(self.error("hidden_act", "gelu_pytorch_tanh", other))
            }
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
}
