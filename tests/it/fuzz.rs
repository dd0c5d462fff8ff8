//! A short run of the fuzz targets on a fixed set of inputs: no panic, and no memory beyond a bound.
//!
//! Invariant: the inputs are the same every time, so that a failure is one of the code. Longer runs: `fuzz/README.md`.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::Command;

use llamaduo_tests::fuzz::{Mutations, TARGETS, seeds};

/// Inputs of each target; more with `LLAMADUO_FUZZ_INPUTS`.
const INPUTS: usize = 1_500;
/// KiB of address space: what the test itself needs several times over, and far less than lying sizes ask for.
const MEMORY_KIB: usize = 2 << 20;
/// Set in the process that is bounded: where it writes down what it is at.
const PLACE: &str = "LLAMADUO_FUZZ_PLACE";

#[test]
fn readers_take_any_bytes_within_bounded_memory() {
    if let Some(place) = std::env::var_os(PLACE) {
        return run_all(&PathBuf::from(place));
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("place");
    // The bound holds for a whole process, so the inputs have one of their own. Systems without it run unbounded.
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -v {MEMORY_KIB} 2>/dev/null; exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "fuzz::readers_take_any_bytes_within_bounded_memory",
            "--nocapture",
        ])
        .args(["--test-threads", "1"])
        .env(PLACE, &place)
        .output()
        .unwrap();
    let at = fs::read_to_string(&place).unwrap_or_default();
    assert!(
        output.status.success() && at.starts_with("all"),
        "at {at}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{at}");
}

fn run_all(place: &PathBuf) {
    let n_inputs = std::env::var("LLAMADUO_FUZZ_INPUTS")
        .ok()
        .and_then(|n| n.parse().ok());
    let n_inputs = n_inputs.unwrap_or(INPUTS);
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        let mutations = Mutations::of(&seeds);
        for number in 0..n_inputs.max(seeds.len()) {
            fs::write(place, format!("{name}, input {number}")).unwrap();
            let input = mutations.input(number);
            if catch_unwind(|| target(&input)).is_err() {
                failed.push(format!("{name}, input {number}"));
            }
        }
    }
    assert!(failed.is_empty(), "panics: {failed:?}");
    fs::write(
        place,
        format!("all {} targets, {n_inputs} inputs each", TARGETS.len()),
    )
    .unwrap();
}

#[test]
fn seeds_reach_what_lies_behind_the_first_checks() {
    use llamaduo_engine::{Checkpoint, ModelFiles};
    let [model] = &seeds("gguf")[..] else {
        panic!("one model")
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, model).unwrap();
    let files = ModelFiles::open(&path).unwrap();
    assert!(files.tokenizer.is_some() && files.chat_template.is_some());
    assert!(Checkpoint::from_bytes(seeds("checkpoint").remove(0)).is_ok());
    let mutations = |target| {
        let seeds = seeds(target);
        (0..200)
            .map(|number| Mutations::of(&seeds).input(number))
            .collect::<Vec<_>>()
    };
    for (target, _) in TARGETS {
        let mut inputs = mutations(target);
        assert_eq!(inputs, mutations(target), "the same every time");
        inputs.sort();
        inputs.dedup();
        assert!(inputs.len() > 150, "{target}: {} different inputs", inputs.len());
    }
}
