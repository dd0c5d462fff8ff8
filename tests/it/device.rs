//! The real program on machines that have no driver, one, or one that is too old.
//!
//! Invariant: the driver is the stand-in, given to the program as a user's would be: by the loader's path.

#![cfg(target_os = "linux")] // where LD_LIBRARY_PATH is the loader's path

use std::path::Path;
use std::process::Command;

use llamaduo_tests::process::{self, llamaduo};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with the stand-in under the driver's name.
pub(crate) fn driver() -> TempDir {
    let folder = TempDir::new().unwrap();
    let built = std::env::current_exe()
        .unwrap()
        .with_file_name("libllamaduo_stand_in_driver.so");
    std::os::unix::fs::symlink(&built, folder.path().join("libcuda.so")).unwrap();
    folder
}

pub(crate) fn with_driver(folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = llamaduo();
    command.args(arguments);
    command
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied());
    command
}

pub(crate) fn json(command: &mut Command) -> Value {
    let output = process::run(command);
    assert_eq!(output.code(), 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn the_doctor_finds_a_card_and_loads_the_kernels_onto_it() {
    let folder = driver();
    let found = json(&mut with_driver(folder.path(), &["doctor", "-o", "json"], &[]));
    let card = &found["cuda"][0];
    assert_eq!(card["name"], "stand-in (PTX interpreter)");
    assert_eq!(
        (&card["device"], &card["compute_capability"]),
        (&"cuda:0".into(), &"8.9".into())
    );
    assert!(card["kernels_load_seconds"].is_number(), "{card}");
    assert_eq!(card["kernels"], serde_json::json!(["baseline"]));
    assert_eq!(found["auto"], "cpu");
}

#[test]
fn the_doctor_tells_that_hopper_has_kernels_of_its_own() {
    let folder = driver();
    let of = |capability: &str, arguments: &[&str]| {
        let setting = ("STAND_IN_CAPABILITY", capability);
        process::run(&mut with_driver(folder.path(), arguments, &[setting])).stdout
    };
    let text = of("9.0", &["doctor"]);
    assert!(
        text.contains("its kernels (baseline and Hopper) load in"),
        "{text}"
    );
    // the generation after it runs what is for every card, and no more
    let found: Value = serde_json::from_str(&of("10.0", &["doctor", "-o", "json"])).unwrap();
    assert_eq!(found["cuda"][0]["kernels"], serde_json::json!(["baseline"]));
    assert!(found["cuda"][0]["problem"].is_null(), "{found}");
}

#[test]
fn what_is_too_old_is_named() {
    let folder = driver();
    for (setting, words) in [
        (("STAND_IN_CAPABILITY", "7.5"), ["compute capability 7.5", "8.0"]),
        (("STAND_IN_CUDA", "12020"), ["CUDA 12.2", "550"]),
    ] {
        let found = json(&mut with_driver(
            folder.path(),
            &["doctor", "-o", "json"],
            &[setting],
        ));
        let problem = found["cuda"][0]["problem"].as_str().unwrap();
        for word in words {
            assert!(problem.contains(word), "{problem}");
        }
    }
}

/// What `eval` finds of a row of token ids.
fn loss(folder: &Path, device: &str) -> f64 {
    let ids = folder.join("ids.json");
    std::fs::write(&ids, "[[5, 17, 80, 3, 9, 33, 61, 2]]").unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/mistral");
    let words = [
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--ids",
        ids.to_str().unwrap(),
        "--device",
        device,
        "-o",
        "json",
    ];
    json(&mut with_driver(folder, &words, &[]))["loss"]
        .as_f64()
        .unwrap()
}

#[test]
fn a_model_runs_on_the_card_that_is_asked_for() {
    let folder = driver();
    let [on_card, on_cpu] = ["cuda:0", "cpu"].map(|device| loss(folder.path(), device));
    // bf16 shows that it was not the CPU again
    assert!(
        on_card != on_cpu && (on_card - on_cpu).abs() < 0.01 * on_cpu,
        "{on_card}, on the CPU {on_cpu}"
    );
}

#[test]
fn a_card_that_is_not_there_is_refused_before_the_work_begins() {
    let folder = driver();
    let words = [
        "generate", "--model", "nowhere", "--prompt", "p", "--device", "cuda:3",
    ];
    let output = process::run(&mut with_driver(folder.path(), &words, &[]));
    output.assert_refused(2, &["there is no CUDA device 3"]);
}

#[test]
fn a_machine_without_a_driver_is_told_so() {
    let found = json(llamaduo().args(["doctor", "-o", "json"]));
    match found["no_cuda"].as_str() {
        Some(reason) => {
            assert!(reason.contains("no NVIDIA driver"), "{reason}");
            let words = [
                "generate", "--model", "nowhere", "--prompt", "p", "--device", "cuda:0",
            ];
            let output = process::run(llamaduo().args(words));
            assert_eq!(output.code(), 2, "{}", output.stderr);
            assert!(output.stderr.contains("no NVIDIA driver"), "{}", output.stderr);
        }
        None => println!("skipped: this machine has a driver"),
    }
}
