//! Event calls.
//!
//! Invariant: as in the driver's header; since a stream's work is done when it is given, the time between two events is
//! the time the interpreter took for what was given between them.

use std::collections::HashMap;
use std::ffi::c_uint;
use std::time::Instant;

use crate::call::{Code, INVALID_HANDLE, code, fail, put};
use crate::calls::{Handle, as_handle, as_number};
use crate::driver::driver;

/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMING: c_uint = 2;

/// The events there are.
#[derive(Debug, Default)]
pub(crate) struct Events {
    by_handle: HashMap<u64, Event>,
}

#[derive(Debug)]
struct Event {
    has_time: bool,
    recorded: Option<Instant>,
}

impl Events {
    fn record(&mut self, event: u64) -> Result<(), Code> {
        let event = self
            .by_handle
            .get_mut(&event)
            .ok_or_else(|| fail(INVALID_HANDLE, "no such event"))?;
        event.recorded = Some(Instant::now());
        Ok(())
    }

    fn recorded(&self, event: u64) -> Result<Instant, Code> {
        self.by_handle
            .get(&event)
            .filter(|event| event.has_time)
            .and_then(|event| event.recorded)
            .ok_or_else(|| {
                fail(
                    INVALID_HANDLE,
                    "an event without timing, or that was never recorded",
                )
            })
    }
}

/// A new event.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: c_uint) -> Code {
    let mut driver = driver();
    let handle = driver.handle();
    let made = Event {
        has_time: flags & WITHOUT_TIMING == 0,
        recorded: None,
    };
    driver.events.by_handle.insert(handle, made);
    // SAFETY: the caller vouches for the pointer.
    unsafe { put(event, as_handle(handle)) }
}

/// The stream has come here.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventRecord(event: Handle, _stream: Handle) -> Code {
    code(driver().events.record(as_number(event)))
}

/// Milliseconds between two events.
///
/// # Safety
///
/// As the driver's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    begin: Handle,
    end: Handle,
) -> Code {
    let driver = driver();
    let recorded = |event| driver.events.recorded(as_number(event));
    match recorded(begin).and_then(|begin| Ok(recorded(end)?.saturating_duration_since(begin))) {
        // SAFETY: the caller vouches for the pointer.
        Ok(between) => unsafe { put(milliseconds, between.as_secs_f32() * 1e3) },
        Err(code) => code,
    }
}

/// Forgets an event.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventDestroy_v2(event: Handle) -> Code {
    driver().events.by_handle.remove(&as_number(event));
    0
}
