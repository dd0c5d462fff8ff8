//! Which driver the tests run on.
//!
//! Invariant: the stand-in is loaded before anything asks for `libcuda.so`; the loader then takes it for that.
#![expect(unsafe_code, reason = "loading a library and calling it")]

use std::ffi::{CString, c_char, c_int};
use std::ptr;
use std::sync::OnceLock;

use libloading::{Library, Symbol};
use llamaduo_kernels::{Cuda, DeviceError};

/// Its file, beside this test's own.
const FILE: &str = "libllamaduo_stand_in_driver.so";

pub(crate) fn is_real() -> bool {
    std::env::var_os("LLAMADUO_TEST_CUDA").is_some_and(|value| value == "real")
}

fn stand_in() -> &'static Library {
    static STAND_IN: OnceLock<Library> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        let path = std::env::current_exe().unwrap().with_file_name(FILE);
        // SAFETY: the library begins nothing when it is loaded.
        unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    })
}

/// The device, opened anew.
pub(crate) fn open() -> Result<Cuda, DeviceError> {
    if !is_real() {
        stand_in();
    }
    Cuda::new(0)
}

/// What is opened where nothing else is said: an L4.
pub(crate) const ADA: (i32, i32) = (8, 9);
/// The only compute capability for which there are kernels of its own.
pub(crate) const HOPPER: (i32, i32) = (9, 0);

/// A way to open a device by its number.
type Open = fn(usize) -> Result<Cuda, DeviceError>;

/// A stand-in of this compute capability, opened anew.
pub(crate) fn open_as(capability: (i32, i32)) -> Result<Cuda, DeviceError> {
    playing(capability, Cuda::new)
}

fn playing(capability: (i32, i32), open: Open) -> Result<Cuda, DeviceError> {
    // SAFETY: the signature is the one of the stand-in's source.
    let play: Symbol<'_, extern "C" fn(c_int, c_int)> =
        unsafe { stand_in().get(b"stand_in_play\0") }.unwrap();
    play(capability.0, capability.1);
    let cuda = open(0);
    play(0, 0);
    cuda
}

/// The same with `replacement` in the place of the module `original`, which runs however wrong it is.
pub(crate) fn open_with(
    capability: (i32, i32),
    original: &str,
    replacement: &str,
) -> Result<Cuda, DeviceError> {
    replacing(original, replacement, || {
        playing(capability, Cuda::open_unchecked)
    })
}

/// The same as a program opens it.
pub(crate) fn open_checked_with(
    capability: (i32, i32),
    original: &str,
    replacement: &str,
) -> Result<Cuda, DeviceError> {
    replacing(original, replacement, || open_as(capability))
}

fn replacing(
    original: &str,
    replacement: &str,
    open: impl FnOnce() -> Result<Cuda, DeviceError>,
) -> Result<Cuda, DeviceError> {
    // SAFETY: the signature is the one of the stand-in's source.
    let replace: Symbol<'_, unsafe extern "C" fn(*const c_char, *const c_char)> =
        unsafe { stand_in().get(b"stand_in_replace_module\0") }.unwrap();
    let [from, to] = [original, replacement].map(|text| CString::new(text).unwrap());
    // SAFETY: both texts end with a zero byte and are copied.
    unsafe { replace(from.as_ptr(), to.as_ptr()) };
    let cuda = open();
    // SAFETY: null ends the replacement.
    unsafe { replace(ptr::null(), ptr::null()) };
    cuda
}

/// The kernels that this thread has launched since the last call, and the instructions each took; before those of a graph
/// the graph, and how many there are.
pub(crate) fn take_launched() -> Vec<(String, u64)> {
    // SAFETY: the signature is the one of the stand-in's source.
    let take: Symbol<'_, unsafe extern "C" fn(*mut c_char, usize) -> usize> =
        unsafe { stand_in().get(b"stand_in_take_launched\0") }.unwrap();
    let mut text = vec![0u8; 1 << 16];
    // SAFETY: there is room for as many bytes as are said.
    let n_bytes = unsafe { take(text.as_mut_ptr().cast(), text.len()) };
    let text = String::from_utf8(text[..n_bytes].to_vec()).unwrap();
    let launches = text.lines().filter_map(|line| line.split_once(' '));
    launches
        .map(|(kernel, n)| (kernel.to_owned(), n.parse().unwrap()))
        .collect()
}
