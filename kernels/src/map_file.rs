//! Maps a model file into memory, so that weights are read from the page cache: those that are computed with as the file
//! holds them are not copied, of the others the pages are given back.
//!
//! Invariant: this is the only place that maps a file, and what it returns is read-only.
#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe: nothing stops another process from truncating it; so is advice that drops pages"
)]

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::error::{Error, Result};
use crate::weight::{Bytes, SharedBytes};

/// The bytes of the file at `path`.
///
/// The file must stay as it is while the bytes are in use: model files and artifacts are replaced by renaming, never
/// written in place. Fails when the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> Result<SharedBytes> {
    let failed = |source| Error::MapFile {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is read-only and private to this process's address space; the contract above keeps the file's
    // bytes from changing under it.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok(Arc::new(Mapped(map)))
}

struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Bytes for Mapped {
    #[cfg(unix)]
    fn release(&self, part: Range<usize>) {
        let part = part.start..part.end.min(self.0.len());
        if part.is_empty() {
            return;
        }
        // SAFETY: dropping pages of a read-only map of a file loses nothing: they are the file's own, and are read from
        // it again.
        let released = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, part.start, part.len())
        };
        // It is advice: where it cannot be had, memory stays in use and nothing else differs.
        drop(released);
    }
}
