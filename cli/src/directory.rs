//! A run's directory: what the user reads, and under `.llamaduo` what the run goes on from.
//!
//! Invariant: a file is whole or absent, whenever the process dies; nothing here is needed to resume but
//! `.llamaduo/`, and everything outside it can be written again from there.

pub(crate) mod materialize;

use std::io::Write;
use std::path::{Path, PathBuf};

use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{RequestId, RunId};
use llamaduo_proto::run::RunSpec;
use serde::{Deserialize, Serialize};

use crate::config::changes::Settings;
use crate::error::{Error, Result};

/// The directory of one run.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory {
    root: PathBuf,
}

/// What this directory's run is, written before the run is submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The submission: the same after a crash, so that it is never submitted twice.
    pub(crate) request: RequestId,
    /// What was asked for.
    pub(crate) spec: RunSpec,
    /// The coordinator's name for it, once known.
    pub(crate) run: Option<RunId>,
    /// The settings it was last given, as the user wrote them; absent where an earlier version began it.
    #[serde(default)]
    pub(crate) settings: Option<Settings>,
    /// The cycles it was last allowed; absent where an earlier version began it.
    #[serde(default)]
    pub(crate) cycles_max: Option<u32>,
}

impl RunDirectory {
    /// Opens `root`, making it if it is missing.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let directory = Self {
            root: root.to_owned(),
        };
        make_directory(&directory.state())?;
        Ok(directory)
    }

    /// Opens `root` for reading.
    pub(crate) fn existing(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What the run goes on from.
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join(".llamaduo")
    }

    /// The record of the run; `None` in a new directory.
    pub(crate) fn record(&self) -> Result<Option<RunRecord>> {
        read_json(&self.state().join("run.json"))
    }

    /// Whether a run was begun here.
    pub(crate) fn holds_run(&self) -> bool {
        self.state().join("run.json").exists()
    }

    /// Whether the state here is that of single stages: it keeps artifacts, of which a run stores none before its record.
    pub(crate) fn holds_stages(&self) -> bool {
        !self.holds_run() && holds_file(&self.state().join("artifacts"))
    }

    /// Whether the last thing that happened to the run here, as its log tells, was its end. A run that is gone on with has
    /// a report that is older than itself.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        let (_, ended, _) = read_log(&self.root.join("events.jsonl"))?;
        Ok(ended)
    }

    /// Writes the record.
    pub(crate) fn set_record(&self, record: &RunRecord) -> Result<()> {
        write_json(&self.state().join("run.json"), record)
    }

    /// `report.json` as it is, if it is there.
    pub(crate) fn report(&self) -> Result<Option<serde_json::Value>> {
        read_json(&self.root.join("report.json"))
    }
}

/// `events.jsonl`: the durable events in order.
#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    file: std::fs::File,
    next_seq: u64,
    ended: bool,
}

impl EventLog {
    /// Opens the log in `directory` after its last whole event; what a crash left of a line is cut off.
    pub(crate) fn open(directory: &RunDirectory) -> Result<Self> {
        let path = directory.root.join("events.jsonl");
        let (next_seq, ended, bytes) = read_log(&path)?;
        let write = |source| Error::Write {
            path: path.clone(),
            source,
        };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(write)?;
        file.set_len(bytes).map_err(write)?;
        Ok(Self {
            path,
            file,
            next_seq,
            ended,
        })
    }

    /// The first event that it lacks.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Whether the run's end is in it.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Adds a durable event; progress is not kept.
    pub(crate) fn append(&mut self, event: &RunEvent) -> Result<()> {
        if event.seq != self.next_seq {
            return Ok(());
        }
        let damaged = |error: serde_json::Error| Error::Damaged {
            path: self.path.clone(),
            problem: error.to_string(),
        };
        let mut line = serde_json::to_vec(event).map_err(damaged)?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })?;
        self.next_seq += 1;
        self.ended = matches!(event.kind, RunEventKind::RunEnded { .. });
        Ok(())
    }
}

/// The number after the last whole event of a log, whether that is the run's end, and where it ends in the file.
fn read_log(path: &Path) -> Result<(u64, bool, u64)> {
    // As bytes: what a crash left of the last line may end inside a character.
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let (mut next_seq, mut ended, mut bytes) = (1, false, 0);
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    for line in lines.filter(|line| line.ends_with(b"\n")) {
        match serde_json::from_slice::<RunEvent>(line) {
            Ok(event) if event.seq == next_seq => {
                next_seq += 1;
                bytes += line.len() as u64;
                ended = matches!(event.kind, RunEventKind::RunEnded { .. });
            }
            _ => break,
        }
    }
    Ok((next_seq, ended, bytes))
}

/// Whether there is a file in `directory` or below.
fn holds_file(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .any(|path| !path.is_dir() || holds_file(&path))
}

/// Makes a directory with its parents.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file as a whole: beside its place first, then renamed.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directory(parent)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let mut file = std::fs::File::create(&partial).map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)
}

/// A JSON file of ours; `None` when there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

/// Writes a JSON file of ours.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    write_file(path, &serde_json::to_vec_pretty(value).map_err(damaged)?)
}

#[cfg(test)]
mod tests;
