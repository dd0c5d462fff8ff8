//! Maps a model file into memory, so that weights are read from the page cache and never copied.
//!
//! Invariant: this is the only place that maps a file, and what it returns is read-only.
#![expect(
    unsafe_code,
    reason = "mapping a file is unsafe: nothing stops another process from truncating it"
)]

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::weight::SharedBytes;

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
    Ok(Arc::new(map))
}
