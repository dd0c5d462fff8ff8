//! One small language model: read its files, quantize, adapt, train, generate. Synchronous and deterministic from a seed.
//!
//! Invariant: nothing in here knows of a network, a coordinator or an async runtime, and no input makes it panic.

pub mod chat_template;
pub mod config;
pub mod error;
pub mod files;
pub mod gguf;
pub mod safetensors;
pub mod tokenizer;
pub mod weights;

pub use chat_template::{ChatTemplate, Message, Role, encode_chat};
pub use config::{Family, ModelConfig, Rope, RopeScaling};
pub use error::{Error, Result};
pub use files::ModelFiles;
pub use tokenizer::Tokenizer;
pub use weights::{LayerTensor, TensorName, Weights};
