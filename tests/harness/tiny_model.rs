//! A random two-layer Llama with a byte-level tokenizer, written as a Hugging Face directory.
//!
//! Invariant: the files depend on nothing but this source, so that every test sees the same model. It learns
//! little and answers noise; it is for tests of the machinery, where seconds matter and quality does not.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

const HIDDEN: usize = 64;
const FFN: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const LAYERS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
/// 256 bytes and three special tokens.
const VOCAB: usize = 259;
const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Long enough for the judge's test prompts at a byte a token.
const CONTEXT: usize = 2048;

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
     + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Writes the model into `directory`, which is made.
pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("config.json"), config().to_string())?;
    fs::write(directory.join("tokenizer.json"), tokenizer().to_string())?;
    fs::write(
        directory.join("tokenizer_config.json"),
        tokenizer_config().to_string(),
    )?;
    fs::write(directory.join("model.safetensors"), safetensors(&tensors()))
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32",
        "attention_bias": false, "mlp_bias": false,
    })
}

/// GPT-2's map from bytes to printable characters.
fn byte_characters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut n_moved = 0;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                n_moved += 1;
                255 + n_moved
            };
            char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect()
}

fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, character) in byte_characters().into_iter().enumerate() {
        vocab.insert(character.to_string(), json!(id));
    }
    let mut added = Vec::new();
    for (offset, special) in SPECIALS.iter().enumerate() {
        vocab.insert((*special).to_owned(), json!(256 + offset));
        added.push(json!({
            "id": 256 + offset, "content": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIALS[0], "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0], "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE,
    })
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn tensors() -> Vec<Tensor> {
    // SplitMix64 (Steele, Lea & Flood 2014); the sum of four uniforms is close enough to a normal here.
    let mut state = 0x5EED_u64;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    let mut matrix = |name: String, rows: usize, columns: usize| {
        let scale = (columns as f32).powf(-0.5) * 1.7;
        let values = (0..rows * columns)
            .map(|_| (uniform() + uniform() + uniform() + uniform()) * scale)
            .collect();
        Tensor {
            name,
            shape: vec![rows, columns],
            values,
        }
    };
    let ones = |name: String| Tensor {
        name,
        shape: vec![HIDDEN],
        values: vec![1.0; HIDDEN],
    };
    let mut all = vec![
        matrix("model.embed_tokens.weight".into(), VOCAB, HIDDEN),
        ones("model.norm.weight".into()),
    ];
    for layer in 0..LAYERS {
        let prefix = format!("model.layers.{layer}");
        all.push(ones(format!("{prefix}.input_layernorm.weight")));
        all.push(ones(format!("{prefix}.post_attention_layernorm.weight")));
        all.push(matrix(
            format!("{prefix}.self_attn.q_proj.weight"),
            HIDDEN,
            HIDDEN,
        ));
        all.push(matrix(
            format!("{prefix}.self_attn.k_proj.weight"),
            KV_HEADS * HEAD_DIM,
            HIDDEN,
        ));
        all.push(matrix(
            format!("{prefix}.self_attn.v_proj.weight"),
            KV_HEADS * HEAD_DIM,
            HIDDEN,
        ));
        all.push(matrix(
            format!("{prefix}.self_attn.o_proj.weight"),
            HIDDEN,
            HIDDEN,
        ));
        all.push(matrix(format!("{prefix}.mlp.gate_proj.weight"), FFN, HIDDEN));
        all.push(matrix(format!("{prefix}.mlp.up_proj.weight"), FFN, HIDDEN));
        all.push(matrix(format!("{prefix}.mlp.down_proj.weight"), HIDDEN, FFN));
    }
    all
}

/// The safetensors format: header length, JSON header, then the bytes in the header's order.
fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}
