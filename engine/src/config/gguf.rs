//! A model's description from the metadata of a GGUF file.
//!
//! Invariant: what llama.cpp's converter changed on the way (norms stored as `1 + w`, RoPE scaling as a tensor of
//! divisors) is described as it is in the file.

use llamaduo_kernels::{Format, GateActivation, HeadDims};

use super::{Family, LAYERS_MAX, ModelConfig, Rope, RopeScaling, unsupported};
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::weights::{TensorName, floats};

impl ModelConfig {
    /// Reads the description of the model in a GGUF file.
    ///
    /// Fails when a key is missing or contradicts another, or the model is of a kind that is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.string("general.architecture")?.unwrap_or("");
        // Files of Mistral call themselves llama; the two differ by a window alone.
        let family = Family::from_name(architecture)
            .filter(|&family| family != Family::Mistral)
            .ok_or_else(|| unsupported(file.path(), architecture))?;
        Reader {
            file,
            architecture,
            family,
        }
        .config()?
        .checked(file.path())
    }
}

/// Of so many layers of Gemma 3 the last has no window, unless the file says otherwise.
const GEMMA3_PATTERN: u64 = 6;
/// By its layers, Gemma 3 27B is told from the others.
const GEMMA3_27B_LAYERS: usize = 62;

struct Reader<'f> {
    file: &'f GgufFile,
    architecture: &'f str,
    family: Family,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig> {
        self.refuse_unknown_switches()?;
        let file = self.file;
        let embedding = file.tensor(&TensorName::Embedding.gguf())?;
        let hidden = self.required("embedding_length")?;
        let n_heads = self.required("attention.head_count")?;
        let plain_head_dim = hidden.checked_div(n_heads).unwrap_or(0);
        let head_dim = self.optional("attention.key_length")?.unwrap_or(plain_head_dim);
        let n_layers = self.required("block_count")?;
        let is_gemma = self.family.is_gemma();
        // A lying layer count must not be reserved for before it is checked.
        let windows = self.windows(n_layers.min(LAYERS_MAX))?;
        let token = |key: &str| {
            file.unsigned(&format!("tokenizer.ggml.{key}_token_id"))
                .map(|id| id.and_then(|id| u32::try_from(id).ok()))
        };
        Ok(ModelConfig {
            family: self.family,
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            hidden,
            n_layers,
            heads: HeadDims {
                n_heads,
                n_kv_heads: self.optional("attention.head_count_kv")?.unwrap_or(n_heads),
                head_dim,
            },
            ffn: self.required("feed_forward_length")?,
            rms_norm_epsilon: file
                .float(&self.key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?
                as f32,
            norm_weight_offset: 0.0,
            rope: self.rope(head_dim)?,
            local_rope: self.local_rope()?,
            context_len: self.required("context_length")?,
            tied_head: file.tensor(&TensorName::Head.gguf()).is_err(),
            activation: if is_gemma {
                GateActivation::GeluTanh
            } else {
                GateActivation::Silu
            },
            embedding_scale: if is_gemma { (hidden as f32).sqrt() } else { 1.0 },
            attention_bias: file.tensor("blk.0.attn_q.bias").is_ok(),
            qk_norm: file.tensor("blk.0.attn_q_norm.weight").is_ok(),
            post_norms: self.family == Family::Gemma3,
            windows,
            attention_scale: match (self.family, n_layers) {
                // Its 27B divides by another root, which no key of the file names; llama.cpp knows it the same way.
                (Family::Gemma3, GEMMA3_27B_LAYERS) => 1.0 / (plain_head_dim as f32).sqrt(),
                _ => 1.0 / (head_dim as f32).sqrt(),
            },
            bos: token("bos")?,
            eos: token("eos")?.into_iter().chain(token("eot")?).collect(),
            pad: token("padding")?,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn optional(&self, name: &str) -> Result<Option<usize>> {
        let value = self.file.unsigned(&self.key(name))?;
        // Beyond usize is beyond every bound that is checked later.
        Ok(value.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.optional(name)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        self.file.config_error(&self.key(name), "present", "nothing")
    }

    fn refuse_unknown_switches(&self) -> Result<()> {
        if let Some(experts) = self.optional("expert_count")?.filter(|&experts| experts > 0) {
            let found = format!("{experts} (a mixture of experts)");
            return Err(self
                .file
                .config_error(&self.key("expert_count"), "absent or 0", &found));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.file.float(&self.key(key))?.filter(|&cap| cap != 0.0) {
                return Err(self
                    .file
                    .config_error(&self.key(key), "absent or 0", &cap.to_string()));
            }
        }
        for tensor in ["blk.0.attn_output.bias", "blk.0.ffn_down.bias"] {
            if self.file.tensor(tensor).is_ok() {
                return Err(self.file.config_error(tensor, "absent", "a tensor"));
            }
        }
        Ok(())
    }

    /// The window of each layer. Of Gemma 3's only some have one; the key says how many, or names each.
    fn windows(&self, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self
            .optional("attention.sliding_window")?
            .filter(|&window| window > 0);
        if self.family != Family::Gemma3 {
            return Ok(vec![window; n_layers]);
        }
        let key = self.key("attention.sliding_window_pattern");
        let is_windowed: Vec<bool> = match self.file.value(&key) {
            Some(Value::Array(_)) => {
                let flags = self
                    .file
                    .array(&key, "flags, one for each layer", |value| match value {
                        Value::Bool(flag) => Some(*flag),
                        _ => None,
                    })?;
                flags.filter(|flags| flags.len() >= n_layers).ok_or_else(|| {
                    let expected = format!("{n_layers} flags, one for each layer");
                    self.file.config_error(&key, &expected, "fewer")
                })?
            }
            _ => {
                let pattern = self.file.unsigned(&key)?.unwrap_or(GEMMA3_PATTERN);
                if pattern == 0 {
                    return Err(self.file.config_error(&key, "at least 1", "0"));
                }
                (1..=n_layers as u64)
                    .map(|layer| !layer.is_multiple_of(pattern))
                    .collect()
            }
        };
        Ok(is_windowed
            .into_iter()
            .take(n_layers)
            .map(|is_windowed| window.filter(|_| is_windowed))
            .collect())
    }

    /// Of Gemma 3's layers with a window.
    fn local_rope(&self) -> Result<Option<Rope>> {
        if self.family != Family::Gemma3 {
            return Ok(None);
        }
        let theta = self.file.float(&self.key("rope.freq_base_swa"))?;
        Ok(Some(Rope {
            theta: theta.unwrap_or(10_000.0),
            scaling: RopeScaling::Unscaled,
        }))
    }

    fn rope(&self, head_dim: usize) -> Result<Rope> {
        if let Some(dims) = self
            .optional("rope.dimension_count")?
            .filter(|&dims| dims != head_dim)
        {
            let expected = format!("{head_dim}, the whole head");
            let error =
                self.file
                    .config_error(&self.key("rope.dimension_count"), &expected, &dims.to_string());
            return Err(error);
        }
        let default_theta = match self.family {
            Family::Gemma3 => 1_000_000.0,
            _ => 10_000.0,
        };
        let theta = self.file.float(&self.key("rope.freq_base"))?;
        let theta = theta.unwrap_or(default_theta);
        let scaling_key = self.key("rope.scaling.type");
        let scaling = match self.file.string(&scaling_key)?.unwrap_or("none") {
            "none" => match self.divisors()? {
                Some(divisors) => RopeScaling::Divisors(divisors),
                None => RopeScaling::Unscaled,
            },
            "linear" => {
                let factor = self.file.float(&self.key("rope.scaling.factor"))?;
                RopeScaling::Linear {
                    factor: factor.ok_or_else(|| self.missing("rope.scaling.factor"))? as f32,
                }
            }
            other => return Err(self.file.config_error(&scaling_key, "none or linear", other)),
        };
        Ok(Rope { theta, scaling })
    }

    /// Llama 3's scaling, which the converter works out for each frequency.
    fn divisors(&self) -> Result<Option<Vec<f32>>> {
        const NAME: &str = "rope_freqs.weight";
        let Ok(tensor) = self.file.tensor(NAME) else {
            return Ok(None);
        };
        if self.file.format(NAME, tensor)? != Format::F32 {
            return Err(self.file.config_error(NAME, "F32", "another element type"));
        }
        let bytes = self.file.bytes();
        let data = (*bytes)
            .as_ref()
            .get(tensor.offset..tensor.offset + tensor.size)
            .unwrap_or_default();
        Ok(Some(floats(data, Format::F32)))
    }
}
