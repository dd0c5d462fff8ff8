//! A training that is killed over and over, step by step, against the same training undisturbed.
//!
//! Invariant: SIGKILL once the coordinator was told of a checkpoint, so that the processes go on from different steps; the
//! adapters are compared by bytes.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use llamaduo_tests::process::{self, Process, llamaduo, pause};
use llamaduo_tests::site::Site;

/// Far beyond what any of these trainings takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// A checkpoint of each step; dropout, packing, clipping, decay and warm-up all take part.
const SETTINGS: [&str; 7] = [
    "train.checkpoint_steps=1",
    "train.epochs=240",
    "train.lora_dropout=0.05",
    "train.packing=true",
    "train.batch_rows=2",
    "train.weight_decay=0.01",
    "train.warmup_ratio=0.2",
];

/// A heartbeat, which tells the coordinator of the newest checkpoint, and a second more. A kill that comes before it all
/// the same costs one more kill, no more.
const TOLD_AFTER: Duration = Duration::from_secs(6);

/// Different steps that processes must have gone on from, and most that are killed until then.
const STEPS: usize = 2;
const KILLS_MAX: usize = 20;

/// Training cannot be held back as a service's answers can: on a busy machine it may end before the kill.
const TRIES: u32 = 5;

/// `train` into `name/adapter`.
fn train(site: &Site, name: &str) -> Command {
    let mut command = llamaduo();
    command
        .args(["train", "--out"])
        .arg(site.path(name).join("adapter"));
    // Training asks no service.
    site.configure(&mut command, "http://127.0.0.1:1/v1", &SETTINGS);
    command.env("RUST_LOG", "llamaduo_worker=info");
    command
}

/// The steps that trainings went on from, by the log of all processes.
fn resumed_from(log: &str) -> BTreeSet<u32> {
    let lines = log
        .lines()
        .filter(|line| line.contains("training goes on from a checkpoint"));
    let step = |line: &str| {
        let (_, rest) = line.split_once("step=").expect("the line tells the step");
        rest.split_whitespace().next().and_then(|step| step.parse().ok())
    };
    lines
        .map(|line| step(line).expect("a step is a number"))
        .collect()
}

/// Attempts that a log tells of.
fn n_attempts(log: &str) -> usize {
    log.matches("attempt begins").count()
}

/// Starts the training and kills it when it has gone on for [`TOLD_AFTER`]; false when it ended before.
fn kill_midway(site: &Site, name: &str) -> bool {
    let path = site.path(&format!("{name}.log"));
    let n_before = fs::read_to_string(&path).map_or(0, |log| n_attempts(&log));
    let begun = Instant::now();
    let mut training_since = None;
    let mut process = Process::start(&mut train(site, name), &path);
    while process.is_running() {
        if n_attempts(&process.log()) > n_before {
            let since = *training_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= TOLD_AFTER {
                process.kill();
                assert!(!process.log().contains("panicked at"), "{}", process.log());
                return true;
            }
        }
        assert!(begun.elapsed() < LIMIT, "no attempt:\n{}", process.log());
        pause();
    }
    false
}

/// Kills the training until its processes have gone on from enough steps; which, or nothing if it ended before.
fn kill_at_several_steps(site: &Site, name: &str) -> Option<BTreeSet<u32>> {
    for _ in 0..KILLS_MAX {
        if !kill_midway(site, name) {
            return None;
        }
        let log = fs::read_to_string(site.path(&format!("{name}.log"))).unwrap();
        let steps = resumed_from(&log);
        if steps.len() >= STEPS {
            return Some(steps);
        }
    }
    None
}

#[test]
fn a_training_killed_at_several_steps_ends_with_the_same_bytes() {
    let site = Site::new();
    let begun = Instant::now();
    let undisturbed = process::run(&mut train(&site, "undisturbed"));
    assert_eq!(undisturbed.code(), 0, "{}", undisturbed.stderr);
    println!("undisturbed: {:.1} s", begun.elapsed().as_secs_f64());
    let expected = site.files("undisturbed").adapter();
    assert!(expected.contains_key("adapter_model.safetensors"));

    let killed = (1..=TRIES).find_map(|number| {
        let name = format!("killed-{number}");
        kill_at_several_steps(&site, &name).map(|steps| (name, steps))
    });
    let (name, steps) = killed.expect("this machine lets a process of its own look often enough");
    let last = process::run(&mut train(&site, &name));
    assert_eq!(last.code(), 0, "{}", last.stderr);
    let last_from = resumed_from(&last.stderr);
    println!(
        "went on from steps {steps:?} and {last_from:?}, {:.1} s in all",
        begun.elapsed().as_secs_f64()
    );
    let found = site.files(&name).adapter();
    assert!(found.keys().eq(expected.keys()));
    // Not `assert_eq`, which would print megabytes.
    assert!(
        found == expected,
        "went on from steps {steps:?} and {last_from:?}"
    );
}
