//! Tests of tokenizers and chat templates said in other words.

use serde_json::json;
use tempfile::TempDir;

use super::super::ollama::ChatFormat;
use super::*;
use crate::chat_template::ChatTemplate;

/// A model whose tokenizer.json is `change`d.
fn with_tokenizer(change: impl FnOnce(&mut serde_json::Value)) -> TempDir {
    let model = directory_with_text("llama_tied");
    let path = model.path().join("tokenizer.json");
    let mut definition = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut definition);
    std::fs::write(path, definition.to_string()).unwrap();
    model
}

/// SentencePiece's kind with a few merges, as transformers converts it.
fn sentence_piece(definition: &mut serde_json::Value, merges: &[[&str; 2]]) {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend(merges.iter().map(|[left, right]| format!("{left}{right}")));
    pieces.extend(["▁", "a", "b", "c", "H", "i"].map(str::to_owned));
    let mut unique: Vec<String> = Vec::new();
    pieces.into_iter().for_each(|piece| {
        if !unique.contains(&piece) {
            unique.push(piece);
        }
    });
    let vocab: serde_json::Map<String, serde_json::Value> = unique
        .iter()
        .zip(0..)
        .map(|(piece, id)| (piece.clone(), json!(id)))
        .collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": unique[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    };
    definition["added_tokens"] = json!([special(0), special(1), special(2)]);
    definition["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    definition["pre_tokenizer"] = json!(null);
    definition["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    definition["model"] = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
        "merges": merges,
    });
}

#[test]
fn tokenizers_are_written_whole_or_refused() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("a.gguf");
    let target = Target::Gguf(StoredType::F32);
    let outcome = |model: &TempDir| {
        export(&request(model.path(), None, target, &out), &mut |_| {}).map_err(|error| error.to_string())
    };
    let accepted = |what: &str, model: TempDir, texts: &[&str]| {
        outcome(&model).unwrap_or_else(|error| panic!("{what}: {error}"));
        let (ours, theirs) = (
            ModelFiles::open(model.path()).unwrap(),
            ModelFiles::open(&out).unwrap(),
        );
        for text in texts {
            let (ours, theirs) = (ours.tokenizer().unwrap(), theirs.tokenizer().unwrap());
            assert_eq!(
                ours.encode(text).unwrap(),
                theirs.encode(text).unwrap(),
                "{what}: {text}"
            );
            assert_eq!(
                ours.decode(&ours.encode(text).unwrap()).unwrap(),
                theirs.decode(&theirs.encode(text).unwrap()).unwrap(),
                "{what}"
            );
        }
    };
    let texts = ["Hi  a 12345 it's\n\nü", "<|im_end|>abc ab cab"];
    accepted(
        "gpt-2's splits",
        with_tokenizer(|definition| {
            definition["model"]["vocab"]["ab"] = json!(258);
            definition["model"]["merges"] = json!([["a", "b"]]);
        }),
        &texts,
    );
    let merges = [["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]];
    accepted(
        "SentencePiece's",
        with_tokenizer(|definition| sentence_piece(definition, &merges)),
        &["ab ab", "Hi ab aab", "ü"],
    );

    let refused = |model: TempDir, word: &str| {
        let error = outcome(&model).unwrap_err();
        assert!(error.contains(word) && error.contains("safetensors"), "{error}");
    };
    // No splits at all have no name in llama.cpp.
    refused(
        with_tokenizer(|definition| definition["pre_tokenizer"]["use_regex"] = json!(false)),
        "splits",
    );
    refused(
        with_tokenizer(|definition| {
            definition["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
        }),
        "splits",
    );
    // A way to make `▁ab` is missing, so a score for it would say more than its merges.
    refused(
        with_tokenizer(|definition| sentence_piece(definition, &merges[..3])),
        "`▁ab`",
    );
    let apart = [["▁", "a"], ["▁a", "b"], ["a", "b"], ["▁", "ab"]];
    refused(
        with_tokenizer(|definition| sentence_piece(definition, &apart)),
        "several places",
    );
}

fn format_of(template: &str, bos: Option<&str>) -> Option<ChatFormat> {
    let mut template = template.to_owned();
    if let Some(bos) = bos {
        template = template.replace("bos_token", &format!("'{bos}'"));
    }
    ChatFormat::of(&ChatTemplate::compile(&template, "test").unwrap(), bos)
}

#[test]
fn known_chat_formats_become_go_templates() {
    let chat_ml = format_of(
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind\
         <|im_end|>\n' }}{% endif %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        None,
    );
    assert_eq!(
        chat_ml.unwrap().go_template(),
        r#"{{- $before := "" }}
{{- if .System }}{{ "<|im_start|>system\n" }}{{ .System }}{{ "<|im_end|>\n<|im_start|>user\n" }}
{{- else }}{{ "<|im_start|>system\nYou are kind<|im_end|>\n<|im_start|>user\n" }}
{{- end }}
{{- range .Messages }}
{{- if eq .Role "user" }}
{{- if eq $before "assistant" }}{{ "<|im_end|>\n<|im_start|>user\n" }}{{ end }}{{ .Content }}
{{- $before = "user" }}
{{- else if eq .Role "assistant" }}
{{- if eq $before "user" }}{{ "<|im_end|>\n<|im_start|>assistant\n" }}{{ end }}{{ .Content }}
{{- $before = "assistant" }}
{{- end }}
{{- end }}
{{- if eq $before "user" }}{{ "<|im_end|>\n<|im_start|>assistant\n" }}{{ end }}"#
    );
    let llama3 = format_of(
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' \
         + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}\
         {% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        Some("<|begin_of_text|>"),
    );
    assert!(!llama3.unwrap().go_template().contains("begin_of_text"));
    let gemma = format_of(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}\
         {% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}\
         {{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        Some("<bos>"),
    );
    // Where the template refuses a system message, it goes before the first question.
    let gemma = gemma.unwrap().go_template();
    assert!(
        gemma.contains(r#"{{ "<start_of_turn>user\n" }}{{ .System }}{{ "\n\n" }}"#),
        "{gemma}"
    );
    let mistral = format_of(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}\
         {% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% else %}{{ raise_exception('no') }}\
         {% endif %}{% endfor %}",
        Some("<s>"),
    );
    assert!(mistral.unwrap().go_template().contains(r#"{{ "[/INST] " }}"#));

    let refused = [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ loop.index }} {{ m['content'] }}{% endfor %}",
        "{{ messages[-1]['content'] }}",
        "{{ raise_exception('never') }}",
    ];
    for template in refused {
        assert_eq!(format_of(template, None), None, "{template}");
    }
}
