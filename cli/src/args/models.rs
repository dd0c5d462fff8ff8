//! The command lines that open a local model in this process.
//!
//! Invariant: all of them name a model by the same arguments.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgGroup, Args, Subcommand};
use llamaduo_engine::Compute;
use llamaduo_kernels::Device;

use crate::config::sections::Quant;

/// A local model opened in this process.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    /// Directory, .gguf file, Hugging Face id, or known name (smollm2-135m-instruct).
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// How the base is held: nf4, or none for the file's own values.
    #[arg(long, value_enum, default_value_t = Quant::Nf4)]
    pub(crate) quant: Quant,
    /// Operands of matrix products on a CPU: f32; bf16, which is faster where the CPU multiplies it (AVX-512 BF16); or
    /// int16, which reads and answers faster on any x86 with AVX2.
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub(crate) compute: Compute,
    /// What local models run on: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
}

/// How the base alone is named where an adapter is.
const THE_BASE: &str = "none";

/// What `--adapter` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdapterChoice {
    /// The base alone.
    Base,
    /// The directory of an adapter.
    Directory(PathBuf),
}

impl AdapterChoice {
    /// The directory, where it is one.
    pub(crate) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Base => None,
            Self::Directory(directory) => Some(directory),
        }
    }
}

impl From<PathBuf> for AdapterChoice {
    fn from(given: PathBuf) -> Self {
        match given.as_os_str() == THE_BASE {
            true => Self::Base,
            false => Self::Directory(given),
        }
    }
}

/// As a path is read, of which an empty one is refused.
pub(super) fn adapter_choice() -> impl TypedValueParser<Value = AdapterChoice> {
    PathBufValueParser::new().map(AdapterChoice::from)
}

impl fmt::Display for AdapterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str(THE_BASE),
            Self::Directory(directory) => write!(f, "{}", directory.display()),
        }
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("measured").args(["data", "ids"]).required(true))]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Directory of a PEFT adapter, or none for the base alone, as without it (a directory of that name is ./none).
    #[arg(long, value_name = "DIR", value_parser = adapter_choice())]
    pub(crate) adapter: Option<AdapterChoice>,
    /// Rows of {"messages": [...]}, each with an assistant's message. The loss is over all tokens of a conversation, those of
    /// the prompt as those of the answer.
    #[arg(long, value_name = "JSONL")]
    pub(crate) data: Option<PathBuf>,
    /// Rows of token ids instead of text, [[1, 2, 3], ...]; the model needs no tokenizer. The loss is over all of them but the
    /// first of each row.
    #[arg(long, value_name = "JSON")]
    pub(crate) ids: Option<PathBuf>,
    /// Also write the logits after each token, [rows, tokens, vocabulary] of 32-bit floats. Rows shorter than the longest
    /// are filled up with NaN.
    #[arg(long, value_name = "SAFETENSORS", requires = "ids", conflicts_with = "data")]
    pub(crate) logits: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("asked").args(["prompt", "messages"]).required(true))]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Directory of a PEFT adapter, or none for the base alone (a directory of that name is ./none); where it is repeated,
    /// all of them answer in one batch.
    #[arg(long = "adapter", value_name = "DIR", value_parser = adapter_choice())]
    pub(crate) adapters: Vec<AdapterChoice>,
    /// What the user says.
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// JSON file of the conversation: [{"role": ..., "content": ...}], alone or under "messages".
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
    /// Always the likeliest token.
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "top_k", "min_p", "seed"])]
    pub(crate) greedy: bool,
    /// Longest answer, tokens.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.4)]
    pub(crate) temperature: f32,
    /// Keep the smallest set of tokens with this much probability.
    #[arg(long)]
    pub(crate) top_p: Option<f32>,
    /// Keep this many tokens.
    #[arg(long)]
    pub(crate) top_k: Option<u32>,
    /// Drop tokens less likely than this part of the likeliest one.
    #[arg(long)]
    pub(crate) min_p: Option<f32>,
    /// Divide the logits of tokens that were asked or said already by this where positive, multiply them where negative.
    #[arg(long, value_name = "FACTOR")]
    pub(crate) repetition_penalty: Option<f32>,
    /// End the answer before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// With -o json, also tell how likely each token was, and the so many likeliest in its place.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=20))]
    pub(crate) logprobs: Option<u32>,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Tokens in a second of reading prompts and of answering them.
    Generate(BenchGenerate),
    /// Tokens in a second of fine-tuning.
    Train(BenchTrain),
    /// Time of each operation on a card, at a model's shapes.
    Kernels(BenchKernels),
}

#[derive(Debug, Args)]
pub(crate) struct BenchModel {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Compute threads; one for each core when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Make up the weights at the shapes that the model's config.json gives; it needs no other file.
    #[arg(long)]
    pub(crate) random_weights: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchGenerate {
    #[command(flatten)]
    pub(crate) model: BenchModel,
    /// Directory of a PEFT adapter, or none for the base alone, as without it (a directory of that name is ./none); where it
    /// is repeated, the prompts of a batch have them in turn.
    #[arg(long = "adapter", value_name = "DIR", value_parser = adapter_choice(), conflicts_with = "random_weights")]
    pub(crate) adapters: Vec<AdapterChoice>,
    /// Prompts answered together; one run for each number.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: Vec<u32>,
    /// Tokens of each prompt.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt_tokens: u32,
    /// Tokens of each answer.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) new_tokens: u32,
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrain {
    #[command(flatten)]
    pub(crate) model: BenchModel,
    /// Rows of a step.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: u32,
    /// Tokens of a row.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) seq: u32,
    /// Steps that are timed, after one that is not.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) steps: u32,
    /// Rank of the adapter.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) rank: u32,
    /// Make activations again in the backward instead of keeping them.
    #[arg(long)]
    pub(crate) recompute: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchKernels {
    /// Directory whose config.json gives the shapes; weights are made up.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Rows of the products; a measurement for each.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8,16,32,64,256,1024,4096,8192", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) rows: Vec<u32>,
    /// Tokens of a document, and of a context in decoding.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,
    /// Documents of a step of training.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) documents: u32,
    /// Sequences of a decoding step.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) sequences: u32,
    /// Rank of the LoRA pairs.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) rank: u32,
    /// KiB that are copied to see what the memory gives.
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) copy_kib: u32,
    /// Of the card's time for each measurement, about.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) milliseconds: u32,
    /// Only these operations, by the names that the output has.
    #[arg(long, value_name = "OP", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Instead of timing, run each operation once, with the first number of rows, and write what it read and what came
    /// out into this directory, for another program to check.
    #[arg(long, value_name = "DIR")]
    pub(crate) save: Option<PathBuf>,
    /// The card: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
}
