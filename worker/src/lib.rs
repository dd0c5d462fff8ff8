//! The hands: hold a lease, run one attempt of one task, report. Service-LLM clients live here.
//!
//! Invariant: nothing here decides what happens next, and whatever was paid for or finished is on this machine's
//! disk before anything depends on it. Kill the process at any line: the spool, the artifacts and the coordinator's
//! record of calls suffice to go on.

mod artifacts;
mod calls;
mod coordinator;
mod error;
mod home;
mod http;
mod link;
pub mod models;
mod notice;
mod numbers;
mod options;
mod random;
mod secret;
pub mod service_llm;
pub mod stand_in;
mod tasks;
mod worker;

pub use error::{Error, Stop};
pub use notice::{Notice, Tell};
pub use options::Options;
pub use secret::Secret;
pub use worker::run;

#[cfg(test)]
mod testing;
