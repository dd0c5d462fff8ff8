//! A model with its adapter merged in, as a checkpoint of transformers: one safetensors file, config, tokenizer.
//!
//! Invariant: config and tokenizer say what those of the base say; only how the weights are stored differs.

use std::path::Path;

use llamaduo_kernels::GateActivation;
use serde_json::{Map, Value as Json, json};

use super::encode::{StoredType, encode};
use super::merge::{HeadOrder, Merge};
use super::place::Sink;
use crate::config::{Family, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::files::{ModelFiles, read_json, read_text};
use crate::weights::TensorName;

/// Texts of a base checkpoint that belong to the merged one as they are, licences among them.
const COPIED: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
];

/// Writes the checkpoint into `directory`, which is there; `observe` hears how many tensors are done, of how many. Gives
/// the bytes of its weights.
pub(crate) fn write(
    merge: &Merge<'_>,
    stored: StoredType,
    directory: &Path,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<u64> {
    let element = match stored {
        StoredType::F32 => "F32",
        StoredType::F16 => "F16",
        StoredType::Bf16 => "BF16",
        StoredType::Q8_0 => {
            return Err(Error::Export {
                what: "to safetensors as q8_0".to_owned(),
                reason: "transformers has no such type; choose --type bf16, f16 or f32, or export to gguf"
                    .to_owned(),
            });
        }
    };
    let files = merge.files;
    match files.weights.gguf() {
        Some(_) => write_texts(files, stored, directory)?,
        None => copy_texts(files, stored, directory)?,
    }
    let config = merge.config();
    let tensors = TensorName::all(config);
    let mut sink = Sink::create(&directory.join("model.safetensors"))?;
    sink.write(&header(config, &tensors, stored, element))?;
    let norm_weight_offset = match config.family {
        Family::Gemma | Family::Gemma3 => 1.0,
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => 0.0,
    };
    for (n_done, &tensor) in tensors.iter().enumerate() {
        observe(n_done, tensors.len());
        let order = HeadOrder::Halves;
        match tensor.shape(config)[..] {
            [_, k] => merge.write_matrix(tensor, order, stored.format_of_rows(k), &mut sink)?,
            _ => {
                let mut bytes = Vec::new();
                let values = merge.vector(tensor, order, norm_weight_offset)?;
                encode(
                    &tensor.hugging_face(),
                    stored.format_of_rows(1),
                    &values,
                    &mut bytes,
                )?;
                sink.write(&bytes)?;
            }
        }
    }
    observe(tensors.len(), tensors.len());
    sink.finish()
}

/// The header of the safetensors file, tensors in the order of `tensors`.
fn header(config: &ModelConfig, tensors: &[TensorName], stored: StoredType, element: &str) -> Vec<u8> {
    let mut entries = Map::new();
    // Without it older releases of transformers refuse the file.
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        let shape = tensor.shape(config);
        let start = end;
        let n_elements: usize = shape.iter().product();
        end += stored.format_of_rows(1).bytes_for(n_elements).unwrap_or(0);
        let entry = json!({ "dtype": element, "shape": shape, "data_offsets": [start, end] });
        entries.insert(tensor.hugging_face(), entry);
    }
    let mut header = Json::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes
}

/// transformers' name of a type.
fn dtype(stored: StoredType) -> &'static str {
    match stored {
        StoredType::F32 => "float32",
        StoredType::F16 | StoredType::Q8_0 => "float16",
        StoredType::Bf16 => "bfloat16",
    }
}

fn put(directory: &Path, name: &str, text: &str) -> Result<()> {
    let mut sink = Sink::create(&directory.join(name))?;
    sink.write(text.as_bytes())?;
    sink.finish().map(drop)
}

fn put_json(directory: &Path, name: &str, value: &Json) -> Result<()> {
    put(directory, name, &format!("{value:#}\n"))
}

/// The texts of a base that is a checkpoint itself.
fn copy_texts(files: &ModelFiles, stored: StoredType, directory: &Path) -> Result<()> {
    let mut config: Map<String, Json> = read_json(&files.path.join("config.json"))?;
    config.remove("quantization_config");
    config.remove("_name_or_path");
    // transformers 5 says `dtype`, and still reads what transformers 4 says.
    let key = match config.contains_key("dtype") {
        true => "dtype",
        false => "torch_dtype",
    };
    config.insert(key.to_owned(), dtype(stored).into());
    let config = match config.contains_key("text_config") {
        // Of a model that also sees images only the text model is written.
        true => config_json(&files.config, stored)?,
        false => Json::Object(config),
    };
    put_json(directory, "config.json", &config)?;
    for name in COPIED {
        let path = files.path.join(name);
        if path.is_file() {
            put(directory, name, &read_text(&path)?)?;
        }
    }
    let sentence_piece = "tokenizer.model";
    let path = files.path.join(sentence_piece);
    if path.is_file() {
        let copy = directory.join(sentence_piece);
        std::fs::copy(&path, &copy).map_err(|source| Error::Write { path: copy, source })?;
    }
    Ok(())
}

/// The texts of a base that is a GGUF file.
fn write_texts(files: &ModelFiles, stored: StoredType, directory: &Path) -> Result<()> {
    let config = &files.config;
    put_json(directory, "config.json", &config_json(config, stored)?)?;
    let ids = json!({ "bos_token_id": config.bos, "eos_token_id": config.eos, "pad_token_id": config.pad });
    put_json(directory, "generation_config.json", &ids)?;
    let Some(tokenizer) = &files.tokenizer else {
        return Ok(());
    };
    put(directory, "tokenizer.json", &tokenizer.definition()?)?;
    let mut texts = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": config.context_len,
    });
    let special = tokenizer.special_texts().into_iter();
    if let Some(fields) = texts.as_object_mut() {
        fields.extend(special.map(|(name, text)| (name.to_owned(), text.into())));
    }
    put_json(directory, "tokenizer_config.json", &texts)?;
    match &files.chat_template {
        Some(template) => put(directory, "chat_template.jinja", template.source()),
        None => Ok(()),
    }
}

/// `config.json` in the spelling of transformers 4, which later releases read as well.
fn config_json(config: &ModelConfig, stored: StoredType) -> Result<Json> {
    let window = config.windows.iter().flatten().next().copied();
    let (model_type, class) = match config.family {
        Family::Llama if window.is_some() => ("mistral", "MistralForCausalLM"),
        Family::Llama => ("llama", "LlamaForCausalLM"),
        Family::Mistral => ("mistral", "MistralForCausalLM"),
        Family::Gemma => ("gemma", "GemmaForCausalLM"),
        Family::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
        Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
    };
    check_has_words(config, window)?;
    let heads = config.heads;
    let activation = match config.activation {
        GateActivation::GeluTanh => "gelu_pytorch_tanh",
        GateActivation::Silu => "silu",
    };
    let mut json = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": heads.n_heads,
        "num_key_value_heads": heads.n_kv_heads,
        "head_dim": heads.head_dim,
        "max_position_embeddings": config.context_len,
        "rms_norm_eps": shortest(config.rms_norm_epsilon),
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": activation,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
        "pad_token_id": config.pad,
        "torch_dtype": dtype(stored),
    });
    if let Some(fields) = json.as_object_mut() {
        match config.family {
            Family::Llama | Family::Mistral if model_type == "mistral" => {
                fields.insert("sliding_window".to_owned(), json!(window));
            }
            Family::Gemma => {
                fields.insert("hidden_activation".to_owned(), activation.into());
            }
            Family::Gemma3 => add_gemma3(config, window, activation, fields),
            Family::Qwen2 | Family::Qwen3 if window.is_some() => {
                fields.insert("use_sliding_window".to_owned(), true.into());
                fields.insert("sliding_window".to_owned(), json!(window));
                fields.insert("max_window_layers".to_owned(), 0.into());
            }
            _ => {}
        }
        if let Some(scaling) = rope_scaling(config).ok_or_else(|| {
            refuse("its rotary frequencies are divided in a way that transformers has no name for")
        })? {
            fields.insert("rope_scaling".to_owned(), scaling);
        }
    }
    Ok(json)
}

fn refuse(reason: &str) -> Error {
    Error::Export {
        what: "to safetensors".to_owned(),
        reason: reason.to_owned(),
    }
}

/// Refuses what transformers has no words for in this family; `window` is that of the first layer that has one.
fn check_has_words(config: &ModelConfig, window: Option<usize>) -> Result<()> {
    let is_mixed = config.windows.iter().any(|&other| other != window);
    if is_mixed && config.family != Family::Gemma3 {
        return Err(refuse("only some of its layers have a sliding window"));
    }
    let has_usual_bias = config.attention_bias == (config.family == Family::Qwen2);
    let has_usual_norms = config.qk_norm == matches!(config.family, Family::Qwen3 | Family::Gemma3);
    if !has_usual_bias || !has_usual_norms {
        return Err(refuse(
            "its attention has biases or norms that its family does not have in transformers",
        ));
    }
    Ok(())
}

/// What only Gemma 3 has.
fn add_gemma3(config: &ModelConfig, window: Option<usize>, activation: &str, fields: &mut Map<String, Json>) {
    let types = config.windows.iter().map(|window| match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    });
    let scalar = shortest((1.0 / (config.attention_scale * config.attention_scale)).round());
    let theta = config.local_rope.as_ref().map(|rope| rope.theta);
    for (key, value) in [
        ("hidden_activation", activation.into()),
        ("layer_types", types.collect()),
        ("sliding_window", json!(window)),
        ("query_pre_attn_scalar", json!(scalar)),
        ("rope_local_base_freq", json!(theta)),
        ("attn_logit_softcapping", Json::Null),
        ("final_logit_softcapping", Json::Null),
    ] {
        fields.insert(key.to_owned(), value);
    }
}

/// `Some(None)` for none, `None` for one that cannot be said.
fn rope_scaling(config: &ModelConfig) -> Option<Option<Json>> {
    /// What every model of Llama 3 has, from 3.1 on: the factors for long and short waves.
    const LLAMA3: (f32, f32) = (1.0, 4.0);
    /// A GGUF file's divisors were worked out in 32 bits by another program.
    const TOLERANCE: f32 = 1e-4;
    match &config.rope.scaling {
        RopeScaling::Unscaled => Some(None),
        RopeScaling::Linear { factor } => Some(Some(json!({
            "type": "linear", "rope_type": "linear", "factor": shortest(*factor),
        }))),
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {
            let divisors = config.rope.divisors(config.heads.head_dim)?;
            let factor = divisors.iter().copied().fold(1.0, f32::max);
            let (low, high) = LLAMA3;
            let is_same = |original: &u32| {
                let mut tried = config.rope.clone();
                tried.scaling = RopeScaling::Llama3 {
                    factor,
                    low_frequency_factor: low,
                    high_frequency_factor: high,
                    original_context_len: *original as f32,
                };
                let ours = tried.divisors(config.heads.head_dim).unwrap_or_default();
                ours.iter()
                    .zip(&divisors)
                    .all(|(ours, theirs)| (ours - theirs).abs() <= TOLERANCE * theirs.abs())
            };
            // Models are pre-trained on a power of two; Llama 3 on 8192.
            let original = (4..=20).map(|exponent| 1u32 << exponent).find(is_same)?;
            Some(Some(json!({
                "rope_type": "llama3", "factor": shortest(factor), "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": original,
            })))
        }
    }
}

/// The shortest decimal that is this 32-bit float, and not its digits in 64 bits.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
