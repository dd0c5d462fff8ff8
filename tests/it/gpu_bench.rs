//! The script that measures a card, rehearsed on the stand-in driver: its parts, its limits and its table.
//!
//! Invariant: a rehearsal runs the real script, the real program and the real kernels at tiny sizes; no figure of it
//! means anything, so none is looked at but for being there.

#![cfg(target_os = "linux")] // where LD_LIBRARY_PATH is the loader's path

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use llamaduo_tests::process;
use serde_json::Value;
use tempfile::TempDir;

/// Parts of the program itself; the others are of peers, whose packages need not be here.
const OWN_PARTS: [&str; 8] = [
    "doctor",
    "operations, Llama 3.1 8B",
    "accuracy, what the card computes",
    "decoding",
    "training, recomputing",
    "training",
    "training, Gemma 7B",
    "operations, Gemma 7B",
];

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/gpu/run")
}

/// A folder with the stand-in under the driver's name, and what answers as `nvidia-smi`: 1 GiB is in use before a part,
/// 3 GiB while it runs.
fn machine() -> TempDir {
    let folder = TempDir::new().unwrap();
    let built = std::env::current_exe()
        .unwrap()
        .with_file_name("libllamaduo_stand_in_driver.so");
    std::os::unix::fs::symlink(&built, folder.path().join("libcuda.so")).unwrap();
    let told = folder.path().join("nvidia-smi");
    let text = "#!/bin/sh\ncase \"$*\" in\n*driver_version*) echo 550.54.14 ;;\n\
        *loop-ms*) while :; do echo 3072; sleep 0.02; done ;;\n*) echo 1024 ;;\nesac\n";
    std::fs::write(&told, text).unwrap();
    std::fs::set_permissions(&told, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn rehearse(folder: &Path, out: &Path, more: &[&str], settings: &[(&str, &str)]) -> process::Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(script());
    command
        .args(["--rehearse", "--seconds", "600", "--out"])
        .arg(out)
        .arg("--llamaduo")
        .arg(process::binary())
        .arg("--library-path")
        .arg(folder)
        .args(more)
        .env("PATH", format!("{}:{path}", folder.display()))
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    process::run(&mut command)
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("results.json")).unwrap()).unwrap()
}

fn part<'r>(report: &'r Value, name: &str) -> &'r Value {
    let parts = report["parts"].as_array().unwrap();
    let found = parts.iter().find(|part| part["name"] == name);
    found.unwrap_or_else(|| panic!("no part {name} in {parts:?}"))
}

#[test]
fn every_part_is_rehearsed_without_a_card() {
    let (folder, out) = (machine(), TempDir::new().unwrap());
    let output = rehearse(folder.path(), out.path(), &[], &[]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let report = report(out.path());
    for name in OWN_PARTS {
        assert_eq!(part(&report, name)["state"], "ok", "{report:#}");
    }
    for peer in ["peers' operations, Llama 3.1 8B", "transformers, decoding"] {
        // either it ran, or it says what is missing
        let part = part(&report, peer);
        assert!(
            part["state"] == "ok" || part["reason"].as_str().unwrap().contains("is not there"),
            "{part}"
        );
    }
    let kernels = report["results"]["llama_kernels"]["llamaduo"]["kernels"]
        .as_array()
        .unwrap();
    for op in [
        "copy_act",
        "linears",
        "matmul_backward",
        "linears_lora",
        "lora_backward",
        "logits",
        "cross_entropy",
        "attention",
        "attention_backward",
        "attention_paged",
        "rms_norm",
        "add_rms_norm",
        "rms_norm_backward",
        "rope_both",
        "gated",
        "gated_backward",
        "add",
        "adamw",
    ] {
        let times: Vec<&Value> = kernels.iter().filter(|time| time["op"] == op).collect();
        assert!(!times.is_empty(), "no {op}");
        for time in times {
            assert!(time["seconds"].as_f64().unwrap() > 0.0, "{time}");
        }
    }
    let decoding = &report["results"]["decoding"]["runs"];
    assert_eq!(
        (&decoding[0]["batch"], &decoding[1]["batch"]),
        (&1.into(), &2.into())
    );
    assert!(
        report["results"]["training"]["runs"][0]["tokens_per_s"]
            .as_f64()
            .unwrap()
            > 0.0
    );

    let goals = report["goals"].as_array().unwrap();
    let goal = |what: &str| goals.iter().find(|goal| goal["what"] == what).unwrap();
    for goal in goals {
        let (state, detail) = (&goal["state"], goal["detail"].as_str().unwrap());
        assert!(*state == "rehearsed" || *state == "not measured", "{goal}");
        assert_eq!(goal["value"].is_null(), *state == "not measured", "{goal}");
        assert!(!detail.is_empty(), "{goal}");
    }
    assert_eq!(goal("NF4 products, one row")["state"], "rehearsed");
    assert_eq!(goal("memory of training, Gemma 7B")["value"], 2.0);
    assert_eq!(report["driver"], "550.54.14");
    // the table comes last, and is kept
    let summary = std::fs::read_to_string(out.path().join("summary.txt")).unwrap();
    assert!(output.stdout.ends_with(&summary), "{}", output.stdout);
    assert!(summary.contains("a rehearsal at tiny sizes"), "{summary}");
}

#[test]
fn parts_that_fail_are_told_of_and_the_others_go_on() {
    let (folder, out) = (machine(), TempDir::new().unwrap());
    // a program that fails, and a card with little memory
    let parts = [
        "every operation against the CPU",
        "operations, Llama 3.1 8B",
        "training",
    ];
    let more = [&["--conformance", "/bin/false", "--only"][..], &parts].concat();
    let output = rehearse(folder.path(), out.path(), &more, &[("STAND_IN_MEMORY_MIB", "1")]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let report = report(out.path());
    let states = parts.map(|name| part(&report, name)["state"].as_str().unwrap().to_owned());
    assert_eq!(states, ["failed", "ok", "ok"], "{report:#}");
    let kernels = report["results"]["llama_kernels"]["llamaduo"]["kernels"]
        .as_array()
        .unwrap();
    let without_room: Vec<&Value> = kernels.iter().filter(|time| time["seconds"].is_null()).collect();
    assert!(
        !without_room.is_empty() && without_room.len() < kernels.len(),
        "{kernels:?}"
    );
    for time in without_room {
        assert!(time["error"].as_str().unwrap().contains("no room"), "{time}");
    }
    let goals = report["goals"].as_array().unwrap();
    let states = |what: &str| &goals.iter().find(|goal| goal["what"] == what).unwrap()["state"];
    assert_eq!(states("training"), "rehearsed");
    assert_eq!(states("decoding, batch 1"), "not measured");
}

#[test]
fn what_no_longer_fits_into_the_time_is_left_out_by_name() {
    let (folder, out) = (machine(), TempDir::new().unwrap());
    let output = rehearse(folder.path(), out.path(), &["--seconds", "20"], &[]);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let report = report(out.path());
    let last = part(&report, "operations, Gemma 7B");
    assert_eq!(last["state"], "skipped", "{report:#}");
    assert!(last["reason"].as_str().unwrap().contains("out of time"), "{last}");
}

#[test]
fn a_machine_without_a_card_is_told_so() {
    let out = TempDir::new().unwrap();
    let mut command = Command::new(script());
    command
        .arg("--out")
        .arg(out.path())
        .arg("--llamaduo")
        .arg(process::binary());
    let output = process::run(&mut command);
    if output.code() == 0 {
        println!("skipped: this machine has a card, and it was measured");
        return;
    }
    assert!(
        output.stderr.contains("there is no CUDA device to measure"),
        "{}",
        output.stderr
    );
}

#[test]
fn goals_are_met_missed_or_not_measured() {
    let folder = script().parent().unwrap().to_owned();
    let words = "import goals, json\n\
        above = lambda value: value >= 2\n\
        states = [goals.judged('a', 'b', figure, above)['state'] for figure in (\n\
            lambda: (2.0, 'd'), lambda: (1.9, 'd'), goals.missing('why'))]\n\
        states.append(goals.judged('a', 'b', lambda: (9.0, 'd'), lambda value: None)['state'])\n\
        print(json.dumps(states))\n";
    let output = process::run(
        Command::new("python3")
            .args(["-c", words])
            .env("PYTHONPATH", folder),
    );
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let states: Vec<String> = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        states,
        [
            "met",
            "missed",
            "not measured",
            "no verdict: the goal is for an H200"
        ]
    );
}
