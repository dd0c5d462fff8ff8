//! The CUDA backend against the CPU's, through the whole path: cudarc, a driver, the committed PTX.
//!
//! Invariant: the driver is the stand-in over the PTX interpreter, also on a machine that has a card; with
//! `LLAMADUO_TEST_CUDA=real` it is the machine's own, and what only the stand-in can show is skipped, saying so.

#![cfg(target_os = "linux")] // where the loader finds a library that is already there by its name

mod case;
mod cases;
mod conformance;
mod device;
mod driver;
mod hopper_check;
mod mutations;
mod neighbours;
mod replay;
mod rows;
