//! What is done with files from anywhere, as targets for fuzzers: each takes any bytes.
//!
//! Invariant: a target calls what the program itself calls on such bytes. It ends with an error or without one, never
//! in a panic, and takes memory only in proportion to the bytes.

mod mutate;
mod seeds;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use llamaduo_data::{Response, Sample, import, jsonl};
use llamaduo_engine::gguf::GgufFile;
use llamaduo_engine::peft::{self, AdapterFiles};
use llamaduo_engine::safetensors::SafetensorsFile;
use llamaduo_engine::train::Conversation;
use llamaduo_engine::weights::{LayerTensor, TensorName};
use llamaduo_engine::{ChatTemplate, Checkpoint, Message, ModelConfig, ModelFiles, Role};

pub use mutate::Mutations;
pub use seeds::seeds;

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 8] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("nf4", nf4),
    ("jsonl", json_lines),
    ("checkpoint", checkpoint),
    ("adapter", adapter),
    ("config", config),
    ("template", template),
];

/// A file of tensors: every one of them is read.
pub fn safetensors(bytes: &[u8]) {
    let Ok(file) = SafetensorsFile::from_bytes(Path::new("fuzz.safetensors"), Arc::new(bytes.to_vec()))
    else {
        return;
    };
    for name in file.names() {
        // A tensor of another type than floats is an error.
        if let Ok((shape, values)) = file.f32_values(name) {
            assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        }
    }
}

/// A model in one file: its description, texts and tensors.
pub fn gguf(bytes: &[u8]) {
    let Ok(file) = GgufFile::from_bytes(Path::new("fuzz.gguf"), Arc::new(bytes.to_vec())) else {
        return;
    };
    for name in file.names() {
        let tensor = file.tensor(name).expect("it was just listed");
        assert!(tensor.offset + tensor.size <= bytes.len(), "{name}");
    }
    if ModelConfig::from_gguf(&file).is_err() {
        return;
    }
    drop(file);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("fuzz.gguf");
    std::fs::write(&path, bytes).expect("the file can be written");
    let Ok(model) = ModelFiles::open(&path) else {
        return;
    };
    if let Some(tokenizer) = &model.tokenizer {
        // Text that the vocabulary cannot spell is an error.
        if let Ok(ids) = tokenizer.encode("hi <s>\u{1f642} \n") {
            let _text = tokenizer.decode(&ids);
        }
    }
    if let Some(template) = &model.chat_template {
        let _rendered = template.render(&conversation(), true);
    }
    let whole = [TensorName::Embedding, TensorName::Head];
    let layer =
        [LayerTensor::Query, LayerTensor::Key, LayerTensor::Down].map(|tensor| TensorName::Layer(0, tensor));
    for name in whole.into_iter().chain(layer) {
        if let Ok(matrix) = model.weights.matrix(name) {
            let (n, k) = matrix.shape();
            assert_eq!(matrix.to_f32().len(), n * k);
        }
    }
    let _norm = model.weights.vector(TensorName::FinalNorm);
}

/// The tensors of a model that bitsandbytes has quantized, under a description that is right.
pub fn nf4(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let at = |name: &str| directory.path().join(name);
    let description = seeds::golden("bnb_nf4_double/config.json");
    std::fs::copy(description, at("config.json")).expect("the golden model is here");
    std::fs::write(at("model.safetensors"), bytes).expect("the file can be written");
    let Ok(model) = ModelFiles::open(directory.path()) else {
        return;
    };
    let linears = [
        LayerTensor::Query,
        LayerTensor::Value,
        LayerTensor::Output,
        LayerTensor::Up,
    ];
    for tensor in linears {
        if let Ok(matrix) = model.weights.matrix(TensorName::Layer(0, tensor)) {
            let (n, k) = matrix.shape();
            assert_eq!(matrix.to_f32().len(), n * k);
        }
    }
}

/// Rows of a dataset or of a result.
pub fn json_lines(bytes: &[u8]) {
    if let Ok(imported) = import::import("fuzz.jsonl", bytes) {
        let written = jsonl::write(&imported.samples).expect("what was read can be written");
        let again: Vec<Sample> = jsonl::read("fuzz.jsonl", &written).expect("what was written can be read");
        assert_eq!(again, imported.samples);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let n_lines = text.lines().count() as u64;
    if let Ok(rows) = jsonl::read_lines::<Conversation>("fuzz.jsonl", text, "a conversation") {
        assert!(rows.iter().all(|(line, _)| (1..=n_lines).contains(line)));
    }
    // A row of another kind is an error.
    let _responses = jsonl::read::<Response>("fuzz.jsonl", text);
}

/// The state of a training.
pub fn checkpoint(bytes: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec()) {
        let written = checkpoint.to_bytes().expect("what was read can be written");
        let again = Checkpoint::from_bytes(written).expect("what was written can be read");
        assert_eq!(again, checkpoint);
    }
}

/// An adapter's settings and, behind the first NUL, its tensors.
pub fn adapter(bytes: &[u8]) {
    let cut = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (config, tensors) = bytes.split_at(cut);
    let files = AdapterFiles {
        config: config.to_vec(),
        tensors: tensors.get(1..).unwrap_or_default().to_vec(),
    };
    // Most are of another model.
    let _adapter = peft::from_files(files, golden_config());
}

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("config.json");
    std::fs::write(&path, bytes).expect("the file can be written");
    if let Ok(config) = ModelConfig::from_json_file(&path) {
        assert_eq!(config.windows.len(), config.n_layers);
    }
}

/// A chat template.
pub fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(template) = ChatTemplate::compile(source, "fuzz") {
        let _rendered = template.render(&conversation(), true);
    }
}

fn conversation() -> Vec<Message> {
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    vec![
        message(Role::System, "be <kind>"),
        message(Role::User, "hi \u{1f642}"),
    ]
}

/// The model that the golden adapter was made for.
fn golden_config() -> &'static ModelConfig {
    static CONFIG: OnceLock<ModelConfig> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let path = seeds::golden("llama_tied/config.json");
        ModelConfig::from_json_file(&path).expect("the golden model is here")
    })
}
