//! Tests of model descriptions.

use std::path::{Path, PathBuf};

use llamaduo_kernels::{GateActivation, HeadDims};
use serde_json::{Value, json};

use super::*;
use crate::gguf::tests::Builder;

mod gemma3;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name)
}

/// Reads a `config.json` of these contents.
fn read(config: &Value) -> Result<ModelConfig> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    ModelConfig::from_json_file(&path)
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 384, "hidden_size": 128, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn both_spellings_say_the_same() {
    for family in [
        "gemma",
        "gemma3",
        "llama3",
        "llama3_long",
        "llama_bf16_sharded",
        "llama_tied",
        "mistral",
        "mistral_window",
        "qwen2",
        "qwen3",
    ] {
        let newer = ModelConfig::from_json_file(&golden(family).join("config.json")).unwrap();
        let older = ModelConfig::from_json_file(&golden(family).join("config.legacy.json")).unwrap();
        assert_eq!(newer, older, "{family}");
    }
}

#[test]
fn llama3_is_described() {
    let config = ModelConfig::from_json_file(&golden("llama3/config.json")).unwrap();
    assert_eq!(config.family, Family::Llama);
    assert_eq!(
        config.heads,
        HeadDims {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 128
        }
    );
    assert_eq!(
        (config.hidden, config.ffn, config.n_layers, config.vocab_size),
        (128, 192, 2, 384)
    );
    assert_eq!(
        (config.tied_head, config.activation),
        (false, GateActivation::Silu)
    );
    assert_eq!(
        (config.bos, config.eos.as_slice(), config.pad),
        (Some(1), &[2][..], None)
    );
    assert_eq!(config.rope.theta, 500_000.0);
    assert_eq!(
        config.rope.scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context_len: 64.0
        }
    );
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let mut config = llama();
    config.as_object_mut().unwrap().remove("num_key_value_heads");
    let config = read(&config).unwrap();
    assert_eq!(
        config.heads,
        HeadDims {
            n_heads: 4,
            n_kv_heads: 4,
            head_dim: 32
        }
    );
    assert_eq!(
        config.rope,
        Rope {
            theta: 10_000.0,
            scaling: RopeScaling::Unscaled
        }
    );
    assert!(!config.tied_head);
    assert!(config.eos.is_empty());
}

#[test]
fn mistral_has_a_window_unless_it_says_null() {
    let mistral = with(llama(), json!({ "model_type": "mistral" }));
    assert_eq!(read(&mistral).unwrap().windows, [Some(4096); 2]);
    let without = with(mistral.clone(), json!({ "sliding_window": null }));
    assert_eq!(read(&without).unwrap().windows, [None; 2]);
    let short = with(mistral, json!({ "sliding_window": 16 }));
    assert_eq!(read(&short).unwrap().windows, [Some(16); 2]);
}

#[test]
fn gemma_is_described() {
    let gemma = with(
        llama(),
        json!({
            "model_type": "gemma", "hidden_size": 3072, "hidden_act": "gelu", "head_dim": 256,
            "torch_dtype": "bfloat16", "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
        }),
    );
    let config = read(&gemma).unwrap();
    assert_eq!(
        (config.norm_weight_offset, config.activation),
        (1.0, GateActivation::GeluTanh)
    );
    assert_eq!(
        (config.tied_head, config.heads.head_dim, config.pad),
        (true, 256, Some(0))
    );
    assert_eq!(config.embedding_scale, 55.5, "sqrt(3072) in bfloat16");
    let float = with(gemma, json!({ "torch_dtype": "float32" }));
    assert_eq!(read(&float).unwrap().embedding_scale, 3072f32.sqrt());
}

#[test]
fn qwen_is_described() {
    let qwen2 = with(
        llama(),
        json!({
            "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1,
            "tie_word_embeddings": true,
        }),
    );
    let config = read(&qwen2).unwrap();
    assert!(config.attention_bias && !config.qk_norm && config.tied_head);
    assert_eq!(config.windows, [None, Some(64)]);
    let unused = read(&with(qwen2, json!({ "use_sliding_window": false }))).unwrap();
    assert_eq!(unused.windows, [None, None]);
    let qwen3 = read(&with(llama(), json!({ "model_type": "qwen3", "head_dim": 48 }))).unwrap();
    assert!(!qwen3.attention_bias && qwen3.qk_norm);
    assert_eq!(qwen3.heads.head_dim, 48);
}

#[test]
fn the_generation_config_decides_the_end_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, with(llama(), json!({ "eos_token_id": 5 })).to_string()).unwrap();
    assert_eq!(ModelConfig::from_json_file(&path).unwrap().eos, [5]);
    std::fs::write(
        directory.path().join("generation_config.json"),
        r#"{"eos_token_id":[7,8]}"#,
    )
    .unwrap();
    assert_eq!(ModelConfig::from_json_file(&path).unwrap().eos, [7, 8]);
    std::fs::write(directory.path().join("generation_config.json"), "{}").unwrap();
    assert_eq!(ModelConfig::from_json_file(&path).unwrap().eos, [5]);
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    for (changes, expected) in [
        (
            json!({ "model_type": "mamba" }),
            "`mamba` is not supported; supported are llama, mistral",
        ),
        (json!({ "model_type": null }), "model type"),
        (
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
            "found yarn",
        ),
        (json!({ "rope_scaling": { "type": "linear" } }), "factor"),
        (
            json!({ "rope_parameters": { "rope_type": "llama3", "factor": 8.0 } }),
            "low_freq_factor",
        ),
        (json!({ "rope_theta": 0.0 }), "rope parameters"),
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            "found gptq",
        ),
        (
            json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_8bit": true } }),
            "found bitsandbytes in 8 bits",
        ),
        (
            json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true } }),
            "found fp4",
        ),
        (
            json!({ "quantization_config": {
                "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_quant_storage": "bfloat16",
            } }),
            "found bfloat16",
        ),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } }),
            "partial_rotary_factor",
        ),
        (json!({ "attention_bias": true }), "attention_bias"),
        (json!({ "mlp_bias": true }), "mlp_bias"),
        (json!({ "hidden_act": "relu" }), "found relu"),
        (json!({ "num_attention_heads": 0 }), "attention heads"),
        (json!({ "num_key_value_heads": 3 }), "divisor of 4"),
        (json!({ "num_key_value_heads": 0 }), "key/value heads"),
        (json!({ "head_dim": 33 }), "even"),
        (json!({ "num_hidden_layers": 1u64 << 60 }), "layers"),
        (json!({ "vocab_size": 1u64 << 60 }), "vocabulary size"),
        (json!({ "rms_norm_eps": -1.0 }), "epsilon"),
        (json!({ "hidden_size": -1 }), "is not the JSON it should be"),
        (
            json!({ "model_type": "mistral", "sliding_window": 0 }),
            "sliding window",
        ),
    ] {
        let error = read(&with(llama(), changes.clone())).unwrap_err().to_string();
        assert!(error.contains(expected), "{changes}: {error}");
        assert!(error.contains("config.json"), "{error}");
    }
}

#[test]
fn plain_frequencies_are_a_geometric_series() {
    let rope = Rope {
        theta: 10_000.0,
        scaling: RopeScaling::Unscaled,
    };
    let frequencies = rope.frequencies(64);
    assert_eq!((frequencies.len(), frequencies[0]), (32, 1.0));
    for (pair, frequency) in frequencies.iter().enumerate() {
        let exact = 10_000f64.powf(-(pair as f64) / 32.0);
        assert!((f64::from(*frequency) / exact - 1.0).abs() < 2e-7, "{pair}");
    }
    let halved = Rope {
        scaling: RopeScaling::Linear { factor: 2.0 },
        ..rope.clone()
    }
    .frequencies(64);
    let divided = Rope {
        scaling: RopeScaling::Divisors(vec![2.0; 32]),
        ..rope
    }
    .frequencies(64);
    assert_eq!(halved, divided);
    assert_eq!(halved[5] * 2.0, frequencies[5]);
}

/// Llama 3.1's own numbers: short waves stay, long ones are divided by 8, and those between follow the formula of its
/// reference implementation, worked out here in f64.
#[test]
fn llama3_frequencies_follow_the_formula() {
    let (theta, factor, low, high, original) = (500_000f64, 8.0, 1.0, 4.0, 8192.0);
    let rope = Rope {
        theta,
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context_len: 8192.0,
        },
    };
    let mut kinds = [0; 3];
    for (pair, frequency) in rope.frequencies(128).into_iter().enumerate() {
        let plain = theta.powf(-(pair as f64) / 64.0);
        let wavelength = std::f64::consts::TAU / plain;
        let exact = if wavelength < original / high {
            kinds[0] += 1;
            plain
        } else if wavelength > original / low {
            kinds[1] += 1;
            plain / factor
        } else {
            kinds[2] += 1;
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * plain / factor + smooth * plain
        };
        assert!((f64::from(frequency) / exact - 1.0).abs() < 1e-6, "{pair}");
    }
    assert!(kinds.iter().all(|&count| count > 0), "{kinds:?}");
}

/// Metadata and tensors of a small llama in GGUF.
fn gguf() -> Builder {
    Builder::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32_tensor("token_embd.weight", &[5, 8], &[0.0; 40])
}

#[test]
fn gguf_is_described() {
    let config = ModelConfig::from_gguf(&gguf().f32("llama.rope.freq_base", 5e5).open().unwrap()).unwrap();
    assert_eq!(
        config.heads,
        HeadDims {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 4
        }
    );
    assert_eq!(
        (config.vocab_size, config.tied_head, config.rope.theta),
        (5, true, 5e5)
    );
    let head = gguf().f32_tensor("output.weight", &[5, 8], &[0.0; 40]);
    assert!(!ModelConfig::from_gguf(&head.open().unwrap()).unwrap().tied_head);
    let scaled = gguf().f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]);
    let scaled = ModelConfig::from_gguf(&scaled.open().unwrap()).unwrap();
    assert_eq!(scaled.rope.scaling, RopeScaling::Divisors(vec![1.0, 8.0]));
    assert_eq!(scaled.rope_frequencies(0), [1.0, 0.01 / 8.0]);
}

#[test]
fn gguf_that_cannot_be_run_is_refused_by_name() {
    for (builder, expected) in [
        (
            Builder::default().string("general.architecture", "mamba"),
            "`mamba` is not supported",
        ),
        (gguf().u32("llama.expert_count", 8), "mixture of experts"),
        (gguf().u32("llama.rope.dimension_count", 2), "the whole head"),
        (gguf().string("llama.rope.scaling.type", "yarn"), "found yarn"),
        (gguf().f32_tensor("rope_freqs.weight", &[3], &[1.0; 3]), "2 long"),
        (
            gguf().f32_tensor("rope_freqs.weight", &[2], &[0.0; 2]),
            "rope parameters",
        ),
        (
            Builder::default().string("general.architecture", "llama"),
            "`token_embd.weight` is missing",
        ),
        (
            Builder::default()
                .string("general.architecture", "llama")
                .f32_tensor("token_embd.weight", &[1, 1], &[0.0]),
            "llama.embedding_length",
        ),
    ] {
        let error = ModelConfig::from_gguf(&builder.open().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
