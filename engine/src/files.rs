//! A model on disk: which files make it up, and what they hold together.
//!
//! Invariant: nothing of the weights is read until a tensor is asked for; the files are mapped.

use std::path::{Path, PathBuf};

use crate::chat_template::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// An opened base model.
#[derive(Debug)]
pub struct ModelFiles {
    /// What it is.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Its tokenizer, where the files hold one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, where the files hold one.
    pub chat_template: Option<ChatTemplate>,
    /// Names the weights: sha256 in hex over headers, sizes and samples of the weight files, wherever they lie.
    pub identity: String,
    /// The `.gguf` file or the directory.
    pub path: PathBuf,
}

impl ModelFiles {
    /// Opens a `.gguf` file, a directory with `config.json` and `model.safetensors` (or its shards and index), or a
    /// directory with exactly one `.gguf` file.
    pub fn open(path: &Path) -> Result<Self>;
    /// The tokenizer, or an error that says where one was expected.
    pub fn tokenizer(&self) -> Result<&Tokenizer>;
    /// The chat template, or an error that says where one was expected and which are built in.
    pub fn chat_template(&self) -> Result<&ChatTemplate>;
}
