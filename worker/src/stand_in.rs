#![doc = include_str!("stand_in/README.md")]
//!
//! Invariant: an answer is a function of (seed, request, how often that request was seen) and of nothing else: no
//! clock, no order of arrival.

mod answer;
mod chat;
mod faults;
mod grade;
mod prompt;
mod server;
mod synthesis;
pub mod tickets;

pub use chat::MODEL;
pub use faults::FaultRates;
pub use server::{Error, Options, serve};
pub use synthesis::Flaws;
