//! The command lines of runs: those begun here, those submitted, and what is asked of either.
//!
//! Invariant: what goes on with a run takes the same config as what began it.

use std::path::PathBuf;

use clap::Args;
use llamaduo_kernels::Device;

use super::{ConfigArguments, Remote};

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// What local models run on: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
    /// Seed of the task's data, the stand-in's noise and the training.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: u64,
    /// The run's directory.
    #[arg(long, value_name = "DIR", default_value = "llamaduo-demo")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to write; made if it is missing.
    #[arg(default_value = ".")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// What local models run on: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    /// Only go on with a run that is there, with its --set options; without it a new run is started where there is none.
    #[arg(long)]
    pub(crate) resume: bool,
    /// The run's directory.
    #[arg(long, value_name = "DIR", default_value = "llamaduo-run")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    pub(crate) config: ConfigArguments,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Name this submission: the same id again is the same run.
    #[arg(long, value_name = "ID", conflicts_with = "resume")]
    pub(crate) request_id: Option<String>,
    /// Go on with a run that ended short or was cancelled, under the limits and keys of now.
    #[arg(long, value_name = "RUN")]
    pub(crate) resume: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// A run's id at the coordinator; all of them when absent.
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The run's id, as status lists it.
    pub(crate) run: String,
    /// First event wanted.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) from: u64,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The run's id, as status lists it.
    pub(crate) run: String,
    /// Kept as the run's reason.
    #[arg(long, default_value = "cancelled by request")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// A run's directory, or a run's id at the coordinator.
    pub(crate) run: String,
    /// Where to write a report fetched from a coordinator; named after the run when absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}
