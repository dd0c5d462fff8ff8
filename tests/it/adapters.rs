//! One prompt answered by several adapters and by the base, side by side.
//!
//! Invariant: an answer is the one that the same command gives with its adapter alone.

use std::path::Path;
use std::process::Command;

use llamaduo_engine::{Adapter, LoraConfig, LoraTargets, ModelFiles, peft};
use llamaduo_tests::process::{self, llamaduo};
use llamaduo_tests::tiny_model;
use serde_json::Value;
use tempfile::TempDir;

/// The tiny model with adapters `a` and `b`, of different sizes, both of which change what is said.
fn site() -> TempDir {
    let site = TempDir::new().unwrap();
    let model = site.path().join("model");
    tiny_model::write(&model).unwrap();
    let config = ModelFiles::open(&model).unwrap().config;
    for (name, rank, targets, step) in [
        ("a", 8, LoraTargets::AllLinear, 0.37),
        ("b", 3, LoraTargets::Qv, 0.61),
    ] {
        let lora = LoraConfig {
            rank,
            targets,
            ..LoraConfig::default()
        };
        let n_params = Adapter::init(&config, &lora, 1).unwrap().params().len();
        let params = (0..n_params).map(|i| 0.2 * (step * i as f32).sin());
        let adapter = Adapter::from_params(&config, lora, params.collect()).unwrap();
        peft::save(&adapter, &site.path().join(name), "tiny").unwrap();
    }
    site
}

/// `generate`, sampled, with these adapters and further words.
fn generate(site: &Path, adapters: &[&str], more: &[&str]) -> process::Output {
    let mut command: Command = llamaduo();
    command.args(["generate", "--model", "model", "--prompt", "a long enough prompt"]);
    command.args(["--seed", "3"]);
    if !more.contains(&"--max-tokens") {
        command.args(["--max-tokens", "10"]);
    }
    for adapter in adapters {
        command.args(["--adapter", adapter]);
    }
    process::run(command.args(more).current_dir(site))
}

fn json(output: &process::Output) -> Value {
    assert_eq!(output.code(), 0, "{}\n{}", output.stdout, output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn several_adapters_answer_as_each_of_them_alone() {
    let site = site();
    let site = site.path();
    let as_json = ["-o", "json", "--logprobs", "1"];
    let together = json(&generate(site, &["b", "none", "a"], &as_json));
    let answers = together["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3);
    for (answer, (name, alone)) in answers.iter().zip([
        (Value::from("b"), generate(site, &["b"], &as_json)),
        (Value::Null, generate(site, &[], &as_json)),
        (Value::from("a"), generate(site, &["a"], &as_json)),
    ]) {
        let mut answer = answer.clone();
        assert_eq!(answer.as_object_mut().unwrap().remove("adapter"), Some(name));
        assert_eq!(answer, json(&alone));
    }
    assert_ne!(answers[0]["text"], answers[1]["text"]);
    assert_ne!(answers[1]["text"], answers[2]["text"]);

    let text = |adapters: &[&str]| {
        let output = generate(site, adapters, &[]);
        assert_eq!(output.code(), 0, "{}", output.stderr);
        output.stdout
    };
    let (a, b, base) = (text(&["a"]), text(&["b"]), text(&["none"]));
    assert_eq!(base, text(&[]));
    let expected = format!("--- b\n{b}\n--- the base alone\n{base}\n--- a\n{a}");
    assert_eq!(text(&["b", "none", "a"]), expected);
}

#[test]
fn adapters_that_cannot_answer_are_named_before_the_model_is_loaded() {
    let site = site();
    generate(site.path(), &["a", "b", "a"], &[]).assert_refused(2, &["--adapter a is given twice"]);
    generate(site.path(), &["a", "a/../a"], &[]).assert_refused(
        2,
        &["--adapter a/../a is the same as --adapter a; name each once"],
    );
    generate(site.path(), &["a", "model"], &[]).assert_refused(2, &["model holds no adapter"]);
    let output = generate(site.path(), &["a", "none"], &["--max-tokens", "100000"]);
    output.assert_refused(2, &["or less, or shorten the prompt"]);
}
