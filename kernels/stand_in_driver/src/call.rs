//! What every call of the driver shares: result codes and writing through the caller's pointers.
//!
//! Invariant: a null pointer is an error, never written through.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};

/// `CUresult`.
pub(crate) type Code = c_int;

pub(crate) const SUCCESS: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const INVALID_DEVICE: Code = 101;
pub(crate) const NO_BINARY_FOR_GPU: Code = 209;
pub(crate) const INVALID_PTX: Code = 218;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const NOT_FOUND: Code = 500;
pub(crate) const LAUNCH_FAILED: Code = 719;
pub(crate) const CAPTURE_UNSUPPORTED: Code = 900;

thread_local! {
    /// What went wrong last in a call of this thread.
    static REPORT: RefCell<CString> = RefCell::new(CString::default());
}

/// Keeps `report` as the text of error `code`.
pub(crate) fn fail(code: Code, report: &str) -> Code {
    let text = CString::new(report.replace('\0', " ")).unwrap_or_default();
    REPORT.with(|last| *last.borrow_mut() = text);
    code
}

/// The code of a result.
pub(crate) fn code(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(SUCCESS)
}

/// `*to = value`.
///
/// # Safety
///
/// `to` is null or may be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Code {
    if to.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller vouches for what is not null.
    unsafe { to.write(value) };
    SUCCESS
}

/// The text at `from`.
///
/// # Safety
///
/// `from` is null or ends with a zero byte.
pub(crate) unsafe fn text(from: *const c_char) -> Result<String, Code> {
    if from.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for what is not null.
    let text = unsafe { CStr::from_ptr(from) };
    text.to_str().map(str::to_owned).map_err(|_| INVALID_VALUE)
}

/// # Safety
///
/// As the driver's `cuGetErrorName`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    let text = match code {
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        NO_BINARY_FOR_GPU => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        214 => c"CUDA_ERROR_ECC_UNCORRECTABLE",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        _ => c"CUDA_ERROR_OF_THE_STAND_IN",
    };
    // SAFETY: `name` may be written, and the text lives for ever.
    unsafe { put(name, text.as_ptr()) }
}

/// # Safety
///
/// As the driver's `cuGetErrorString`; the text lives until this thread's next failure.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorString(_code: Code, text: *mut *const c_char) -> Code {
    let report = REPORT.with(|last| last.borrow().as_ptr());
    // SAFETY: `text` may be written.
    unsafe { put(text, report) }
}
