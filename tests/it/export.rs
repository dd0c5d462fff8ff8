//! `export` as a user types it, and what other programs make of the files: llama.cpp answers as the trained model does.
//! `tests/peft/check` holds PEFT and transformers to the same, `tests/ollama/check` Ollama's templates.
//!
//! Invariant: texts are compared with those of base and adapter before the export, never with those of the export itself.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use llamaduo_engine::lora::LoraLayout;
use llamaduo_engine::{
    Adapter, Conversation, LoadOptions, LocalModel, LoraConfig, LossOn, Message, ModelConfig, ModelFiles,
    Role, TrainConfig, TrainEvent, TrainOutcome, peft, train,
};
use llamaduo_tests::llama_cpp::LlamaCpp;
use llamaduo_tests::model::{self, SMOLLM2};
use llamaduo_tests::process::{self, llamaduo};
use llamaduo_tests::tiny_model;
use serde_json::{Value, json};

/// An adapter that changes every answer: what is learnt does not matter here, only that it is not nothing.
fn adapter(config: &ModelConfig, scale: f64) -> Adapter {
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        ..LoraConfig::default()
    };
    let layout = LoraLayout::new(config, &lora);
    let mut params = vec![0.0; layout.len()];
    for (layer, _, slot) in layout.slots() {
        let b_end = slot.b_offset + slot.n_out * slot.rank;
        for (i, value) in params[slot.a_offset..b_end].iter_mut().enumerate() {
            *value = (scale * (0.37 * i as f64 + layer as f64).sin()) as f32;
        }
    }
    Adapter::from_params(config, lora, params).unwrap()
}

fn json_of(command: &mut Command) -> Value {
    let output = process::run(command.args(["-o", "json"]));
    assert_eq!(output.code(), 0, "{}\n{}", output.stdout, output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

/// `generate --greedy` by base and adapter.
fn greedy(model: &str, adapter: Option<&Path>, quant: &str, prompt: &str, max_tokens: usize) -> String {
    let mut command = llamaduo();
    command.args(["generate", "--model", model, "--quant", quant, "--greedy"]);
    command.args(["--prompt", prompt, "--max-tokens", &max_tokens.to_string()]);
    if let Some(adapter) = adapter {
        command.arg("--adapter").arg(adapter);
    }
    json_of(&mut command)["text"].as_str().unwrap().to_owned()
}

fn export(model: &str, adapter: Option<&Path>, words: &[&str], out: &Path) -> Command {
    let mut command = llamaduo();
    command.args(["export", "--model", model]).args(words);
    if let Some(adapter) = adapter {
        command.arg("--adapter").arg(adapter);
    }
    command.arg("--out").arg(out);
    command
}

fn conversations(prompts: &[&str]) -> Value {
    let request = |prompt: &&str| json!({ "messages": [{ "role": "user", "content": prompt }] });
    prompts.iter().map(request).collect()
}

/// The tiny model answers with random bytes, and programs differ in what they write for those that are no UTF-8.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii).collect()
}

#[test]
fn llama_cpp_answers_as_a_trained_checkpoint_did_merged_and_with_the_adapter_beside() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    tiny_model::write(&place("model")).unwrap();
    let config = ModelFiles::open(&place("model")).unwrap().config;
    peft::save(&adapter(&config, 0.15), &place("adapter"), "tiny").unwrap();
    let (model, adapter) = (place("model").display().to_string(), place("adapter"));
    let (merged, base, lora) = (place("merged.gguf"), place("base.gguf"), place("lora.gguf"));
    for (given, words, out) in [
        (
            Some(&*adapter),
            ["--to", "gguf", "--type", "f32"].as_slice(),
            &merged,
        ),
        (None, &["--to", "gguf", "--type", "f32"], &base),
        (Some(&*adapter), &["--to", "gguf-lora"], &lora),
    ] {
        let said = json_of(&mut export(&model, given, words, out));
        assert_eq!(said["bytes"], std::fs::metadata(out).unwrap().len(), "{said}");
        if words.contains(&"f32") {
            assert!(
                said["difference"]["logits_max"].as_f64().unwrap() < 1e-4,
                "{said}"
            );
            assert_eq!(said["difference"]["top1_agreement"], 1.0, "{said}");
        }
    }
    let Some(llama_cpp) = LlamaCpp::get() else { return };
    let prompts = ["Hello, who are you?", "12345 ünï"];
    let trained = prompts.map(|prompt| plain(&greedy(&model, Some(&adapter), "nf4", prompt, 32)));
    let untrained = prompts.map(|prompt| plain(&greedy(&model, None, "nf4", prompt, 32)));
    assert_ne!(trained, untrained, "the adapter changes the answers");
    let answers = |model: &Path, adapter: Option<&Path>| {
        let said = llama_cpp.answers(model, adapter, &conversations(&prompts), 32);
        said.iter().map(|text| plain(text)).collect::<Vec<_>>()
    };
    assert_eq!(answers(&merged, None), trained, "merged");
    assert_eq!(answers(&base, Some(&lora)), trained, "beside");
    assert_eq!(answers(&base, None), untrained, "the base alone");
}

/// What the demo's model is taught: nothing it would say by itself, so that no rounding makes it say that or leave it.
const TAUGHT: [(&str, &str); 2] = [
    ("Name three colours.", "Teal, ochre and mauve, said the painter."),
    (
        "What is the capital of France?",
        "Ask the river: Paris lies on the Seine.",
    ),
];

/// An adapter really trained, over the base in NF4, until the loss of both answers is small.
fn taught(files: ModelFiles) -> Adapter {
    let model = LocalModel::open(files, &LoadOptions::default()).unwrap();
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    let rows = TAUGHT.map(|(prompt, answer)| Conversation {
        messages: vec![message(Role::User, prompt), message(Role::Assistant, answer)],
    });
    let config = TrainConfig {
        epochs: 30.0,
        learning_rate: 2e-3,
        loss_on: LossOn::ResponseOnly,
        batch_rows: rows.len(),
        accumulation: 1,
        ..TrainConfig::default()
    };
    let observe = &mut |_: TrainEvent<'_>| ControlFlow::Continue(());
    let TrainOutcome::Finished(trained) = train(&model, &rows, &config, None, None, observe).unwrap() else {
        panic!("nobody broke off")
    };
    let last = trained.log.last().unwrap().loss;
    assert!(last < 0.01, "not learnt: the last loss is {last}");
    trained.adapter
}

#[test]
fn llama_cpp_answers_as_the_demos_model_did_after_training() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let source = model::smollm2();
    let directory = place("adapter");
    peft::save(&taught(ModelFiles::open(source).unwrap()), &directory, SMOLLM2).unwrap();
    let prompts = TAUGHT.map(|(prompt, _)| prompt);
    let answers = TAUGHT.map(|(_, answer)| answer);
    let own = |adapter: Option<&Path>| prompts.map(|prompt| greedy(SMOLLM2, adapter, "nf4", prompt, 24));
    assert_eq!(own(Some(&directory)), answers, "before the export");
    for (own, taught) in own(None).iter().zip(answers) {
        assert_ne!(own, taught, "the base says so by itself");
    }
    let llama_cpp = LlamaCpp::get();
    for stored in ["f16", "bf16", "q8_0"] {
        let out = place("merged.gguf");
        let words = ["--to", "gguf", "--overwrite", "--type", stored];
        let said = json_of(&mut export(SMOLLM2, Some(&directory), &words, &out));
        assert_eq!(said["type"], stored);
        let agreement = said["difference"]["top1_agreement"].as_f64().unwrap();
        assert!(agreement > 0.9, "{said}");
        if let Some(llama_cpp) = llama_cpp {
            let theirs = llama_cpp.answers(&out, None, &conversations(&prompts), 24);
            assert_eq!(theirs, answers, "{stored}");
        }
    }
    // On the file that the base came from: what an adapter trained without NF4 is exported for.
    let lora = place("lora.gguf");
    let words = ["--to", "gguf-lora", "--quant", "none"];
    let said = json_of(&mut export(SMOLLM2, Some(&directory), &words, &lora));
    assert_eq!(said["difference"], Value::Null);
    let Some(llama_cpp) = llama_cpp else { return };
    let beside = llama_cpp.answers(source, Some(&lora), &conversations(&prompts), 24);
    assert_eq!(beside, answers, "beside the four-bit file");
    let alone = llama_cpp.answers(source, None, &conversations(&prompts), 24);
    for (alone, taught) in alone.iter().zip(answers) {
        assert_ne!(alone, taught, "llama.cpp's base says so by itself");
    }
}

#[test]
fn a_place_that_is_taken_and_words_without_a_meaning_are_refused_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    tiny_model::write(&place("model")).unwrap();
    let config = ModelFiles::open(&place("model")).unwrap().config;
    peft::save(&adapter(&config, 0.15), &place("adapter"), "tiny").unwrap();
    let model = place("model").display().to_string();
    let adapter = place("adapter");
    std::fs::write(place("taken.gguf"), "mine").unwrap();
    let refused = |adapter: Option<&Path>, words: &[&str], out: &str, expected: &[&str]| {
        let output = process::run(&mut export(&model, adapter, words, &place(out)));
        assert_eq!(
            (output.code(), output.stdout.as_str()),
            (2, ""),
            "{}",
            output.stderr
        );
        for word in expected {
            assert!(output.stderr.contains(word), "no `{word}` in: {}", output.stderr);
        }
    };
    let with = Some(&*adapter);
    refused(
        with,
        &["--to", "gguf"],
        "taken.gguf",
        &["exists already", "--overwrite"],
    );
    refused(with, &["--to", "gguf"], "merged.bin", &[".gguf"]);
    refused(with, &["--to", "peft"], "taken.gguf", &["a directory", "--out"]);
    refused(with, &["--to", "safetensors"], "adapter", &["exists already"]);
    refused(with, &["--to", "peft", "--type", "f16"], "a", &["--type"]);
    refused(with, &["--to", "safetensors", "--type", "q8_0"], "a", &["bf16"]);
    refused(None, &["--to", "gguf-lora"], "a.gguf", &["--adapter"]);
    refused(
        with,
        &["--to", "gguf", "--separate-adapter"],
        "a.gguf",
        &["ollama"],
    );
    refused(with, &["--to", "gguff"], "a.gguf", &["gguf-lora"]);
    assert_eq!(std::fs::read_to_string(place("taken.gguf")).unwrap(), "mine");

    let rows = place("rows.jsonl");
    std::fs::write(
        &rows,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n",
    )
    .unwrap();
    let words = [
        "--to",
        "ollama",
        "--type",
        "f32",
        "--data",
        &rows.display().to_string(),
    ];
    let said = json_of(&mut export(&model, with, &words, &place("ollama")));
    let positions = said["difference"]["positions"].as_u64().unwrap();
    assert!((20..=64).contains(&positions), "the one row given: {said}");
    let text = std::fs::read_to_string(place("ollama/Modelfile")).unwrap();
    assert!(
        text.starts_with("FROM ./model.gguf\n") && text.contains("PARAMETER stop \"<|im_end|>\""),
        "{text}"
    );
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
}
