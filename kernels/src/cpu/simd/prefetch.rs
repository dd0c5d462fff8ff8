//! Asks for memory before it is needed, where the hardware cannot guess it: at the beginning of each page of a cache.
//!
//! Invariant: nothing that a program could see is read or changed.

/// Asks for the cache lines of `values`.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn prefetch<T>(values: &[T]) {
    super::x86::prefetch(values);
}

/// Does nothing on this architecture.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch<T>(_: &[T]) {}
