//! The place that a stage writes to, looked at before hours of work.
//!
//! Invariant: nothing in a run's directory is replaced, an adapter only by itself, and a file only where it holds results of
//! the same kind.

use std::path::{Path, PathBuf};

use llamaduo_data::curate::Dropped;
use llamaduo_data::{Response, Sample, Verdict, jsonl};
use llamaduo_proto::task::TaskSpec;
use serde::de::DeserializeOwned;

use super::task::{Stage, dropped_beside};
use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::model;
use crate::progress::words;

impl Stage<'_> {
    /// Whether the result may be written there, as far as it can be known before the task is.
    pub(super) fn check_place(&self) -> Result<()> {
        self.refuse_directory_of_run()?;
        self.refuse_other_kind_of_place()?;
        self.refuse_file_of_another_kind()
    }

    /// A run writes its results again from its state, and its state lies where this command might keep its own, so that
    /// the worker of this process would go on with the run.
    fn refuse_directory_of_run(&self) -> Result<()> {
        let place = as_far_as_there(self.out);
        let runs = place
            .ancestors()
            .filter(|directory| RunDirectory::existing(directory).holds_run());
        // Of runs inside each other the outermost: beside it is a place in none of them.
        let Some(run) = runs.last() else {
            return Ok(());
        };
        let beside = run.parent().unwrap_or(run);
        let name = words::stage(self.spec.stage());
        Err(Error::Usage(format!(
            "--out {} would write into {}, the directory of a run, whose results and state (.llamaduo) are the run's own; name a \
             place elsewhere, such as {}",
            self.out.display(),
            from_here(run).display(),
            from_here(&beside.join(name).join(self.file_name())).display()
        )))
    }

    /// What is written is a file for the one and a directory for the other.
    fn refuse_other_kind_of_place(&self) -> Result<()> {
        let out = self.out.display();
        match &self.spec {
            TaskSpec::Train(_) if self.out.is_file() => Err(Error::Usage(format!(
                "--out {out} is a file, and an adapter is a directory; name a directory"
            ))),
            TaskSpec::Infer(_) | TaskSpec::Judge(_) | TaskSpec::Synthesize(_) if self.out.is_dir() => {
                Err(Error::Usage(format!(
                    "--out {out} is a directory; name a file in it, such as {}",
                    self.out.join(self.file_name()).display()
                )))
            }
            _ => Ok(()),
        }
    }

    /// An earlier result of such a stage is there again as soon as the command that made it is given again. A coverage
    /// dataset, or the responses that are to be judged, would be lost.
    fn refuse_file_of_another_kind(&self) -> Result<()> {
        match &self.spec {
            TaskSpec::Train(_) => Ok(()),
            TaskSpec::Infer(_) => check_replaced::<Response>(self.out, "responses"),
            TaskSpec::Judge(_) => check_replaced::<Verdict>(self.out, "verdicts"),
            TaskSpec::Synthesize(_) => {
                check_replaced::<Sample>(self.out, "samples")?;
                check_replaced::<Dropped>(&dropped_beside(self.out), "dropped pairs")
            }
        }
    }

    /// What is there is the result of this very task, which is no hindrance, or is not to be lost.
    pub(super) fn refuse_adapter_that_is_there(&self) -> Result<()> {
        match &self.spec {
            TaskSpec::Train(_) if model::holds_adapter(self.out) => Err(self.would_replace()),
            _ => Ok(()),
        }
    }

    pub(super) fn would_replace(&self) -> Error {
        Error::Usage(format!(
            "--out {} holds another adapter, which this command would replace; name another directory with --out, or move \
             that one away",
            self.out.display()
        ))
    }

    fn file_name(&self) -> &'static str {
        match &self.spec {
            TaskSpec::Train(_) => "adapter",
            TaskSpec::Infer(_) => "responses.jsonl",
            TaskSpec::Judge(_) => "verdicts.jsonl",
            TaskSpec::Synthesize(_) => "samples.jsonl",
        }
    }

    /// Where the result is written.
    fn directory(&self) -> &Path {
        self.out.parent().unwrap_or(Path::new(""))
    }

    /// State of the roles in this process: beside the result.
    pub(super) fn state(&self) -> PathBuf {
        self.directory().join(".llamaduo")
    }
}

/// The part of `path` that is there, without links; what is not there yet is in no run's directory but by its parents.
fn as_far_as_there(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find_map(|part| part.canonicalize().ok());
    there.unwrap_or(path)
}

/// `path` as it is named in the directory of now, where it lies below that.
fn from_here(path: &Path) -> &Path {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    match here.as_ref().map(|here| path.strip_prefix(here)) {
        Ok(Ok(below)) if below.as_os_str().is_empty() => Path::new("."),
        Ok(Ok(below)) => below,
        _ => path,
    }
}

/// Refuses to replace a file that holds anything but rows of `T`, which are called `rows`.
fn check_replaced<T: DeserializeOwned>(path: &Path, rows: &str) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    let name = path.display().to_string();
    let found = std::fs::read_to_string(path).map(|text| jsonl::read::<T>(&name, &text));
    if matches!(found, Ok(Ok(_))) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{name} holds something else than {rows}, which this command would replace; name another file with --out, or move \
         that one away"
    )))
}
