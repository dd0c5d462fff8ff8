//! What a thread has allocated, for tests of how much a program needs.
//!
//! Invariant: bytes are those that were asked for; who frees on another thread takes from that thread's count.

use std::cell::Cell;

/// Counts of one thread.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Usage {
    /// Allocations since the thread began.
    pub n_allocations: u64,
    /// Bytes allocated and not given back.
    pub n_bytes: u64,
    /// The most there were at once since [`stand_in_usage`] was asked last.
    pub n_bytes_max: u64,
}

thread_local! {
    static USAGE: Cell<Usage> = const { Cell::new(Usage { n_allocations: 0, n_bytes: 0, n_bytes_max: 0 }) };
}

pub(crate) fn note_allocated(n_bytes: usize) {
    let mut usage = USAGE.get();
    usage.n_allocations += 1;
    usage.n_bytes += n_bytes as u64;
    usage.n_bytes_max = usage.n_bytes_max.max(usage.n_bytes);
    USAGE.set(usage);
}

pub(crate) fn note_freed(n_bytes: usize) {
    let mut usage = USAGE.get();
    usage.n_bytes = usage.n_bytes.saturating_sub(n_bytes as u64);
    USAGE.set(usage);
}

/// Not of the driver: what this thread has allocated.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn stand_in_usage() -> Usage {
    let usage = USAGE.get();
    USAGE.set(Usage {
        n_bytes_max: usage.n_bytes,
        ..usage
    });
    usage
}
