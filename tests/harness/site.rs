//! A user's directory: a tiny model, a coverage dataset, a config, and the commands given in it.
//!
//! Invariant: all runs of a site share model, data and config, so that they differ only in what a test changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use llamaduo_worker::stand_in::tickets;
use tempfile::TempDir;

use crate::process::{self, llamaduo};
use crate::run_files::RunFiles;
use crate::tiny_model;

/// Pairs of the coverage dataset: enough for three infer shards and a few dozen training steps.
const PAIRS: usize = 24;

/// Small enough for seconds, large enough that each stage has several tasks or steps.
const CONFIG: &str = r#"
[task]
name = "tickets"
topic = "customer support messages, each answered with one line of JSON"

[local]
base = "model"

[service]
model = "stand-in-1"
input_usd_per_mtok = 0.5
output_usd_per_mtok = 2.0
concurrency = 2

[judge]
gradings_per_response = 1

[data]
coverage = "coverage.jsonl"
test_count = 6

[train]
lora_rank = 4
epochs = 4
learning_rate = 0.003
batch_rows = 1
sequence_tokens = 512
packing = false
checkpoint_steps = 5

[infer]
responses_per_prompt = 1
max_tokens = 48
prompts_per_task = 2

[synthesis]
samples_per_cycle = 18
pairs_per_call = 3
examples_per_call = 2
calls_per_task = 3

[run]
cycles_max = 2
"#;

/// A user's directory, removed when dropped.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Makes one.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let site = Self { directory };
        tiny_model::write(&site.path("model")).expect("the model can be written");
        let coverage: String = tickets::coverage_dataset(0)
            .lines()
            .take(PAIRS)
            .map(|line| format!("{line}\n"))
            .collect();
        site.write("coverage.jsonl", &coverage);
        site.write("llamaduo.toml", CONFIG);
        site
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("the file can be written");
    }

    /// `run -o json` into the directory `out`, with `settings` as `KEY=VALUE`.
    pub fn run(&self, out: &str, service_url: &str, settings: &[&str]) -> Command {
        let mut command = llamaduo();
        command
            .args(["run", "--output", "json", "--out"])
            .arg(self.path(out));
        self.configure(&mut command, service_url, settings);
        command
    }

    /// Adds the config and what overrides it.
    pub fn configure(&self, command: &mut Command, service_url: &str, settings: &[&str]) {
        command.arg("--config").arg(self.path("llamaduo.toml"));
        command
            .arg("--set")
            .arg(format!("service.base_url={service_url}"));
        for setting in settings {
            command.args(["--set", setting]);
        }
    }

    /// Runs to the end, expecting `code`; what the run left.
    pub fn finish(&self, out: &str, service_url: &str, settings: &[&str], code: i32) -> RunFiles {
        let output = process::run(&mut self.run(out, service_url, settings));
        assert_eq!(output.code(), code, "{}\n{}", output.stdout, output.stderr);
        self.files(out)
    }

    /// What a run left in `out`.
    pub fn files(&self, out: &str) -> RunFiles {
        RunFiles::at(&self.path(out))
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }
}
