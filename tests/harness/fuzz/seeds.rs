//! Good inputs of every target, from which fuzzers begin.
//!
//! Invariant: each is accepted by its target's reader whole, so that changes reach what lies behind the first checks.

use std::fs;
use std::path::{Path, PathBuf};

use llamaduo_engine::safetensors::{Named, serialize, serialize_with_metadata};
use llamaduo_worker::stand_in::tickets;
use serde_json::json;

/// A file of `tests/golden`.
pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The seeds of a target by its name; none of a name that is no target's.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let read = |name: &str| fs::read(golden(name)).expect("golden files are here");
    match target {
        "safetensors" => vec![tensors(), half_precision(), read("llama_tied/adapter/adapter_model.safetensors")],
        "gguf" => vec![model()],
        "nf4" => vec![read("bnb_nf4_double/model.safetensors"), read("bnb_nf4/model.safetensors")],
        "jsonl" => {
            let rows = tickets::coverage_dataset(0);
            vec![
                rows.lines().take(3).map(|row| format!("{row}\n")).collect::<String>().into_bytes(),
                b"{\"prompt_index\":0,\"k\":1,\"text\":\"a\",\"tokens\":2,\"complete\":true,\"logprobs\":[-0.5,-1]}\n".to_vec(),
                b"{\"instruction\":\"a\",\"input\":\"b\",\"output\":\"c\"}\n\n{\"messages\":[]}\n".to_vec(),
            ]
        }
        "checkpoint" => vec![checkpoint()],
        "adapter" => {
            let parts = ["adapter_config.json", "adapter_model.safetensors"];
            let [config, tensors] = parts.map(|name| read(&format!("llama_tied/adapter/{name}")));
            vec![[config, vec![0], tensors].concat()]
        }
        "config" => ["llama3/config.json", "llama3/config.legacy.json", "mistral/config.json"]
            .map(read)
            .to_vec(),
        "template" => vec![
            b"{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content']|trim }}{% endfor %}\
              {% if add_generation_prompt %}{{ bos_token }}{% endif %}"
                .to_vec(),
            b"{%- set ns = namespace(n=0) -%}{%- for m in messages[::-1] -%}{%- set ns.n = ns.n + 1 -%}\
              {{ m | tojson(indent=2) }}{%- if loop.last -%}{{ raise_exception('no') }}{%- endif -%}{%- endfor -%}"
                .to_vec(),
        ],
        _ => Vec::new(),
    }
}

fn tensors() -> Vec<u8> {
    let tensor = |name, shape, values| Named { name, shape, values };
    serialize(&[
        tensor("a", &[2, 2], &[1.0, -2.0, 3.5, 0.0]),
        tensor("b", &[1], &[f32::MIN_POSITIVE]),
        tensor("empty", &[0, 4], &[]),
    ])
}

fn half_precision() -> Vec<u8> {
    let header = r#"{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},"n":{"dtype":"U8","shape":[3],"data_offsets":[6,9]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0x00, 0x3c, 0x00, 0xc0, 0x80, 0x3f, 1, 2, 3]);
    bytes
}

fn checkpoint() -> Vec<u8> {
    let header = json!({
        "version": 1,
        "identity": {"base": "b", "settings_sha256": "s", "rows_sha256": "r", "init_sha256": null},
        "log": [{"step": 1, "loss": 2.5, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 7}],
    });
    let values = [0.5, -0.25];
    let named = ["first_moment", "params", "second_moment"].map(|name| Named {
        name,
        shape: &[2],
        values: &values,
    });
    serialize_with_metadata(&named, &[("llamaduo.checkpoint", &header.to_string())])
}

/// A Llama of one layer with a vocabulary of its own and a template, in 32-bit floats but for one matrix.
fn model() -> Vec<u8> {
    const HIDDEN: usize = 32;
    let mut file = Gguf::default();
    file.string("general.architecture", "llama");
    for (key, value) in [
        ("llama.block_count", 1),
        ("llama.embedding_length", HIDDEN as u32),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.feed_forward_length", 32),
        ("llama.context_length", 64),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file.key(key, 4);
        file.metadata.extend(value.to_le_bytes());
    }
    file.key("llama.attention.layer_norm_rms_epsilon", 6);
    file.metadata.extend(1e-5f32.to_le_bytes());
    file.string(
        "tokenizer.chat_template",
        "{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}",
    );
    file.string("tokenizer.ggml.model", "llama");
    let pieces = ["<unk>", "<s>", "</s>", "\u{2581}", "h", "i", "hi", "<0x0A>"];
    file.array("tokenizer.ggml.tokens", 8, pieces.len());
    pieces.iter().for_each(|piece| text(&mut file.metadata, piece));
    file.array("tokenizer.ggml.scores", 6, pieces.len());
    for score in [0.0f32, 0.0, 0.0, -9.0, -8.0, -7.0, -1.0, 0.0] {
        file.metadata.extend(score.to_le_bytes());
    }
    file.array("tokenizer.ggml.token_type", 5, pieces.len());
    for kind in [2i32, 3, 3, 1, 1, 1, 1, 6] {
        file.metadata.extend(kind.to_le_bytes());
    }
    file.tensor("token_embd.weight", &[pieces.len(), HIDDEN]);
    file.tensor("output_norm.weight", &[HIDDEN]);
    for norm in ["attn_norm", "ffn_norm"] {
        file.tensor(&format!("blk.0.{norm}.weight"), &[HIDDEN]);
    }
    for (linear, n) in [
        ("attn_q", 32),
        ("attn_k", 16),
        ("attn_v", 16),
        ("attn_output", 32),
        ("ffn_gate", 32),
        ("ffn_up", 32),
    ] {
        file.tensor(&format!("blk.0.{linear}.weight"), &[n, HIDDEN]);
    }
    // Q8_0: a block of 32 elements has 34 bytes.
    file.tensor_of("blk.0.ffn_down.weight", &[HIDDEN, 32], 8, &[7; HIDDEN * 34]);
    file.bytes()
}

/// A GGUF file in the making.
#[derive(Default)]
struct Gguf {
    n_metadata: u64,
    n_tensors: u64,
    metadata: Vec<u8>,
    infos: Vec<u8>,
    data: Vec<u8>,
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Gguf {
    fn key(&mut self, key: &str, type_id: u32) {
        self.n_metadata += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(type_id.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        text(&mut self.metadata, value);
    }

    /// The head of an array; its elements follow.
    fn array(&mut self, key: &str, element_type: u32, len: usize) {
        self.key(key, 9);
        self.metadata.extend(element_type.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    /// Of 32-bit floats, `shape` outermost first.
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        let bytes = vec![0x3e; 4 * shape.iter().product::<usize>()];
        self.tensor_of(name, shape, 0, &bytes);
    }

    fn tensor_of(&mut self, name: &str, shape: &[usize], type_id: u32, bytes: &[u8]) {
        self.n_tensors += 1;
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for &dim in shape.iter().rev() {
            self.infos.extend((dim as u64).to_le_bytes());
        }
        self.infos.extend(type_id.to_le_bytes());
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_metadata.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.infos);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}
