//! The place that a stage writes to, looked at before hours of work.
//!
//! Invariant: nothing of the user's or of a run's is replaced but by the result that was there before.

use std::path::{Path, PathBuf};

use llamaduo_proto::task::TaskSpec;

use super::task::Stage;
use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::model;
use crate::progress::words;

impl Stage<'_> {
    /// What is written is a file for the one and a directory for the other.
    pub(super) fn refuse_other_kind_of_place(&self) -> Result<()> {
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

    /// A run keeps its state where this command would keep its own, and the worker of this process would go on with it.
    pub(super) fn refuse_directory_of_run(&self) -> Result<()> {
        let directory = self.directory();
        if !RunDirectory::existing(directory).holds_run() {
            return Ok(());
        }
        let name = words::stage(self.spec.stage());
        Err(Error::Usage(format!(
            "--out {} lies in the directory of a run, whose results and state (.llamaduo) are the run's own; name a place \
             elsewhere, such as {}",
            self.out.display(),
            directory.join(name).join(self.file_name()).display()
        )))
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
