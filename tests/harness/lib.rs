//! What whole-system tests need: the real binary, real processes that can be killed, a tiny model that trains in
//! seconds, the real model of the demo, and the stand-in service with a count of what it was asked.
//!
//! Invariant: nothing here stands in for product code; a test drives what a user would run.

pub mod fuzz;
pub mod llama_cpp;
pub mod model;
pub mod process;
pub mod run_files;
pub mod service;
pub mod site;
pub mod tiny_model;
