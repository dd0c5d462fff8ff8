//! From the coordinator's artifacts to the plain files of a run's directory.
//!
//! Invariant: only artifacts are copied; what is written here can be deleted and written again.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Cycle, RunId};
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::run::{Quantization, Subject};
use llamaduo_proto::task::{TaskOutput, TaskResult};
use llamaduo_proto::view::{RunDetails, TaskView};

use super::{RunDirectory, write_file};
use crate::client::Client;
use crate::error::{Error, Result};

impl RunDirectory {
    /// Writes `cycles/N/` of the cycles in `wanted`, each with the adapter that it trained.
    pub(crate) async fn write_cycles(
        &self,
        client: &Client,
        run: &RunId,
        wanted: impl Fn(Cycle) -> bool,
    ) -> Result<()> {
        let tasks = client.tasks(run).await?;
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for (task, result) in done(&tasks) {
            let cycle = task.spec.cycle();
            if !wanted(cycle) {
                continue;
            }
            let (name, digest) = match &result.output {
                TaskOutput::Infer(infer) => ("responses.jsonl", infer.responses),
                TaskOutput::Judge(judge) => ("verdicts.jsonl", judge.verdicts),
                TaskOutput::Synthesize(synthesize) => ("raw_samples.jsonl", synthesize.samples),
                TaskOutput::Train(_) => {
                    let directory = self.root().join(cycle_path(cycle)).join("adapter");
                    write_manifest(client, result.manifest, &directory).await?;
                    continue;
                }
            };
            let bytes = client.download(digest).await?;
            let rows = match task.spec.subject() {
                Some(subject) => with_subject(digest, &bytes, subject)?,
                None => bytes,
            };
            files
                .entry(cycle_path(cycle).join(name))
                .or_default()
                .extend(rows);
        }
        let curations = client.run(run).await?.curations.into_iter();
        for curation in curations.filter(|curation| wanted(curation.cycle)) {
            let directory = cycle_path(curation.cycle);
            for (name, digest) in curated(&client.manifest(curation.manifest).await?) {
                files.insert(directory.join(name), client.download(digest).await?);
            }
        }
        for (path, bytes) in files {
            write_file(&self.root().join(path), &bytes)?;
        }
        Ok(())
    }

    /// Writes what the run as a whole came to: the adapter, and the report once the run has ended.
    pub(crate) async fn write_results(&self, client: &Client, details: &RunDetails) -> Result<()> {
        if let Some(adapter) = details.run.adapter {
            write_manifest(client, adapter, &self.root().join("adapter")).await?;
        }
        if let Some(report) = details.run.report {
            write_manifest(client, report, self.root()).await?;
        }
        Ok(())
    }
}

fn cycle_path(cycle: Cycle) -> PathBuf {
    Path::new("cycles").join(cycle.0.to_string())
}

fn done(tasks: &[TaskView]) -> impl Iterator<Item = (&TaskView, &TaskResult)> {
    tasks
        .iter()
        .filter_map(|task| Some((task, task.result.as_ref()?)))
}

/// What curation kept, and what it dropped and why.
fn curated(manifest: &Manifest) -> impl Iterator<Item = (&'static str, Digest)> {
    ["samples.jsonl", "dropped.jsonl"]
        .into_iter()
        .filter_map(|name| Some((name, *manifest.files.get(name)?)))
}

/// The rows of `bytes`, each saying whose responses they are about.
fn with_subject(digest: Digest, bytes: &[u8], subject: Subject) -> Result<Vec<u8>> {
    let label = match subject {
        Subject::Base(Quantization::None) => "base_unquantized",
        Subject::Base(Quantization::Nf4 | Quantization::Nf4Double) => "base",
        Subject::Service => "service",
        Subject::Adapter(_) => "adapter",
    };
    let mut rows = Vec::with_capacity(bytes.len());
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let fields = line.strip_prefix(b"{").ok_or_else(|| Error::Artifact {
            digest: digest.to_string(),
            problem: "a row is no JSON object".to_owned(),
        })?;
        rows.extend_from_slice(format!("{{\"subject\":\"{label}\",").as_bytes());
        rows.extend_from_slice(fields);
        rows.push(b'\n');
    }
    Ok(rows)
}

/// Whether a name of a manifest, which comes from another machine, stays below the directory it is written to.
fn is_below(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// Whether `path` is a file of just these bytes.
fn holds(path: &Path, digest: Digest) -> bool {
    std::fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == digest)
}

/// Whether `directory` has files by the names of those of the manifest, and not all of them are the same.
pub(crate) async fn holds_others(client: &Client, digest: Digest, directory: &Path) -> Result<bool> {
    let files = client.manifest(digest).await?.files.into_iter();
    let mut there = files.map(|(name, file)| (directory.join(name), file));
    Ok(there.any(|(path, file)| path.exists() && !holds(&path, file)))
}

/// Writes the files of the manifest under `directory`; those that are there already stay as they are.
pub(crate) async fn write_manifest(client: &Client, digest: Digest, directory: &Path) -> Result<()> {
    let manifest = client.manifest(digest).await?;
    for (name, file) in &manifest.files {
        if !is_below(name) {
            let problem = format!("its manifest names the file {name:?}");
            return Err(Error::Artifact {
                digest: digest.to_string(),
                problem,
            });
        }
        let path = directory.join(name);
        // An adapter of many megabytes is neither sent nor written a second time.
        if !holds(&path, *file) {
            write_file(&path, &client.download(*file).await?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_whose_responses_they_are_about() {
        let digest = Digest::of(b"");
        let rows = with_subject(digest, b"{\"k\":1}\n\n{\"k\":2}\n", Subject::Service).unwrap();
        assert_eq!(
            String::from_utf8(rows).unwrap(),
            "{\"subject\":\"service\",\"k\":1}\n{\"subject\":\"service\",\"k\":2}\n"
        );
        assert!(with_subject(digest, b"7\n", Subject::Service).is_err());
    }

    #[test]
    fn what_was_kept_and_what_was_dropped_are_both_written() {
        let digest = Digest::of(b"");
        let manifest = Manifest {
            kind: llamaduo_proto::manifest::ManifestKind::CuratedSamples,
            files: ["dropped.jsonl", "samples.jsonl", "else.jsonl"]
                .map(|name| (name.to_owned(), digest))
                .into(),
            parents: Vec::new(),
        };
        let names: Vec<&str> = curated(&manifest).map(|(name, _)| name).collect();
        assert_eq!(names, ["samples.jsonl", "dropped.jsonl"]);
    }

    #[test]
    fn a_file_is_known_by_its_bytes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        assert!(!holds(&path, Digest::of(b"text")));
        std::fs::write(&path, "text").unwrap();
        assert!(holds(&path, Digest::of(b"text")) && !holds(&path, Digest::of(b"other")));
        assert!(!holds(root.path(), Digest::of(b"")), "a directory is no file");
    }

    #[test]
    fn a_manifest_writes_nowhere_else() {
        for name in ["../x", "/x", "", "a/../../x", "."] {
            assert!(!is_below(name), "{name:?}");
        }
        for name in ["report.json", "plots/loss.svg"] {
            assert!(is_below(name), "{name:?}");
        }
    }
}
