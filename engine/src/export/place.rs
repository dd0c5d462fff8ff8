//! Files and directories that get their name only once they are whole.
//!
//! Invariant: what is unfinished lies beside its target under a hidden name and is removed when it is given up; a
//! target that exists is replaced only file by file, each at once.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

fn unwritten(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Sink {
    path: PathBuf,
    file: BufWriter<File>,
    n_bytes: u64,
}

impl Sink {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(unwritten(path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            n_bytes: 0,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(unwritten(&self.path))?;
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Brings everything to the disk. Gives how many bytes it is.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(unwritten(&self.path))?;
        Ok(self.n_bytes)
    }
}

/// What a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
}

/// A target in the making.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    target: PathBuf,
    kind: Kind,
}

impl Partial {
    /// A place beside `target`, whose own directory is made where it is missing.
    pub(crate) fn new(target: &Path, kind: Kind) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| Error::Export {
            what: format!("to {}", target.display()),
            reason: "it does not end in a name".to_owned(),
        })?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        std::fs::create_dir_all(&parent).map_err(unwritten(&parent))?;
        // The extension stays at the end: readers tell files by it.
        let hidden = format!(".partial-{}-{}", std::process::id(), name.to_string_lossy());
        let path = parent.join(hidden);
        if kind == Kind::Directory {
            std::fs::create_dir(&path).map_err(unwritten(&path))?;
        }
        Ok(Self {
            path,
            target: target.to_owned(),
            kind,
        })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives everything its name. A directory that is there already keeps what has no counterpart here.
    pub(crate) fn commit(self) -> Result<()> {
        let named = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(unwritten(to));
        if self.kind == Kind::File || !self.target.exists() {
            return named(&self.path, &self.target);
        }
        let entries = std::fs::read_dir(&self.path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        for entry in entries.map_err(unwritten(&self.path))? {
            named(&entry.path(), &self.target.join(entry.file_name()))?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where it was committed.
        let _gone = match self.kind {
            Kind::File => std::fs::remove_file(&self.path),
            Kind::Directory => std::fs::remove_dir_all(&self.path),
        };
    }
}
