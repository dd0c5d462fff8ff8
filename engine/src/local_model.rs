//! A base model that is ready to be trained, measured and asked.
//!
//! Invariant: its weights never change; one `LocalModel` serves any number of adapters.

use std::time::Duration;

use llamaduo_kernels::{AnyBackend, Backend, Compute, Device, DoubleQuant, HostWeight};
use serde::{Deserialize, Serialize};

use crate::chat_template::ChatTemplate;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::files::ModelFiles;
use crate::model::Model;
use crate::tokenizer::Tokenizer;

/// How the linears of the blocks are held. Embeddings, norms and head always keep the file's own values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaseQuant {
    /// Quantized to NF4 while loading; with `double`, the blocks' scales are quantized too.
    Nf4 {
        /// Half a bit less for each weight.
        double: bool,
    },
    /// The file's own values.
    None,
}

impl Default for BaseQuant {
    fn default() -> Self {
        Self::Nf4 { double: true }
    }
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// How the linears of the blocks are held.
    pub quant: BaseQuant,
    /// Compute threads; `None` for one on each core.
    pub threads: Option<usize>,
    /// How the CPU computes products.
    pub compute: Compute,
    /// What the model runs on.
    pub device: Device,
}

/// Base weights with their description, tokenizer and chat template.
#[derive(Debug)]
pub struct LocalModel<B: Backend = AnyBackend> {
    model: Model<B>,
    files: ModelFiles,
    identity: String,
}

impl LocalModel<AnyBackend> {
    /// Loads a model onto the device that the options name, layer by layer.
    pub fn open(files: ModelFiles, options: &LoadOptions) -> Result<Self> {
        let backend = AnyBackend::open(options.device, options.threads, options.compute)?;
        Self::with_backend(backend, files, options.quant)
    }

    /// Compute threads.
    pub fn n_threads(&self) -> usize {
        self.model.backend.n_threads()
    }

    /// How long a CUDA device took to open with all kernels.
    pub fn kernels_load_time(&self) -> Option<Duration> {
        self.model.backend.load_time()
    }

    /// Why a CUDA device runs without the kernels that are best for it, if it does.
    pub fn kernels_left_out(&self) -> Option<&str> {
        self.model.backend.kernels_left_out()
    }

    /// What the model runs on, in words.
    pub fn device(&self) -> String {
        self.model.backend.to_string()
    }
}

impl<B: Backend> LocalModel<B> {
    /// Loads a model onto a backend, layer by layer.
    pub fn with_backend(backend: B, files: ModelFiles, quant: BaseQuant) -> Result<Self> {
        let model = Model::load(backend, &files.config, &files.weights, quant)?;
        let identity = match quant {
            BaseQuant::Nf4 { double: true } => format!("{}-nf4-double", files.identity),
            BaseQuant::Nf4 { double: false } => format!("{}-nf4", files.identity),
            BaseQuant::None => files.identity.clone(),
        };
        Ok(Self {
            model,
            files,
            identity,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// The tokenizer, or an error that says where one was expected.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.files.tokenizer()
    }

    /// The chat template, or an error that says where one was expected.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.files.chat_template()
    }

    /// Names the weights as they are held: checkpoint and quantization.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn inner(&self) -> &Model<B> {
        &self.model
    }
}

impl BaseQuant {
    /// How NF4's scales are held; `None` without NF4.
    pub(crate) fn double_quant(self) -> Option<DoubleQuant> {
        match self {
            Self::Nf4 { double: true } => Some(DoubleQuant::Yes),
            Self::Nf4 { double: false } => Some(DoubleQuant::No),
            Self::None => None,
        }
    }
}

/// A linear of the blocks as `quant` holds it.
pub(crate) fn prepare(weight: HostWeight, quant: BaseQuant) -> Result<HostWeight> {
    match quant.double_quant() {
        Some(double_quant) => Ok(HostWeight::Nf4(weight.into_nf4(double_quant)?)),
        None => Ok(weight),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
