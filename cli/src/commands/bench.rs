//! `bench`: how fast this machine generates and trains with a model, and how fast a card computes its operations.
//!
//! Invariant: what is printed was measured in this process, just now; nothing is estimated.

mod kernels;

use std::path::Path;
use std::time::Instant;

use llamaduo_engine::bench::{GenerateSizes, TrainSizes, time_generation, time_training};
use llamaduo_engine::{LocalModel, LoraConfig, ModelFiles};
use serde::Serialize;

use super::local_model;
use crate::args::{AdapterChoice, Bench, BenchGenerate, BenchModel, BenchTrain};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::model::{self, Held};
use crate::output::Output;

/// What a benchmark found.
#[derive(Serialize)]
struct Measured<R> {
    model: String,
    #[serde(flatten)]
    held: Held,
    threads: usize,
    load_seconds: f64,
    /// Most memory the process ever held, MB; null where the system does not tell.
    peak_memory_mb: Option<f64>,
    runs: Vec<R>,
}

#[derive(Serialize)]
struct GenerateRun {
    batch: usize,
    /// Adapters that the prompts had in turn; a batch of fewer prompts has as many.
    adapters: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// Prompt tokens in a second, until every response has its first token.
    prefill_tokens_per_s: f64,
    /// Tokens after the first in a second, all responses together; null where they took too little time to tell.
    decode_tokens_per_s: Option<f64>,
    /// New tokens in a second, the prompts' reading included.
    tokens_per_s: f64,
}

#[derive(Serialize)]
struct TrainRun {
    batch: usize,
    seq: usize,
    steps: usize,
    rank: usize,
    recompute: bool,
    /// By the median step.
    tokens_per_s: f64,
    /// By the fastest step.
    tokens_per_s_best: f64,
}

/// `bench`.
pub(super) fn bench(arguments: &Bench, output: &Output) -> Result<Exit> {
    match arguments {
        Bench::Generate(arguments) => generate(arguments, output),
        Bench::Train(arguments) => train(arguments, output),
        Bench::Kernels(arguments) => kernels::kernels(arguments, output),
    }
}

fn generate(arguments: &BenchGenerate, output: &Output) -> Result<Exit> {
    let Opened {
        model,
        adapters,
        load_seconds,
        threads,
    } = open(&arguments.model, &adapters_of(&arguments.adapters)?, output)?;
    let (prompt_tokens, new_tokens) = (arguments.prompt_tokens as usize, arguments.new_tokens as usize);
    let context_len = model.config().context_len;
    if prompt_tokens + new_tokens > context_len {
        return Err(Error::Usage(format!(
            "{prompt_tokens} and {new_tokens} tokens do not fit into the context of {context_len}; lower --prompt-tokens or \
             --new-tokens"
        )));
    }
    let mut runs = Vec::new();
    for &batch in &arguments.batch {
        output.line(&format!(
            "batch {batch}: {prompt_tokens} prompt tokens, {new_tokens} new ones"
        ));
        let sizes = GenerateSizes {
            batch: batch as usize,
            prompt_tokens,
            new_tokens,
        };
        let times = time_generation(&model, &adapters, sizes)?;
        let (prefill, decode) = (times.prefill.as_secs_f64(), times.decode.as_secs_f64());
        runs.push(GenerateRun {
            batch: sizes.batch,
            adapters: adapters.len().min(sizes.batch),
            prompt_tokens,
            new_tokens,
            prefill_tokens_per_s: (sizes.batch * prompt_tokens) as f64 / prefill,
            decode_tokens_per_s: (decode > 0.0).then(|| (sizes.batch * (new_tokens - 1)) as f64 / decode),
            tokens_per_s: (sizes.batch * new_tokens) as f64 / (prefill + decode),
        });
    }
    let measured = Measured {
        model: arguments.model.model.model.clone(),
        held: Held::from(&arguments.model.model),
        threads,
        load_seconds,
        peak_memory_mb: peak_memory_mb(),
        runs,
    };
    output.result(&measured, || {
        let mut lines = vec![measured.heading()];
        lines.extend(measured.runs.iter().map(|run| {
            let adapters = match run.adapters {
                0 | 1 => String::new(),
                n => format!("   {n} adapters"),
            };
            format!(
                "batch {:>3}   prefill {:>8.1} tokens/s   decode {:>8.1} tokens/s   together {:>8.1} tokens/s{adapters}",
                run.batch,
                run.prefill_tokens_per_s,
                run.decode_tokens_per_s.unwrap_or(f64::NAN),
                run.tokens_per_s
            )
        }));
        lines.join("\n")
    })?;
    Ok(Exit::Ok)
}

fn train(arguments: &BenchTrain, output: &Output) -> Result<Exit> {
    let compute = arguments.model.model.compute;
    if compute != compute.for_training() {
        return Err(Error::Usage(format!(
            "{compute} is for reading and answering, models are trained with {}; leave --compute away",
            compute.for_training()
        )));
    }
    let Opened {
        model,
        load_seconds,
        threads,
        ..
    } = open(&arguments.model, &[], output)?;
    let sizes = TrainSizes {
        batch: arguments.batch as usize,
        seq: arguments.seq as usize,
        steps: arguments.steps,
        lora: LoraConfig {
            rank: arguments.rank as usize,
            alpha: 2.0 * arguments.rank as f32,
            ..LoraConfig::default()
        },
        recompute: arguments.recompute,
    };
    if sizes.seq > model.config().context_len {
        return Err(Error::Usage(format!(
            "rows of {} tokens do not fit into the context of {}; lower --seq",
            sizes.seq,
            model.config().context_len
        )));
    }
    output.line(&format!(
        "{} steps of {} rows of {} tokens",
        sizes.steps, sizes.batch, sizes.seq
    ));
    let mut times = time_training(&model, &sizes)?;
    times.sort_unstable();
    let rate = |at: usize| {
        let seconds = times.get(at).map_or(f64::NAN, |time| time.as_secs_f64());
        (sizes.batch * sizes.seq) as f64 / seconds
    };
    let run = TrainRun {
        batch: sizes.batch,
        seq: sizes.seq,
        steps: times.len(),
        rank: sizes.lora.rank,
        recompute: sizes.recompute,
        tokens_per_s: rate(times.len() / 2),
        tokens_per_s_best: rate(0),
    };
    let measured = Measured {
        model: arguments.model.model.model.clone(),
        held: Held::from(&arguments.model.model),
        threads,
        load_seconds,
        peak_memory_mb: peak_memory_mb(),
        runs: vec![run],
    };
    output.result(&measured, || {
        let mut lines = vec![measured.heading()];
        lines.extend(measured.runs.iter().map(|run| {
            format!(
                "training {:.1} tokens/s (best step {:.1}), rank {}",
                run.tokens_per_s, run.tokens_per_s_best, run.rank
            )
        }));
        lines.join("\n")
    })?;
    Ok(Exit::Ok)
}

impl<R> Measured<R> {
    fn heading(&self) -> String {
        let memory = match self.peak_memory_mb {
            Some(mb) => format!("{mb:.0} MB at most"),
            None => "memory unknown on this system".to_owned(),
        };
        format!(
            "{}, {}, {} threads, loaded in {:.2} s, {memory}",
            self.model, self.held, self.threads, self.load_seconds
        )
    }
}

struct Opened {
    model: LocalModel,
    adapters: Vec<llamaduo_engine::Adapter>,
    load_seconds: f64,
    threads: usize,
}

/// The adapters that are named; none where that is what is named.
fn adapters_of(named: &[AdapterChoice]) -> Result<Vec<&Path>> {
    let directories: Vec<&Path> = named.iter().filter_map(AdapterChoice::directory).collect();
    match directories.is_empty() || directories.len() == named.len() {
        true => Ok(directories),
        false => Err(Error::Usage(
            "--adapter none stands beside others, but the prompts of a batch all have an adapter or all have none; measure the \
             base in a run of its own"
                .to_owned(),
        )),
    }
}

fn open(arguments: &BenchModel, adapters: &[&Path], output: &Output) -> Result<Opened> {
    let threads = arguments.threads.map(|n| n as usize);
    let (begun, (model, adapters)) = match arguments.random_weights {
        true => {
            let files = ModelFiles::with_random_weights(Path::new(&arguments.model.model))?;
            let begun = Instant::now();
            let options = model::load_options(&arguments.model, threads);
            (begun, (LocalModel::open(files, &options)?, Vec::new()))
        }
        false => {
            let path = local_model::find(&arguments.model, adapters, output)?;
            let begun = Instant::now();
            (
                begun,
                local_model::load(&path, &arguments.model, adapters, threads, output)?,
            )
        }
    };
    Ok(Opened {
        load_seconds: begun.elapsed().as_secs_f64(),
        threads: model.n_threads(),
        model,
        adapters,
    })
}

/// `VmHWM` of this process, where there is a /proc.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
