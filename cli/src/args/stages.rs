//! The command lines of single stages.
//!
//! Invariant: each writes to one place, beside which it keeps what is needed to repeat it.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use llamaduo_kernels::Device;

use super::cluster::coordinator_url;
use super::models::adapter_choice;
use super::{AdapterChoice, ConfigArguments, TokenFile};

/// Where a single stage runs: in this process, or by a coordinator's workers.
#[derive(Clone, Debug, Args)]
pub(crate) struct StageArguments {
    /// What local models run on: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
    /// Let a coordinator's workers do it; without it this process does.
    #[arg(long, value_name = "URL", value_parser = coordinator_url)]
    pub(crate) coordinator: Option<String>,
    #[command(flatten)]
    pub(crate) token: TokenFile,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    #[command(flatten)]
    pub(crate) stage: StageArguments,
    /// Samples to train on, after the coverage dataset's train split; may be repeated.
    #[arg(long, value_name = "JSONL")]
    pub(crate) samples: Vec<PathBuf>,
    /// Directory for the adapter; .llamaduo beside it keeps what is needed to go on or to repeat it.
    #[arg(long, value_name = "DIR", default_value = "adapter")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("answerer").args(["adapter", "service"]))]
pub(crate) struct Infer {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    #[command(flatten)]
    pub(crate) stage: StageArguments,
    /// Directory of an adapter, or none for the base alone, as without it (a directory of that name is ./none).
    #[arg(long, value_name = "DIR", value_parser = adapter_choice())]
    pub(crate) adapter: Option<AdapterChoice>,
    /// Let the service LLM answer.
    #[arg(long)]
    pub(crate) service: bool,
    /// File for the responses; .llamaduo beside it keeps what is needed to go on or to repeat it.
    #[arg(long, value_name = "JSONL", default_value = "responses.jsonl")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Judge {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    #[command(flatten)]
    pub(crate) stage: StageArguments,
    /// The responses, as `infer` writes them.
    #[arg(long, value_name = "JSONL", default_value = "responses.jsonl")]
    pub(crate) responses: PathBuf,
    /// File for the verdicts; .llamaduo beside it keeps what is needed to go on or to repeat it.
    #[arg(long, value_name = "JSONL", default_value = "verdicts.jsonl")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Synth {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    #[command(flatten)]
    pub(crate) stage: StageArguments,
    /// File for the samples that curation keeps; what it drops goes beside it, with the reasons, and .llamaduo keeps what
    /// is needed to go on or to repeat it.
    #[arg(long, value_name = "JSONL", default_value = "samples.jsonl")]
    pub(crate) out: PathBuf,
}
