//! The command line, as clap parses it.
//!
//! Invariant: only shapes and defaults live here; what a command does lives in `commands`.

mod export;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use llamaduo_kernels::Device;

use crate::config::sections::Quant;
use llamaduo_engine::Compute;

pub(crate) use export::{Export, ExportTarget, ExportType};

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

#[derive(Debug, Args)]
pub(crate) struct Demo {
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

/// How a client finds its coordinator.
#[derive(Clone, Debug, Args)]
pub(crate) struct Remote {
    /// The coordinator.
    #[arg(
        long,
        value_name = "URL",
        env = "LLAMADUO_COORDINATOR",
        default_value = "http://127.0.0.1:7400",
        value_parser = coordinator_url
    )]
    pub(crate) coordinator: String,
    #[command(flatten)]
    pub(crate) token: TokenFile,
}

/// An address as people write it: `host:port` is as good as `http://host:port`.
fn coordinator_url(text: &str) -> Result<String, String> {
    let text = text.trim().trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if scheme != "http" {
        return Err("a coordinator is reached by http://HOST:PORT; there is no TLS yet".to_owned());
    }
    let has_port = rest.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !has_port {
        return Err("name a host and a port, for example http://127.0.0.1:7400".to_owned());
    }
    Ok(format!("http://{rest}"))
}

/// The bearer token of a coordinator.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TokenFile {
    /// File that holds the coordinator's bearer token.
    #[arg(long, value_name = "FILE", env = "LLAMADUO_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
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
pub(crate) struct Coordinator {
    /// Address to listen on; only loopback addresses are allowed until there is TLS.
    #[arg(long, default_value = "127.0.0.1:7400")]
    pub(crate) listen: SocketAddr,
    /// Directory of its state and artifacts.
    #[arg(long, value_name = "DIR", default_value = "llamaduo-coordinator")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) token: TokenFile,
    /// How long a silent worker keeps its tasks, milliseconds; at least three heartbeats.
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) lease_ms: Option<u64>,
    /// How often workers give a sign of life, milliseconds.
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) heartbeat_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Its name, stable over restarts; the host's name when absent.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Directory of its spool and artifact cache; named after the worker when absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Artifact directory shared with the coordinator; without it artifacts are sent over gRPC.
    #[arg(long, value_name = "DIR")]
    pub(crate) shared_artifacts: Option<PathBuf>,
    /// Train and infer tasks at once.
    #[arg(long, default_value_t = 1)]
    pub(crate) local_model_slots: u32,
    /// Tasks that call service LLMs at once.
    #[arg(long, default_value_t = 4)]
    pub(crate) service_slots: u32,
    /// Threads of the local model; all cores when absent.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
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
    /// A run; all of them when absent.
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The run.
    pub(crate) run: String,
    /// First event wanted.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) from: u64,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The run.
    pub(crate) run: String,
    /// Kept as the run's reason.
    #[arg(long, default_value = "cancelled by request")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Where a single stage runs: in this process, or by a coordinator's workers.
#[derive(Clone, Debug, Args)]
pub(crate) struct StageArguments {
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
    /// Directory of an adapter; the bare base answers when absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
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

/// A local model opened in this process.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    /// Directory, .gguf file, Hugging Face id, or known name (smollm2-135m-instruct).
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// Directory of a PEFT adapter.
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// How the base is held: nf4, or none for the file's own values.
    #[arg(long, value_enum, default_value_t = Quant::Nf4)]
    pub(crate) quant: Quant,
    /// Operands of matrix products: f32, or bf16, which is faster where the CPU multiplies it (AVX-512 BF16).
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub(crate) compute: Compute,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("measured").args(["data", "ids"]).required(true))]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Rows of {"messages": [...]}.
    #[arg(long, value_name = "JSONL")]
    pub(crate) data: Option<PathBuf>,
    /// Rows of token ids instead of text, [[1, 2, 3], ...]; the model needs no tokenizer.
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
}

#[derive(Debug, Args)]
pub(crate) struct BenchModel {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    /// Compute threads; one for each core when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchGenerate {
    #[command(flatten)]
    pub(crate) model: BenchModel,
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
pub(crate) struct Report {
    /// A run's directory, or a run's id at the coordinator.
    pub(crate) run: String,
    /// Where to write a report fetched from a coordinator; named after the run when absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct StandInService {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub(crate) listen: SocketAddr,
    /// Seed of its noise and faults.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[cfg(test)]
mod tests;
