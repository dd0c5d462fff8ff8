//! Device, context and stream calls, and waiting for events; and the two calls that a driver does not have.
//!
//! Invariant: as in the driver's header, `cuda.h`; since a stream's work is done when it is given, there is nothing to
//! wait for.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::call::{Code, INVALID_DEVICE, INVALID_VALUE, SUCCESS, code, fail, put, text};
use crate::device::Device;
use crate::driver::{driver, replace_module, take_launched};
use crate::faults::{Call, check, hold, let_go};

/// Any handle.
pub(crate) type Handle = *mut c_void;

/// The one context.
const CONTEXT: u64 = 16;

/// Name of the card.
const NAME: &[u8] = b"stand-in (PTX interpreter)";

pub(crate) fn as_handle(number: u64) -> Handle {
    std::ptr::without_provenance_mut(number as usize)
}

pub(crate) fn as_number(handle: Handle) -> u64 {
    handle.addr() as u64
}

/// Calls that only have to succeed.
macro_rules! always {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $ty:ty),*);)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name($($argument: $ty),*) -> Code {
            let _ = ($($argument,)*);
            SUCCESS
        }
    )*};
}

always! {
    /// Nothing to begin.
    cuInit(flags: c_uint);
    /// There is one context.
    cuCtxSetCurrent(context: Handle);
    /// Streams keep nothing.
    cuStreamDestroy_v2(stream: Handle);
    /// All work is done.
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    /// All work is done.
    cuEventSynchronize(event: Handle);
    /// All work is done.
    cuEventQuery(event: Handle);
}

/// Calls that write one value; the caller's pointers are the driver's.
macro_rules! gives {
    ($($(#[$doc:meta])* $name:ident($to:ident: $given:ty $(, $argument:ident: $ty:ty)*) = $value:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The pointers are null or may be written, as the driver's header says.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($to: *mut $given $(, $argument: $ty)*) -> Code {
            $(let _ = $argument;)*
            // SAFETY: the caller vouches for the pointer.
            unsafe { put($to, $value) }
        }
    )*};
}

gives! {
    /// One card.
    cuDeviceGetCount(count: c_int) = 1;
    /// The newest CUDA the driver knows.
    cuDriverGetVersion(version: c_int) = Device::get().cuda_version;
    /// The context.
    cuCtxGetCurrent(context: Handle) = as_handle(CONTEXT);
    /// By number.
    cuDeviceGetAttribute(value: c_int, attribute: c_int, device: c_int) = Device::get().attribute(attribute);
    /// All memory.
    cuDeviceTotalMem_v2(bytes: usize, device: c_int) = Device::get().memory_bytes;
}

/// All work is done, as far as the context is there.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSynchronize() -> Code {
    code(check(Call::Other))
}

/// All work is done, as far as the context is there.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamSynchronize(_stream: Handle) -> Code {
    cuCtxSynchronize()
}

/// The context.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, _device: c_int) -> Code {
    match hold() {
        // SAFETY: the caller vouches for the pointer.
        Ok(()) => unsafe { put(context, as_handle(CONTEXT)) },
        Err(code) => code,
    }
}

/// One holder less.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    let_go();
    SUCCESS
}

/// A new stream.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) -> Code {
    match check(Call::Other) {
        // SAFETY: the caller vouches for the pointer.
        Ok(()) => unsafe { put(stream, as_handle(driver().handle())) },
        Err(code) => code,
    }
}

/// The device of an ordinal.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    if ordinal != 0 {
        return fail(INVALID_DEVICE, "there is one device, number 0");
    }
    // SAFETY: the caller vouches for the pointer.
    unsafe { put(device, 0) }
}

/// The device's name.
///
/// # Safety
///
/// `name` has room for `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> Code {
    if name.is_null() || len < 1 {
        return INVALID_VALUE;
    }
    let n_bytes = NAME.len().min(len as usize - 1);
    // SAFETY: there is room for `len` bytes, and `n_bytes` is fewer.
    unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), name, n_bytes) };
    // SAFETY: as above.
    let end = unsafe { name.add(n_bytes) };
    // SAFETY: `end` is the last of at most `len` bytes.
    unsafe { put(end, 0) }
}

/// Not of the driver: modules of the text `original` that this thread loads become `replacement`, until it is called
/// with null pointers. So tests run kernels that are wrong on purpose.
///
/// # Safety
///
/// Both are null, or texts that end with a zero byte.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stand_in_replace_module(original: *const c_char, replacement: *const c_char) {
    // SAFETY: the caller vouches for the texts.
    let original = unsafe { text(original) };
    // SAFETY: as above.
    let replacement = unsafe { text(replacement) };
    replace_module(original.ok().zip(replacement.ok()));
}

/// Not of the driver: the kernels that this thread has launched since the last call, a line each with the number of
/// instructions it took, as far as `text` has room; before those of a graph a line for the graph, with their number.
/// Returns how many bytes there are.
///
/// # Safety
///
/// `text` has room for `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stand_in_take_launched(text: *mut c_char, len: usize) -> usize {
    let launched = take_launched();
    if !text.is_null() {
        let n_bytes = launched.len().min(len);
        // SAFETY: the caller vouches for room for `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(launched.as_ptr().cast(), text, n_bytes) };
    }
    launched.len()
}
