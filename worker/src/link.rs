//! The worker's link to the coordinator: what runs here, under which lease, and what ended but is not yet told.
//!
//! Invariant: the link has a thread of its own, so that no load on this machine keeps it from renewing leases; and an
//! attempt stays listed until its end is on the coordinator's side.

mod deliver;
mod registry;
mod session;
mod spool;

pub(crate) use deliver::Courier;
pub(crate) use registry::{AttemptHandle, Registry};
pub(crate) use session::{Link, LinkThread};
pub(crate) use spool::{Entry, Spool};
