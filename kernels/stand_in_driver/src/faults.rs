//! Failures on purpose, for tests of what a program does when a card fails.
//!
//! Invariant: a failure that was asked for one thread touches no other; one for the process touches whichever thread
//! makes the call. After an error that loses the context every call fails with it, until the last who holds the context
//! lets go of it: as a real driver has it.

use std::cell::RefCell;
use std::ffi::{c_char, c_int};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::call::{Code, fail, text};

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Memory is asked for.
    Allocate,
    /// Memory is copied or filled.
    Move,
    /// A kernel or a graph is launched.
    Launch,
    /// What a graph launches is made of a capture.
    Instantiate,
    /// A module is loaded.
    Load,
    /// The context is asked for.
    Open,
    /// Anything else that needs a context.
    Other,
}

impl Call {
    fn named(name: &str) -> Option<Self> {
        match name {
            "allocate" => Some(Self::Allocate),
            "move" => Some(Self::Move),
            "launch" => Some(Self::Launch),
            "instantiate" => Some(Self::Instantiate),
            "load" => Some(Self::Load),
            "open" => Some(Self::Open),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Fault {
    call: Call,
    /// Calls until it strikes, that one included.
    n_left: u64,
    code: Code,
}

#[derive(Debug, Default)]
struct Faults {
    waiting: Vec<Fault>,
    /// What every call fails with.
    lost: Option<Code>,
    /// Who holds the context.
    n_holders: usize,
    /// Calls so far, by [`Call`].
    n_calls: [u64; 7],
}

/// Errors after which the driver's header calls a context unusable: a device's memory or a kernel failed.
fn loses_context(code: Code) -> bool {
    matches!(code, 214 | 220 | 700 | 702 | 709..=719 | 999)
}

impl Faults {
    fn check(&mut self, call: Call) -> Option<Code> {
        self.n_calls[call as usize] += 1;
        if self.lost.is_some() {
            return self.lost;
        }
        let mut struck = None;
        self.waiting.retain_mut(|fault| {
            if fault.call == call {
                fault.n_left = fault.n_left.saturating_sub(1);
                if fault.n_left == 0 && struck.is_none() {
                    struck = Some(fault.code);
                    return false;
                }
            }
            true
        });
        self.lost = struck.filter(|&code| loses_context(code));
        struck
    }

    fn let_go(&mut self) {
        self.n_holders = self.n_holders.saturating_sub(1);
        if self.n_holders == 0 {
            self.lost = None;
        }
    }
}

thread_local! {
    static OF_THREAD: RefCell<Faults> = RefCell::default();
}

/// `STAND_IN_FAULTS` says what the process begins with: `call:nth=code`, several with a comma between.
fn of_process() -> MutexGuard<'static, Faults> {
    static OF_PROCESS: OnceLock<Mutex<Faults>> = OnceLock::new();
    let faults = OF_PROCESS.get_or_init(|| {
        let listed = std::env::var("STAND_IN_FAULTS").unwrap_or_default();
        let fault = |text: &str| {
            let (call, rest) = text.split_once(':')?;
            let (nth, code) = rest.split_once('=')?;
            Some(Fault {
                call: Call::named(call.trim())?,
                n_left: nth.parse().ok()?,
                code: code.trim().parse().ok()?,
            })
        };
        Mutex::new(Faults {
            waiting: listed.split(',').filter_map(fault).collect(),
            ..Faults::default()
        })
    });
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails where the call was made to fail, or the context is lost.
pub(crate) fn check(call: Call) -> Result<(), Code> {
    let struck = OF_THREAD.with(|faults| faults.borrow_mut().check(call));
    match struck.or_else(|| of_process().check(call)) {
        Some(code) => Err(fail(code, "a failure that a test asked for")),
        None => Ok(()),
    }
}

/// Somebody asks for the context.
pub(crate) fn hold() -> Result<(), Code> {
    check(Call::Open)?;
    OF_THREAD.with(|faults| faults.borrow_mut().n_holders += 1);
    of_process().n_holders += 1;
    Ok(())
}

/// Somebody lets go of the context.
pub(crate) fn let_go() {
    OF_THREAD.with(|faults| faults.borrow_mut().let_go());
    of_process().let_go();
}

/// Not of the driver: the `nth` call of that name from now on fails with `code`, the calls of this thread counted, or
/// those of all with `everywhere`. `false` for a name that is not one of `Call::named`.
///
/// # Safety
///
/// `call` is null, or a text that ends with a zero byte.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stand_in_fail(
    call: *const c_char,
    nth: u64,
    code: c_int,
    everywhere: bool,
) -> bool {
    // SAFETY: the caller vouches for the text.
    let name = unsafe { text(call) };
    let Some(call) = name.ok().as_deref().and_then(Call::named) else {
        return false;
    };
    let fault = Fault {
        call,
        n_left: nth,
        code,
    };
    match everywhere {
        true => of_process().waiting.push(fault),
        false => OF_THREAD.with(|faults| faults.borrow_mut().waiting.push(fault)),
    }
    true
}

/// Not of the driver: how many calls of that name the process has made.
///
/// # Safety
///
/// `call` is null, or a text that ends with a zero byte.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stand_in_n_calls(call: *const c_char) -> u64 {
    // SAFETY: the caller vouches for the text.
    let name = unsafe { text(call) };
    let call = name.ok().as_deref().and_then(Call::named);
    call.map_or(0, |call| of_process().n_calls[call as usize])
}

/// Not of the driver: takes back all failures of the process that have not struck, and gives how many there were.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn stand_in_forget_faults() -> u64 {
    of_process().waiting.drain(..).count() as u64
}
