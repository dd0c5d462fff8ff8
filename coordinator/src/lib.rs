//! The head: decides what happens next, writes it down, and hands out leases.
//!
//! Invariant: nothing in memory is truth. Whatever is decided is committed to the state store before anything is done
//! about it, so that the store and the artifacts suffice after any crash.

mod actors;
mod aggregate;
mod error;
mod grpc;
pub mod machine;
mod server;
pub mod store;

pub use actors::commit::Error as RecordError;
pub use aggregate::curation_config;
pub use error::Error;
pub use server::{Coordinator, HEARTBEAT, LEASE, Options, StateLocation, serve};
