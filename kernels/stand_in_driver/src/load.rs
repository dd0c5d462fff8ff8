//! Loads the stand-in into a test's process, for tests of crates that have no unsafe code of their own.
//!
//! Invariant: what is loaded is the shared library beside the test, as the code under test would load a driver; this
//! crate's own copy is not used.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use crate::usage::Usage;

/// Its file.
const FILE: &str = "libllamaduo_stand_in_driver.so";

/// The library, or why it is not there.
static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();

/// Loads the stand-in, so that whoever asks for `libcuda.so` from now on is given it. Says what is missing where it is
/// not beside the running test.
pub fn load() -> Result<(), String> {
    let loaded = LOADED.get_or_init(|| {
        let test = std::env::current_exe().map_err(|error| error.to_string())?;
        let path = test.with_file_name(FILE);
        // SAFETY: the library begins nothing when it is loaded.
        unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))
    });
    loaded.as_ref().map(|_| ()).map_err(Clone::clone)
}

/// What the loaded library exports under `name`.
fn symbol<T>(name: &[u8]) -> Symbol<'static, T> {
    load().expect("the stand-in was loaded");
    let library = LOADED.get().and_then(|loaded| loaded.as_ref().ok());
    let library = library.expect("it was loaded a line above");
    // SAFETY: the callers' types are those of this crate's own sources, of which the library is built.
    unsafe { library.get(name) }.expect("the stand-in exports it")
}

/// From now on this thread sees a card of that compute capability, major and minor; `None` ends that.
pub fn play(capability: Option<(i32, i32)>) {
    let play: Symbol<'_, extern "C" fn(i32, i32)> = symbol(b"stand_in_play\0");
    let (major, minor) = capability.unwrap_or_default();
    play(major, minor);
}

fn fail(call: &str, nth: u64, code: i32, everywhere: bool) {
    let fail: Symbol<'_, unsafe extern "C" fn(*const c_char, u64, i32, bool) -> bool> =
        symbol(b"stand_in_fail\0");
    let name = CString::new(call).expect("a name holds no zero byte");
    // SAFETY: the text ends with a zero byte and is read before the call returns.
    let known = unsafe { fail(name.as_ptr(), nth, code, everywhere) };
    assert!(known, "there is no call {call}");
}

/// This thread's `nth` call from now on of `allocate`, `move`, `launch`, `instantiate`, `load` or `open` fails with `code`.
pub fn fail_here(call: &str, nth: u64, code: i32) {
    fail(call, nth, code, false);
}

/// The same of whichever thread makes the call.
pub fn fail_in_process(call: &str, nth: u64, code: i32) {
    fail(call, nth, code, true);
}

/// How many such calls the process has made.
pub fn n_calls(call: &str) -> u64 {
    let count: Symbol<'_, unsafe extern "C" fn(*const c_char) -> u64> = symbol(b"stand_in_n_calls\0");
    let name = CString::new(call).expect("a name holds no zero byte");
    // SAFETY: the text ends with a zero byte and is read before the call returns.
    unsafe { count(name.as_ptr()) }
}

/// Takes back the failures of [`fail_in_process`] that have not struck, and says how many there were.
pub fn forget_faults() -> u64 {
    let forget: Symbol<'_, extern "C" fn() -> u64> = symbol(b"stand_in_forget_faults\0");
    forget()
}

/// What this thread has allocated; the most at once is counted anew from here.
pub fn usage() -> Usage {
    let usage: Symbol<'_, extern "C" fn() -> Usage> = symbol(b"stand_in_usage\0");
    usage()
}
