//! `bench kernels`: how fast a card computes each operation at a model's shapes, or what it computes.
//!
//! Invariant: a card is never replaced by the CPU: what is not measured on it has no figure.

use std::path::{Path, PathBuf};

use llamaduo_engine::ModelConfig;
use llamaduo_engine::bench::accuracy::{AccuracySizes, save_operations};
use llamaduo_engine::bench::kernels::{KernelSizes, KernelTime, time_kernels};
use llamaduo_kernels::cuda::DeviceInfo;
use llamaduo_kernels::{Cuda, Device};
use serde::Serialize;

use crate::args::BenchKernels;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::output::Output;

#[derive(Serialize)]
struct Card {
    device: String,
    name: String,
    compute_capability: String,
    memory_bytes: usize,
    multiprocessors: usize,
    cache_bytes: usize,
    driver_cuda: String,
    kernels_load_seconds: f64,
}

#[derive(Serialize)]
struct Timed {
    card: Card,
    model: PathBuf,
    kernels: Vec<KernelTime>,
}

#[derive(Serialize)]
struct Saved {
    card: Card,
    model: PathBuf,
    files: Vec<PathBuf>,
}

/// `bench kernels`.
pub(super) fn kernels(arguments: &BenchKernels, output: &Output) -> Result<Exit> {
    let Device::Cuda(ordinal) = arguments.device else {
        return Err(Error::Usage(
            "bench kernels measures a card; name one by --device cuda:N (`llamaduo doctor` lists them)"
                .to_owned(),
        ));
    };
    let config = ModelConfig::from_json_file(&arguments.model.join("config.json"))?;
    let cuda = Cuda::new(ordinal)?;
    let card = describe(&cuda, arguments.device)?;
    output.line(&format!("{} ({})", card.name, card.device));
    match &arguments.save {
        None => time(arguments, &cuda, card, &config, output)?,
        Some(directory) => save(arguments, directory, &cuda, card, &config, output)?,
    }
    Ok(Exit::Ok)
}

fn describe(cuda: &Cuda, device: Device) -> Result<Card> {
    let DeviceInfo {
        name,
        capability,
        memory_bytes,
        n_multiprocessors,
        cuda_version,
        ..
    } = cuda.info().clone();
    Ok(Card {
        device: device.to_string(),
        name,
        compute_capability: format!("{}.{}", capability.0, capability.1),
        memory_bytes,
        multiprocessors: n_multiprocessors,
        cache_bytes: cuda.cache_bytes().map_err(llamaduo_engine::Error::from)?,
        driver_cuda: format!("{}.{}", cuda_version / 1000, cuda_version % 1000 / 10),
        kernels_load_seconds: cuda.load_time().as_secs_f64(),
    })
}

fn time(
    arguments: &BenchKernels,
    cuda: &Cuda,
    card: Card,
    config: &ModelConfig,
    output: &Output,
) -> Result<()> {
    let sizes = KernelSizes {
        rows: arguments.rows.iter().map(|&rows| rows as usize).collect(),
        tokens: arguments.tokens as usize,
        documents: arguments.documents as usize,
        sequences: arguments.sequences as usize,
        rank: arguments.rank as usize,
        copied: (arguments.copy_kib as usize) << 9,
        seconds_each: f64::from(arguments.milliseconds) / 1e3,
        only: arguments.only.clone(),
    };
    let mut tell = |time: &KernelTime| output.line(&in_words(time));
    let timed = Timed {
        card,
        model: arguments.model.clone(),
        kernels: time_kernels(cuda, config, &sizes, &mut tell)?,
    };
    let text = || timed.kernels.iter().map(in_words).collect::<Vec<_>>().join("\n");
    Ok(output.result(&timed, text)?)
}

fn save(
    arguments: &BenchKernels,
    directory: &Path,
    cuda: &Cuda,
    card: Card,
    config: &ModelConfig,
    output: &Output,
) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let sizes = AccuracySizes {
        rows: arguments.rows.first().map_or(1, |&rows| rows as usize),
        tokens: arguments.tokens as usize,
        sequences: arguments.sequences as usize,
        rank: arguments.rank as usize,
        // a quarter of a gigabyte for the widest of models, and sums of another kind than a linear's
        vocab_max: 8192,
    };
    let saved = Saved {
        card,
        model: arguments.model.clone(),
        files: save_operations(cuda, config, sizes, directory)?,
    };
    let text = || {
        let files = saved.files.iter().map(|path| path.display().to_string());
        files.collect::<Vec<_>>().join("\n")
    };
    Ok(output.result(&saved, text)?)
}

/// A line for people: microseconds, and the rate of what bounds it.
fn in_words(time: &KernelTime) -> String {
    let dims: Vec<String> = time
        .dims
        .iter()
        .map(|(name, size)| format!("{name} {size}"))
        .collect();
    let name = format!("{} {}", time.op, dims.join(", "));
    match (time.seconds, &time.error) {
        (Some(seconds), _) => format!(
            "{name:<58} {:>11.1} µs {:>8.1} GB/s {:>8.2} TFLOP/s",
            seconds * 1e6,
            time.bytes / seconds / 1e9,
            time.flops / seconds / 1e12
        ),
        (None, Some(error)) => format!("{name:<58} failed: {error}"),
        (None, None) => name,
    }
}
