//! The command line of `export`.
//!
//! Invariant: names are those of the formats in the programs that they are for.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::models::adapter_choice;
use super::{AdapterChoice, ModelArguments};

/// A format of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportTarget {
    /// The adapter, for PEFT and vLLM: a directory.
    Peft,
    /// The adapter, for llama.cpp: a file.
    GgufLora,
    /// The merged model, for llama.cpp: a file.
    Gguf,
    /// The merged model, for transformers: a directory.
    Safetensors,
    /// The merged model with a Modelfile, for Ollama: a directory.
    Ollama,
}

impl ExportTarget {
    /// As it is given.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::GgufLora => "gguf-lora",
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Ollama => "ollama",
        }
    }
}

/// How a merged model's matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportType {
    /// 4 bytes a weight, nothing rounded.
    F32,
    /// 2 bytes; what gguf and ollama get when nothing is said.
    F16,
    /// 2 bytes, of a wider range and coarser; what safetensors gets when nothing is said.
    Bf16,
    /// 8.5 bits; not for safetensors.
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Directory of a PEFT adapter, or none for the base alone, as without it (a directory of that name is ./none).
    #[arg(long, value_name = "DIR", value_parser = adapter_choice())]
    pub(crate) adapter: Option<AdapterChoice>,
    /// What to write.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) to: ExportTarget,
    /// Where to write it: a .gguf file for gguf and gguf-lora, else a directory.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// How the merged model's matrices are stored.
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub(crate) stored: Option<ExportType>,
    /// Rows of {"messages": [...]}; the first 8 are what the exported model is compared on, else some prompts of our own.
    #[arg(long, value_name = "JSONL")]
    pub(crate) data: Option<PathBuf>,
    /// With --to ollama: base and adapter as two files, so that several adapters can share the base.
    #[arg(long)]
    pub(crate) separate_adapter: bool,
    /// Replace what is there.
    #[arg(long)]
    pub(crate) overwrite: bool,
}
