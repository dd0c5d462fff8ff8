//! Randomness that decides nothing about results: jitter of waits, and the name of this process.
//!
//! Invariant: no seed of a task passes here; what must be repeatable is drawn from the task's own seed.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// 64 bits that differ from call to call and from process to process: a hash under keys the system chose.
pub(crate) fn bits() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// A number in [0, 1).
pub(crate) fn unit() -> f64 {
    // 53 bits fill the mantissa of an f64.
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A wait of up to `first · 2^n_tries`, at most `most`, drawn evenly ("full jitter"), so that many who failed
/// together do not come back together.
pub(crate) fn full_jitter(first: Duration, most: Duration, n_tries: u32) -> Duration {
    let ceiling = first
        .saturating_mul(1_u32.checked_shl(n_tries).unwrap_or(u32::MAX))
        .min(most);
    ceiling.mul_f64(unit())
}
