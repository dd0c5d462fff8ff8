//! A card's memory and its failures, as a user meets them: what `plan` says, and runs that go on all the same.
//!
//! Invariant: the driver is the stand-in, given to the program as a user's would be: by the loader's path.

#![cfg(target_os = "linux")] // where LD_LIBRARY_PATH is the loader's path

use std::fs;
use std::path::{Path, PathBuf};

use llamaduo_tests::process::{self, Output, llamaduo};
use llamaduo_tests::service::Service;
use llamaduo_tests::site::Site;
use serde_json::Value;

use crate::device::{driver, json, with_driver};

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(family)
}

/// Tokens of a row of [`site`]: three bytes and the 21 tokens that the template puts around them.
const ROW_TOKENS: usize = 24;

/// A site whose model has heads that there are kernels for, and whose rows are short, since the card is slow.
fn site() -> Site {
    let site = Site::new();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden("mistral").join(file), site.path("model").join(file)).unwrap();
    }
    let row = |n| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"q{n}\"}}, {{\"role\": \"assistant\", \"content\": \"{n}\"}}]}}\n"
        )
    };
    site.write("coverage.jsonl", &(0..6).map(row).collect::<String>());
    site
}

const SHORT: [&str; 4] = [
    "data.test_count=2",
    "train.epochs=1",
    "train.sequence_tokens=64",
    "infer.max_tokens=4",
];

/// A stage on the card.
fn on_card(site: &Site, words: &[&str], settings: &[(&str, &str)]) -> Output {
    let service = Service::start_reliable();
    let folder = driver();
    let words = [words, &["--device", "cuda:0"]].concat();
    let mut command = with_driver(folder.path(), &words, settings);
    command.current_dir(site.root());
    site.configure(&mut command, service.url(), &SHORT);
    process::run(&mut command)
}

fn adapter(site: &Site, name: &str) -> Vec<u8> {
    fs::read(site.path(name).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_card_that_fails_or_is_full_costs_a_try_and_no_more() {
    let site = site();
    let whole = on_card(&site, &["train", "--out", "whole"], &[]);
    assert_eq!(whole.code(), 0, "{}", whole.stderr);
    for (name, fault, words) in [
        ("lost", "launch:150=719", ["opened anew", "is open again"]),
        (
            "full",
            "allocate:95=2,allocate:96=2",
            ["ran out of memory", "no room for"],
        ),
    ] {
        fs::remove_dir_all(site.path(".llamaduo")).unwrap_or_default();
        let output = on_card(&site, &["train", "--out", name], &[("STAND_IN_FAULTS", fault)]);
        assert_eq!(output.code(), 0, "{}", output.stderr);
        for word in [&words[..], &["next try"]].concat() {
            assert!(output.stderr.contains(word), "no `{word}` in: {}", output.stderr);
        }
        assert!(
            adapter(&site, name) == adapter(&site, "whole"),
            "{name}: another adapter"
        );
    }
}

#[test]
fn what_a_card_cannot_hold_is_changed_or_refused_before_it_begins() {
    let site = site();
    let small = on_card(
        &site,
        &["train", "--out", "small"],
        &[("STAND_IN_MEMORY_MIB", "600")],
    );
    assert_eq!(small.code(), 1, "{}", small.stderr);
    assert!(
        small.stderr.contains("the base model alone needs") && small.stderr.contains("a card with"),
        "{}",
        small.stderr
    );
    assert!(!small.stderr.contains("next try"), "{}", small.stderr);

    // A byte too little for a step that keeps all activations.
    let (model, seq) = (site.path("model"), ROW_TOKENS.to_string());
    let words = [
        "plan",
        "--model",
        model.to_str().unwrap(),
        "-o",
        "json",
        "--rank",
        "4",
        "--rows",
        "1",
    ];
    let planned = json(llamaduo().args(words).args(["--seq", &seq]));
    let bytes = planned["training"]["bytes"].as_u64().unwrap() - 1;
    let mib = (bytes as f64 / f64::from(1 << 20)).to_string();
    let tight = on_card(
        &site,
        &["train", "--out", "tight"],
        &[("STAND_IN_MEMORY_MIB", &mib)],
    );
    assert_eq!(tight.code(), 0, "{}", tight.stderr);
    assert!(
        tight.stderr.contains("activations are made again"),
        "{}",
        tight.stderr
    );
}

fn plan(words: &[&str]) -> Output {
    process::run(llamaduo().arg("plan").args(words))
}

/// A config.json with no weights beside it.
fn described(site: &Site) -> PathBuf {
    fs::create_dir(site.path("described")).unwrap();
    let described = site.path("described/config.json");
    fs::copy(golden("llama3").join("config.json"), &described).unwrap();
    described
}

/// The plan of a model on a card that is large enough.
fn planned(model: &Path) -> Value {
    let words = [
        "--model",
        model.to_str().unwrap(),
        "--memory",
        "24GB",
        "-o",
        "json",
    ];
    serde_json::from_str(&plan(&words).stdout).unwrap()
}

#[test]
fn a_plan_needs_neither_weights_nor_a_card() {
    let site = site();
    let described = described(&site);
    let [file, folder, whole] = [described.clone(), site.path("described"), golden("llama3")].map(|path| {
        let mut planned = planned(&path);
        planned["model"] = Value::Null;
        planned
    });
    assert_eq!((&file, &file), (&folder, &whole));
    assert_eq!(file["memory_bytes"], 24_000_000_000u64);
    for work in ["training", "generation"] {
        let parts = file[work]["parts"].as_object().unwrap();
        let sum: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(file[work]["bytes"], sum);
        assert_eq!(file[work]["fits"], true);
    }
    let unsure = plan(&["--model", described.to_str().unwrap()]);
    assert_eq!(unsure.code(), 0, "{}", unsure.stderr);
    assert!(
        unsure.stdout.contains("linears of the blocks"),
        "{}",
        unsure.stdout
    );
    assert!(unsure.stdout.contains("give --memory"), "{}", unsure.stdout);
    plan(&["--memory", "24GB"]).assert_refused(2, &["--model"]);
    plan(&["--model", "nowhere", "--memory", "24"]).assert_refused(2, &["24GB"]);
    plan(&["--model", "nowhere", "--memory", "24GB"]).assert_refused(2, &["nowhere"]);
}

#[test]
fn a_plan_says_what_does_not_fit_and_what_would() {
    let site = site();
    let described = described(&site);
    let words = ["--model", described.to_str().unwrap()];
    let small = plan(
        &[
            &words[..],
            &["--memory", "601MiB", "--rank", "64", "--batch", "1000"],
        ]
        .concat(),
    );
    assert_eq!(small.code(), 1, "{}", small.stdout);
    assert!(
        small.stdout.contains("does not fit: training on rows of"),
        "{}",
        small.stdout
    );
    assert!(small.stdout.contains("a card with"), "{}", small.stdout);
    let planned = planned(&described);
    let [asked, memory] = ["training", "generation"].map(|work| planned[work]["bytes"].as_u64().unwrap());
    let memory = format!("{}B", asked.max(memory) - 1);
    let changed = plan(&[&words[..], &["--memory", &memory]].concat());
    assert_eq!(changed.code(), 0, "{}", changed.stdout);
    for said in [
        "memory as asked:",
        "activations kept for the backward",
        "as asked (",
        "a worker makes it fit with",
    ] {
        assert!(
            changed.stdout.contains(said),
            "no `{said}` in: {}",
            changed.stdout
        );
    }
    let long = plan(&[&words[..], &["--context", "1000000", "--seq", "1000000"]].concat());
    assert_eq!(long.code(), 0, "{}", long.stderr);
    for option in ["--context", "--seq"] {
        let said = format!("note: {option} 1000000 is more than the ");
        assert!(long.stderr.contains(&said), "{}", long.stderr);
    }
}

#[test]
fn a_plan_reads_the_config_and_asks_the_card() {
    let (site, folder) = (site(), driver());
    let config = site.path("llamaduo.toml");
    let words = [
        "plan",
        "-c",
        config.to_str().unwrap(),
        "--device",
        "cuda:0",
        "-o",
        "json",
    ];
    let planned = json(&mut with_driver(folder.path(), &words, &[]));
    assert_eq!(planned["memory_bytes"], 1 << 30);
    assert_eq!(planned["training"]["settings"]["rank"], 4);
    assert_eq!(planned["training"]["settings"]["tokens"], 512);
    let words = [&words[..], &["--set", "train.lora_rank=16", "--seq", "100"]].concat();
    let planned = json(&mut with_driver(folder.path(), &words, &[]));
    assert_eq!(planned["training"]["settings"]["rank"], 16);
}
