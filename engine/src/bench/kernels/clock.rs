//! Repeats an operation and keeps what it took.
//!
//! Invariant: nothing is timed before each of its sets of buffers was used once.

use std::collections::BTreeMap;
use std::time::Instant;

use llamaduo_kernels::Cuda;

use super::{KernelSizes, KernelTime, Work};
use crate::error::{Error, Result};

/// Times the cache that the sets of an operation take together, so that none of it survives a round.
const CACHES: usize = 4;
/// Most sets: the smallest weights of large models need so many on cards of today.
const SETS_MAX: usize = 32;
/// Of one sample, at least: the card's clock ticks in half microseconds.
const SAMPLE_SECONDS: f64 = 1e-3;
/// Runs of one sample, at most.
const RUNS_MAX: usize = 256;
/// Samples, however long they take.
const SAMPLES_MIN: usize = 3;
/// More change no median.
const SAMPLES_MAX: usize = 100;

/// Measures on one card.
pub(super) struct Clock<'a> {
    cuda: &'a Cuda,
    cache_bytes: usize,
    sizes: &'a KernelSizes,
    tell: &'a mut dyn FnMut(&KernelTime),
    pub(super) found: Vec<KernelTime>,
}

impl<'a> Clock<'a> {
    pub(super) fn new(
        cuda: &'a Cuda,
        sizes: &'a KernelSizes,
        tell: &'a mut dyn FnMut(&KernelTime),
    ) -> Result<Self> {
        Ok(Self {
            cuda,
            cache_bytes: cuda.cache_bytes()?,
            sizes,
            tell,
            found: Vec::new(),
        })
    }

    /// Whether the operation is among those asked for.
    pub(super) fn wants(&self, op: &str) -> bool {
        self.sizes.only.is_empty() || self.sizes.only.iter().any(|name| name == op)
    }

    /// How many sets of `bytes` the cache cannot hold.
    pub(super) fn n_sets(&self, bytes: usize) -> usize {
        (CACHES * self.cache_bytes / bytes.max(1) + 1).clamp(2, SETS_MAX)
    }

    /// Times `run`, which enqueues the work once on the set of that number. `replayable` says that it should do nothing but
    /// launch; what cannot be recorded all the same is timed as it is.
    pub(super) fn measure(
        &mut self,
        work: Work,
        replayable: bool,
        n_sets: usize,
        run: &mut dyn FnMut(usize) -> llamaduo_kernels::Result<()>,
    ) {
        if !self.wants(work.op) {
            return;
        }
        let sampled = self.sample(replayable, n_sets, run);
        let (mut samples, replayed, error) = match sampled {
            Ok((samples, replayed)) => (samples, replayed, None),
            Err(error) => (Vec::new(), false, Some(chain(&error))),
        };
        samples.sort_unstable_by(f64::total_cmp);
        let time = KernelTime {
            op: work.op,
            dims: work.dims,
            flops: work.flops,
            bytes: work.bytes,
            seconds: samples.get(samples.len() / 2).copied(),
            seconds_best: samples.first().copied(),
            n_samples: samples.len(),
            replayed,
            error,
        };
        (self.tell)(&time);
        self.found.push(time);
    }

    /// Notes that an operation, and those that share its buffers, could not be prepared.
    pub(super) fn failed(&mut self, op: &'static str, error: &Error) {
        let time = KernelTime {
            op,
            dims: BTreeMap::new(),
            flops: 0.0,
            bytes: 0.0,
            seconds: None,
            seconds_best: None,
            n_samples: 0,
            replayed: false,
            error: Some(chain(error)),
        };
        (self.tell)(&time);
        self.found.push(time);
    }

    /// Seconds of a run, by sample, and whether they are of recordings.
    fn sample(
        &self,
        replayable: bool,
        n_sets: usize,
        run: &mut dyn FnMut(usize) -> llamaduo_kernels::Result<()>,
    ) -> Result<(Vec<f64>, bool)> {
        let cuda = self.cuda;
        for set in 0..n_sets {
            run(set)?;
        }
        let once = cuda.time(|| run(0))?.max(1e-7);
        let n_runs = ((SAMPLE_SECONDS / once) as usize).clamp(1, RUNS_MAX);
        if replayable {
            // a recording always begins at the first set, so it must hold a whole round
            let n_runs = n_runs.max(n_sets);
            let mut round = || (0..n_runs).try_for_each(|index| run(index % n_sets));
            if let Ok(recorded) = cuda.record(&mut round) {
                cuda.time(|| cuda.replay(&recorded))?;
                let samples = self.samples(n_runs, || cuda.time(|| cuda.replay(&recorded)))?;
                return Ok((samples, true));
            }
        }
        let mut next = 0;
        let samples = self.samples(n_runs, || {
            cuda.time(|| {
                (0..n_runs).try_for_each(|_| {
                    next = (next + 1) % n_sets;
                    run(next)
                })
            })
        })?;
        Ok((samples, false))
    }

    fn samples(
        &self,
        n_runs: usize,
        mut time: impl FnMut() -> llamaduo_kernels::Result<f64>,
    ) -> Result<Vec<f64>> {
        let begun = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < SAMPLES_MIN
            || samples.len() < SAMPLES_MAX && begun.elapsed().as_secs_f64() < self.sizes.seconds_each
        {
            samples.push(time()? / n_runs as f64);
        }
        Ok(samples)
    }
}

/// An error with its causes, in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}
