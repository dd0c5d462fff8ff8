//! One small language model: read its files, quantize, adapt, train, generate. Synchronous and deterministic from a seed.
//!
//! Invariant: nothing in here knows of a network, a coordinator or an async runtime, and no input makes it panic.

pub mod bench;
pub mod chat_template;
pub mod config;
pub mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod generate;
pub mod gguf;
mod guard;
pub mod local_model;
pub mod lora;
pub mod memory;
mod model;
#[cfg(test)]
mod parity;
pub mod peft;
pub mod safetensors;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod train;
pub mod weights;

pub use chat_template::{ChatTemplate, Message, Role, encode_chat};
pub use config::{Family, ModelConfig, Rope, RopeScaling};
pub use error::{Error, Result};
pub use eval::{EvalLoss, check_ids, evaluate, evaluate_ids, evaluate_observed, logits, stream_logits};
pub use files::{ModelFiles, describe};
pub use generate::{
    BatchOptions, Completion, Finish, GenerateEvent, GenerateOptions, GenerateRequest, Likelihood, Sampling,
    TokenLogprob, generate,
};
pub use llamaduo_kernels::{Compute, Device, DeviceError};
pub use local_model::{BaseQuant, LoadOptions, LocalModel};
pub use lora::{Adapter, LinearName, LoraConfig, LoraTargets};
pub use tokenizer::Tokenizer;
pub use train::{
    Checkpoint, Conversation, LossOn, Schedule, StepLog, TrainConfig, TrainEvent, TrainOutcome, Trained,
    train,
};
pub use weights::{LayerTensor, TensorName, Weights};
