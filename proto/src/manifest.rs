//! A manifest: the artifact that says what other artifacts are, and what they were made from.
//!
//! Invariant: every result of a task is a manifest, so that each artifact's parents can be found from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// What a manifest describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// LoRA weights in PEFT's files, and the training log.
    Adapter,
    /// `responses.jsonl`.
    Responses,
    /// `verdicts.jsonl`.
    Verdicts,
    /// `samples.jsonl`, raw from the service LLM.
    RawSamples,
    /// `samples.jsonl` kept by curation, and `dropped.jsonl`.
    CuratedSamples,
    /// `report.json`, `report.html` and the tables behind its plots.
    Report,
}

/// What artifacts are, and what they were made from. Stored as JSON with sorted keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What it describes.
    pub kind: ManifestKind,
    /// File name to artifact.
    pub files: BTreeMap<String, Digest>,
    /// Artifacts these were made from.
    pub parents: Vec<Digest>,
}
