//! The head: decides what happens next, writes it down, and hands out leases.
//!
//! Invariant: nothing in memory is truth. Whatever is decided is committed to the state store before anything is done
//! about it, so that the store and the artifacts suffice after any crash.

pub mod machine;
pub mod store;
