//! Calls of libraries that may panic on hostile input.
//!
//! Invariant: such a panic goes no further and is not told on standard error, where it would look like a fault of the
//! program's own.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `run` gives; `None` when it panics. The panics of other threads are told as ever.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    // The hook of a panicking thread cannot be taken; such a thread is about to end anyway.
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let tell = take_hook();
            set_hook(Box::new(move |panic| {
                if !IS_GUARDED.get() {
                    tell(panic);
                }
            }));
        });
    }
    let outer = IS_GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IS_GUARDED.set(outer);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_quiet_only_inside() {
        assert_eq!(guarded(|| 1), Some(1));
        let nested = guarded(|| {
            assert_eq!(guarded(|| -> u8 { panic!("inner") }), None);
            assert!(IS_GUARDED.get(), "the outer guard still holds");
            panic!("outer")
        });
        assert_eq!(nested, None::<u8>);
        assert!(!IS_GUARDED.get());
    }
}
