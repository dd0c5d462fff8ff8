//! A whole run simulated: random workers, failures, lost messages and restarts, and after every step the invariants.

mod migration;
mod placement;
mod policy;
mod random;
mod unreadable;
pub(crate) mod world;
