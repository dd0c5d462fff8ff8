//! The contract between coordinator, workers and clients: ids, domain types, the wire, and the one place where one
//! becomes the other.
//!
//! Invariant: what comes off the wire is checked here once; the domain types carry the truth from then on.

pub mod convert;
pub mod event;
pub mod ids;
pub mod manifest;
pub mod run;
pub mod session;
pub mod task;
pub mod view;
pub mod wire;

pub use llamaduo_artifacts::Digest;
