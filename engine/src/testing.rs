//! Models that tests run: the golden ones, and one of them with a tokenizer.
//!
//! Invariant: small enough that a test takes milliseconds.

use std::path::{Path, PathBuf};

use llamaduo_kernels::Cuda;
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

/// The same on CUDA: the stand-in beside the test's own file, or with `LLAMADUO_TEST_CUDA=real` the machine's device.
pub(crate) fn open_on_cuda(family: &str, quant: BaseQuant) -> LocalModel<Cuda> {
    if std::env::var_os("LLAMADUO_TEST_CUDA").is_none_or(|value| value != "real") {
        llamaduo_stand_in_driver::load().unwrap();
    }
    LocalModel::with_backend(Cuda::new(0).unwrap(), golden_model(family), quant).unwrap()
}

/// The same on a stand-in that plays Hopper, the one card with kernels of its own.
pub(crate) fn open_on_hopper(family: &str, quant: BaseQuant) -> LocalModel<Cuda> {
    llamaduo_stand_in_driver::load().unwrap();
    llamaduo_stand_in_driver::play(Some((9, 0)));
    let cuda = Cuda::new(0);
    llamaduo_stand_in_driver::play(None);
    let cuda = cuda.unwrap();
    assert_eq!((cuda.info().capability, cuda.left_out()), ((9, 0), None));
    LocalModel::with_backend(cuda, golden_model(family), quant).unwrap()
}

/// ChatML, as its templates have it.
const CHAT_ML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
     {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A copy of a golden model with one token for each byte, and ChatML.
pub(crate) fn directory_with_text(family: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(family)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "config.json" || name.starts_with("model") {
            std::fs::copy(&path, directory.path().join(name)).unwrap();
        }
    }
    let write = |name: &str, json: serde_json::Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    write(
        "tokenizer.json",
        byte_tokenizer(golden_model(family).config.vocab_size),
    );
    write(
        "tokenizer_config.json",
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHAT_ML,
        }),
    );
    directory
}

/// A golden model with one token for each byte, and ChatML.
pub(crate) fn open_with_text() -> LocalModel {
    let directory = directory_with_text("llama_tied");
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

/// Bytes, spelled as GPT-2 spells them, and two special tokens: all 256 bytes where the embedding has as many rows, else
/// those of plain text.
fn byte_tokenizer(n_rows: usize) -> serde_json::Value {
    let is_printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let moved: Vec<u32> = (0..256).filter(|&byte| !is_printable(byte)).collect();
    let spelled = |byte: u32| match moved.iter().position(|&other| other == byte) {
        Some(index) => char::from_u32(256 + index as u32).unwrap(),
        None => char::from_u32(byte).unwrap(),
    };
    let bytes: Vec<u32> = match n_rows >= 258 {
        true => (0..256).collect(),
        false => [u32::from(b'\n')].into_iter().chain(32..125).collect(),
    };
    let ids = bytes.iter().zip(0..);
    let mut vocab: serde_json::Map<String, _> = ids
        .map(|(&byte, id)| (spelled(byte).to_string(), json!(id)))
        .collect();
    let mut added = Vec::new();
    for (id, content) in (bytes.len()..).zip(["<|im_start|>", "<|im_end|>"]) {
        vocab.insert(content.to_owned(), json!(id));
        added.push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
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
