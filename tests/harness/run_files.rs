//! What a run leaves in its directory, as a user's script would read it.
//!
//! Invariant: reading never waits for the run and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A run's directory.
#[derive(Clone, Debug)]
pub struct RunFiles {
    root: PathBuf,
}

impl RunFiles {
    /// The run in `root`.
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// `report.json`.
    pub fn report(&self) -> Value {
        let text = fs::read_to_string(self.path("report.json")).expect("the run has a report");
        serde_json::from_str(&text).expect("the report is JSON")
    }

    /// The durable events so far; an unfinished last line is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("events.jsonl")).unwrap_or_default();
        rows(&text)
    }

    /// The rows of a JSONL file.
    pub fn rows(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        rows(&text)
    }

    /// The files of `adapter/`.
    pub fn adapter(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path("adapter")).expect("the run has an adapter");
        let file = |entry: fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("the file can be read"))
        };
        entries
            .map(|entry| file(entry.expect("the directory can be read")))
            .collect()
    }

    /// The bytes of an artifact of a run in one process.
    pub fn artifact(&self, digest: &str) -> Vec<u8> {
        let hex = digest.trim_start_matches("sha256:");
        let (folder, _) = hex.split_at(2);
        let path = self.path(".llamaduo/artifacts/sha256").join(folder).join(hex);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// How many artifacts the store in `directory` holds.
pub fn n_artifacts(directory: &Path) -> usize {
    let entries = |path: PathBuf| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    entries(directory.join("sha256")).flat_map(entries).count()
}

/// The rows of JSON lines; an unfinished last one is left out.
pub fn rows(text: &str) -> Vec<Value> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// The report less what may differ between equal runs: ids, times, and calls of which a crash may repeat some.
fn comparable(mut report: Value) -> Value {
    report["cost"] = Value::Null;
    report["about"]["run"] = Value::Null;
    report["about"]["seconds"] = Value::Null;
    report["about"]["submitted_at_ms"] = Value::Null;
    for cycle in report["cycles"].as_array_mut().into_iter().flatten() {
        cycle["train"]["seconds"] = Value::Null;
    }
    report
}

/// Fails unless two runs ended with the same adapter, byte for byte, and the same scores.
pub fn assert_same_end(ours: &RunFiles, theirs: &RunFiles) {
    let (our_adapter, their_adapter) = (ours.adapter(), theirs.adapter());
    assert!(
        our_adapter.keys().eq(their_adapter.keys()),
        "other files in adapter/"
    );
    for (name, bytes) in &our_adapter {
        // Not `assert_eq`, which would print megabytes.
        assert!(their_adapter.get(name) == Some(bytes), "adapter/{name} differs");
    }
    assert_eq!(comparable(ours.report()), comparable(theirs.report()));
}

/// Whether events are numbered 1, 2, 3, … and end with the run's end.
pub fn assert_gapless(events: &[Value]) {
    let seqs: Vec<&Value> = events.iter().map(|event| &event["seq"]).collect();
    let expected: Vec<Value> = (1..=events.len()).map(|seq| json!(seq)).collect();
    assert_eq!(seqs, expected.iter().collect::<Vec<_>>());
    let last = events.last().map(|event| &event["kind"]["event"]);
    assert_eq!(last, Some(&json!("run_ended")));
}

/// The events of one kind.
pub fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .map(|event| &event["kind"])
        .filter(|event| event["event"] == kind)
        .collect()
}
