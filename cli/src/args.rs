//! The command line, as clap parses it.
//!
//! Invariant: only shapes and defaults live here; what a command does lives in `commands`.

mod cluster;
mod device;
mod export;
mod models;
mod plan;
mod runs;
mod stages;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use llamaduo_kernels::Device;

pub(crate) use cluster::{Coordinator, Remote, StandInService, TokenFile, Worker};
pub(crate) use export::{Export, ExportTarget, ExportType};
pub(crate) use models::{
    AdapterChoice, Bench, BenchGenerate, BenchKernels, BenchModel, BenchTrain, Eval, Generate, ModelArguments,
};
pub(crate) use plan::Plan;
pub(crate) use runs::{Cancel, Demo, Init, Report, Run, Status, Submit, Watch};
pub(crate) use stages::{Infer, Judge, StageArguments, Synth, Train};

/// Moves one LLM workload from a paid service LLM to a small local model.
#[derive(Debug, Parser)]
#[command(name = "llamaduo", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// How to print what is asked for; progress always goes to stderr.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) output: Format,
    /// Log more to stderr; twice for debugging. RUST_LOG says it finer.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// What local models run on: auto, cpu, or cuda:N; `llamaduo doctor` tells what there is.
    #[arg(long, global = true, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub(crate) device: Device,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Parses the words of a command line, the program's name first.
pub(crate) fn parse<W: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = W>,
) -> Result<Arguments, clap::Error> {
    let matches = definition().try_get_matches_from(words)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut definition()))
}

/// The whole definition: what is derived, and what is said of all options or commands alike.
fn definition() -> clap::Command {
    with_negative_numbers(device::hidden_where_useless(Arguments::command()))
}

/// A negative number is the value of the option before it, which then says what it takes, and no unknown option.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(
            |arg| match !arg.is_positional() && arg.get_action().takes_values() {
                true => arg.allow_negative_numbers(true),
                false => arg,
            },
        )
        .mut_subcommands(with_negative_numbers)
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage or config, 3 gate not reached, 4 budget spent, \
                          5 service failure, 130 interrupted.";

/// What to add to the parser's words about a file that stands alone on the command line.
pub(crate) fn tip(error: &clap::Error) -> Option<String> {
    let unknown = match (error.kind(), error.get(ContextKind::InvalidArg)?) {
        (ErrorKind::UnknownArgument, ContextValue::String(unknown)) => unknown,
        _ => return None,
    };
    let is_file = !unknown.starts_with('-') && (unknown.contains(['.', '/']) || Path::new(unknown).exists());
    let option = match Path::new(unknown)
        .extension()
        .and_then(|extension| extension.to_str())
    {
        Some("gguf") => "--model",
        Some("jsonl" | "json") => "--data, --messages, --responses or --samples",
        Some("toml") => "--config",
        _ => "its option",
    };
    is_file
        .then(|| format!("\n  tip: files are given by name: put {option} before {unknown}, as --help lists"))
}

/// How results are printed on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// A config and what the command line changes in it.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArguments {
    /// The config file.
    #[arg(short, long, value_name = "FILE", default_value = "llamaduo.toml")]
    pub(crate) config: PathBuf,
    /// Override one key, for example --set train.epochs=2; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Migrate a small task to a small model, with a stand-in for the service LLM: no key, no GPU.
    Demo(Demo),
    /// Write a commented llamaduo.toml and a sample coverage dataset.
    Init(Init),
    /// Run a migration on this machine; the same command on an existing directory resumes it.
    Run(Run),
    /// Start a coordinator, to which workers and clients connect.
    Coordinator(Coordinator),
    /// Start a worker for a coordinator.
    Worker(Worker),
    /// Submit a migration to a coordinator.
    Submit(Submit),
    /// Show the runs of a coordinator, or one of them.
    Status(Status),
    /// Follow a run's events until it ends.
    Watch(Watch),
    /// End a run; what is paid for and trained is kept.
    Cancel(Cancel),
    /// Fine-tune once: an adapter from samples.
    Train(Train),
    /// Answer the test prompts once: responses from a base, an adapter or the service LLM.
    Infer(Infer),
    /// Grade responses once: verdicts from the judge.
    Judge(Judge),
    /// Write new pairs once: samples from the service LLM, curated.
    Synth(Synth),
    /// Measure a model's loss on conversations or token ids, and write its logits.
    Eval(Eval),
    /// Let a model answer one prompt.
    Generate(Generate),
    /// Measure how fast this machine generates or trains with a model.
    #[command(subcommand)]
    Bench(Bench),
    /// Tell how much of a card's memory training and answering take, and what to change where that is too much.
    Plan(Plan),
    /// Write what was trained for other programs: PEFT, llama.cpp, transformers, Ollama.
    Export(Export),
    /// Print a run's report from its directory, or fetch it from a coordinator.
    Report(Report),
    /// Tell what this machine has to run local models on, and what runs where.
    Doctor,
    /// Start the stand-in for a service LLM alone.
    StandInService(StandInService),
}

impl Command {
    /// Whether it is one role alone, which runs until it is stopped.
    pub(crate) fn is_role(&self) -> bool {
        matches!(
            self,
            Self::Coordinator(_) | Self::Worker(_) | Self::StandInService(_)
        )
    }
}

#[cfg(test)]
mod tests;
