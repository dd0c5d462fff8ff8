//! A model small enough that a test trains it: a golden one, with one token for each byte.

use std::path::Path;

use serde_json::json;

/// Puts the files of a golden model into `directory`.
pub(crate) fn tiny_model(family: &str, directory: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(family);
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), directory.join(file)).unwrap();
    }
    let write = |name: &str, json: serde_json::Value| {
        std::fs::write(directory.join(name), json.to_string()).unwrap();
    };
    write("tokenizer.json", byte_tokenizer());
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    write(
        "tokenizer_config.json",
        json!({"eos_token": "<|im_end|>", "chat_template": template}),
    );
}

/// Every byte, spelled as GPT-2 spells it, and the two tokens of ChatML.
fn byte_tokenizer() -> serde_json::Value {
    let is_printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut n_moved = 0;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256 {
        let code = if is_printable(byte) {
            byte
        } else {
            n_moved += 1;
            255 + n_moved
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let added: Vec<_> = [(256, "<|im_start|>"), (257, "<|im_end|>")]
        .into_iter()
        .map(|(id, content)| {
            vocab.insert(content.to_owned(), json!(id));
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        },
    })
}
