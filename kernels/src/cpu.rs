//! The CPU backend.
//!
//! Invariant: see the crate: one fixed chain of operations per element.

pub(crate) mod simd;

pub use simd::Isa;
