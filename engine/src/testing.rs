//! Models that tests run: the golden ones, and one of them with a tokenizer.
//!
//! Invariant: small enough that a test takes milliseconds.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::files::ModelFiles;
use crate::local_model::{BaseQuant, LoadOptions, LocalModel};

/// The references of a family: those kept with the project, or in the directory `LLAMADUO_GOLDEN` others that the same
/// scripts have made.
pub(crate) fn golden(family: &str) -> PathBuf {
    match std::env::var_os("LLAMADUO_GOLDEN") {
        Some(others) => Path::new(&others).join(family),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/golden")
            .join(family),
    }
}

/// The model of a family.
pub(crate) fn golden_model(family: &str) -> ModelFiles {
    ModelFiles::open(&golden(family)).unwrap()
}

/// The model of a family, ready to run.
pub(crate) fn open(family: &str, quant: BaseQuant) -> LocalModel {
    LocalModel::open(
        golden_model(family),
        &LoadOptions {
            quant,
            ..LoadOptions::default()
        },
    )
    .unwrap()
}

/// A golden model with one token for each byte, and ChatML.
pub(crate) fn open_with_text() -> LocalModel {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama_tied").join(file), directory.path().join(file)).unwrap();
    }
    let write = |name: &str, json: serde_json::Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    write("tokenizer.json", byte_tokenizer());
    write(
        "tokenizer_config.json",
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
            "chat_template": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' \
                + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        }),
    );
    let files = ModelFiles::open(directory.path()).unwrap();
    LocalModel::open(
        files,
        &LoadOptions {
            quant: BaseQuant::None,
            ..LoadOptions::default()
        },
    )
    .unwrap()
}

/// 256 bytes, spelled as GPT-2 spells them, and two special tokens.
fn byte_tokenizer() -> serde_json::Value {
    let is_printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let moved: Vec<u32> = (0..256).filter(|&byte| !is_printable(byte)).collect();
    let spelled = |byte: u32| match moved.iter().position(|&other| other == byte) {
        Some(index) => char::from_u32(256 + index as u32).unwrap(),
        None => char::from_u32(byte).unwrap(),
    };
    let mut vocab: serde_json::Map<String, _> = (0..256)
        .map(|byte| (spelled(byte).to_string(), json!(byte)))
        .collect();
    let mut added = Vec::new();
    for (id, content) in [(256, "<|im_start|>"), (257, "<|im_end|>")] {
        vocab.insert(content.to_owned(), json!(id));
        added.push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
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
