//! What goes wrong now and then, as it does with real services.
//!
//! Invariant: the third try of a request never fails, whatever the rates.

use super::tickets::Draw;

/// How often things go wrong: probabilities of one try, in [0, 1]; beyond a sum of 1 the later ones never happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRates {
    /// 429 with Retry-After.
    pub too_many_requests: f64,
    /// 500.
    pub server_error: f64,
    /// 200 with a body that breaks off.
    pub broken_body: f64,
    /// 200 with a reply that had to be JSON and breaks off.
    pub broken_content: f64,
}

impl FaultRates {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        too_many_requests: 0.0,
        server_error: 0.0,
        broken_body: 0.0,
        broken_content: 0.0,
    };
}

impl Default for FaultRates {
    /// Often enough that each happens in a demo of a few hundred calls, rare enough that it ends in time.
    fn default() -> Self {
        Self {
            too_many_requests: 0.02,
            server_error: 0.01,
            broken_body: 0.005,
            broken_content: 0.01,
        }
    }
}

/// What goes wrong with one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    TooManyRequests,
    ServerError,
    BrokenBody,
    BrokenContent,
}

/// Tries of one request that may fail: a client that tries three times always gets through.
const FAULTY_TRIES: u32 = 2;
/// Keeps these choices apart from all others of the same seed and request.
const PURPOSE: u64 = 0xfa17;

/// What goes wrong with the try of `request` that comes after `n_seen` others.
pub(super) fn fault(rates: &FaultRates, seed: u64, request: u64, n_seen: u32) -> Option<Fault> {
    if n_seen >= FAULTY_TRIES {
        return None;
    }
    let faults = [
        (rates.too_many_requests, Fault::TooManyRequests),
        (rates.server_error, Fault::ServerError),
        (rates.broken_body, Fault::BrokenBody),
        (rates.broken_content, Fault::BrokenContent),
    ];
    let mut left = Draw::new(&[seed, PURPOSE, request, n_seen.into()]).unit();
    for (rate, fault) in faults {
        if left < rate {
            return Some(fault);
        }
        left -= rate;
    }
    None
}

#[cfg(test)]
mod tests;
