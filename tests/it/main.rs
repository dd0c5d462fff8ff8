//! Whole-system tests: the release binary as a user runs it, killed, starved and fed nonsense, on a tiny model; and
//! the real model of the demo against its references.
//!
//! Invariant: what a test claims, it has seen in the files, streams and exit codes that a user sees.

mod adapters;
mod architecture;
mod bad_input;
mod cluster;
mod crash;
mod cycle;
mod device;
mod ended;
mod export;
mod fuzz;
mod gpu_bench;
mod memory;
mod resume;
mod smollm2;
mod stages;
mod token_rows;
