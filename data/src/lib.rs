//! The pure side of the pipeline: import, split, verdicts, scores, the gate, curation and the report.
//!
//! Invariant: the same input gives the same output, byte for byte. Nothing here reaches a network or reads a
//! clock, and the only file ever opened is the one handed to [`import::import_file`].

pub mod curate;
mod error;
pub mod gate;
pub mod import;
pub mod jsonl;
pub mod price;
pub mod report;
pub mod sample;
pub mod score;
pub mod split;
pub mod synthesis;
pub mod text;
pub mod verdict;

pub use error::Error;
pub use price::NanoUsd;
pub use sample::{Message, Provenance, Role, Sample, SampleId, ServiceCall};
pub use verdict::{Response, Verdict};
