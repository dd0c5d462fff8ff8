//! Loads the stand-in into a test's process, for tests of crates that have no unsafe code of their own.
//!
//! Invariant: what is loaded is the shared library beside the test, as the code under test would load a driver; this
//! crate's own copy is not used.

use std::sync::OnceLock;

use libloading::Library;

/// Its file.
const FILE: &str = "libllamaduo_stand_in_driver.so";

/// Loads the stand-in, so that whoever asks for `libcuda.so` from now on is given it. Says what is missing where it is
/// not beside the running test.
pub fn load() -> Result<(), String> {
    static STAND_IN: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = STAND_IN.get_or_init(|| {
        let test = std::env::current_exe().map_err(|error| error.to_string())?;
        let path = test.with_file_name(FILE);
        // SAFETY: the library begins nothing when it is loaded.
        unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))
    });
    loaded.as_ref().map(|_| ()).map_err(Clone::clone)
}
