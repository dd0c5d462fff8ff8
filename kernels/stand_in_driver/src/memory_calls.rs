//! Memory calls.
//!
//! Invariant: what was not written cannot be read back, and what is full says so.

use std::ffi::{c_int, c_void};

use crate::call::{CAPTURE_UNSUPPORTED, Code, INVALID_VALUE, OUT_OF_MEMORY, code, fail, put};
use crate::calls::{Handle, as_number};
use crate::device::Device;
use crate::driver::driver;
use crate::faults::{Call, check};
use crate::usage::{note_allocated, note_freed};
use crate::work::Work;

fn allocate(len: usize, stream: u64) -> Result<u64, Code> {
    check(Call::Allocate)?;
    let mut driver = driver();
    if driver.captured.contains_key(&stream) {
        return Err(fail(
            CAPTURE_UNSUPPORTED,
            "memory is allocated while the stream is captured",
        ));
    }
    if len == 0 {
        return Err(fail(INVALID_VALUE, "an allocation of no bytes"));
    }
    let address = driver
        .memory
        .allocate(len)
        .map_err(|problem| fail(OUT_OF_MEMORY, &problem.to_string()))?;
    note_allocated(len);
    Ok(address)
}

/// Fails while the stream is captured: what passes between the host and the card is no part of a graph here.
fn check_free(stream: Handle) -> Result<(), Code> {
    match driver().captured.contains_key(&as_number(stream)) {
        true => Err(fail(
            CAPTURE_UNSUPPORTED,
            "the host is waited for while the stream is captured",
        )),
        false => Ok(()),
    }
}

/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, len: usize, stream: Handle) -> Code {
    match allocate(len, as_number(stream)) {
        // SAFETY: the caller vouches for the pointer.
        Ok(given) => unsafe { put(address, given) },
        Err(code) => code,
    }
}

/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, len: usize) -> Code {
    // SAFETY: the caller vouches for the pointer.
    unsafe { cuMemAllocAsync(address, len, std::ptr::null_mut()) }
}

/// Gives memory back; of a lost context too, which a real driver gives back with the context.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFree_v2(address: u64) -> Code {
    let Some(len) = driver().memory.free(address) else {
        return fail(INVALID_VALUE, "no such allocation");
    };
    note_freed(len);
    code(check(Call::Other))
}

/// Gives memory back.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeAsync(address: u64, _stream: Handle) -> Code {
    cuMemFree_v2(address)
}

/// Free and all memory.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemGetInfo_v2(n_free: *mut usize, n_all: *mut usize) -> Code {
    // SAFETY: the caller vouches for the pointer.
    let done = unsafe { put(n_free, driver().memory.n_free()) };
    // SAFETY: as above.
    done.max(unsafe { put(n_all, Device::get().memory_bytes) })
}

/// From the host.
///
/// # Safety
///
/// `from` has `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    len: usize,
    stream: Handle,
) -> Code {
    if from.is_null() {
        return INVALID_VALUE;
    }
    if let Err(code) = check(Call::Move).and_then(|()| check_free(stream)) {
        return code;
    }
    // SAFETY: the caller vouches for `len` bytes at what is not null.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), len) };
    let written = driver().memory.write(to, bytes);
    code(written.map_err(|problem| fail(INVALID_VALUE, &problem.to_string())))
}

/// To the host.
///
/// # Safety
///
/// `to` has room for `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    len: usize,
    stream: Handle,
) -> Code {
    if to.is_null() {
        return INVALID_VALUE;
    }
    if let Err(code) = check(Call::Move).and_then(|()| check_free(stream)) {
        return code;
    }
    let mut bytes = vec![0u8; len];
    if let Err(problem) = driver().memory.read(from, &mut bytes) {
        return fail(INVALID_VALUE, &problem.to_string());
    }
    // SAFETY: the caller vouches for room for `len` bytes, and `bytes` holds as many.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len) };
    0
}

/// Within the card.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Handle) -> Code {
    code(check(Call::Move).and_then(|()| driver().submit(as_number(stream), Work::Copy { to, from, len })))
}

/// Fills.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemsetD8Async(to: u64, value: u8, len: usize, stream: Handle) -> Code {
    code(check(Call::Move).and_then(|()| driver().submit(as_number(stream), Work::Fill { to, value, len })))
}

/// Fills.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemsetD8_v2(to: u64, value: u8, len: usize) -> Code {
    cuMemsetD8Async(to, value, len, std::ptr::null_mut())
}

/// Function attributes: the most dynamic shared memory, and those that can be asked for.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) -> Code {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    let mut driver = driver();
    let function = match driver.function_mut(as_number(function)) {
        Ok(function) => function,
        Err(code) => return code,
    };
    if attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES {
        if value < 0 || value as usize > Device::get().shared_bytes_max() {
            return fail(INVALID_VALUE, "more shared memory than the card has");
        }
        function.shared_bytes_max = value as usize;
    }
    0
}
