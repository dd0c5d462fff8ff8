//! How fast a card computes each operation at a model's shapes: what `llamaduo bench kernels` measures.
//!
//! Invariant: times are the card's own and medians after a warm-up; buffers that a model would read from memory take
//! turns, so that none of them is still in the cache.

mod attention;
mod clock;
mod products;
mod rows;

use std::collections::BTreeMap;

use llamaduo_kernels::cuda::CudaAct;
use llamaduo_kernels::{Cuda, random};
use serde::Serialize;

use crate::config::ModelConfig;
use crate::error::Result;
use clock::Clock;

/// Sets these numbers apart from the other random streams.
const INPUT_STREAM: u64 = 8;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelSizes {
    /// Rows of the products, one measurement for each.
    pub rows: Vec<usize>,
    /// Tokens of a document in training's operations.
    pub tokens: usize,
    /// Documents of a step of them.
    pub documents: usize,
    /// Sequences of a decoding step, each with a context of `tokens`.
    pub sequences: usize,
    /// Rank of the LoRA pairs.
    pub rank: usize,
    /// Elements of the copy that shows what the memory gives.
    pub copied: usize,
    /// Seconds of the card for each measurement, about.
    pub seconds_each: f64,
    /// Only the operations of these names; all where there is none.
    pub only: Vec<String>,
}

/// What was found of one operation at one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name among the backend's operations.
    pub op: &'static str,
    /// Its dimensions by their letters.
    pub dims: BTreeMap<&'static str, usize>,
    /// Floating-point operations, a multiply-add as two.
    pub flops: f64,
    /// Bytes that it has to read and write, each once.
    pub bytes: f64,
    /// The median; null where it failed.
    pub seconds: Option<f64>,
    /// The fastest.
    pub seconds_best: Option<f64>,
    /// Measurements that the median is of.
    pub n_samples: usize,
    /// Whether launches were recorded and run again together, so that the host's share is out of the time.
    pub replayed: bool,
    /// Why there is no time.
    pub error: Option<String>,
}

/// Times every operation at the shapes of `config`, and tells of each as it is done. One that fails, or for whose
/// buffers the card has no room, is told of, and the others go on.
///
/// Fails when the card does not answer.
pub fn time_kernels(
    cuda: &Cuda,
    config: &ModelConfig,
    sizes: &KernelSizes,
    tell: &mut dyn FnMut(&KernelTime),
) -> Result<Vec<KernelTime>> {
    let mut clock = Clock::new(cuda, sizes, tell)?;
    let bench = Bench { cuda, config, sizes };
    let groups: [(&'static str, Group<'_>); 9] = [
        ("copy_act", Bench::copy),
        ("linears", Bench::products),
        ("linears_lora", Bench::pairs),
        ("logits", Bench::head),
        ("attention", Bench::attention),
        ("attention_paged", Bench::attention_paged),
        ("rms_norm", Bench::norms),
        ("gated", Bench::pointwise),
        ("adamw", Bench::optimizer),
    ];
    for (first, group) in groups {
        if let Err(error) = group(&bench, &mut clock) {
            clock.failed(first, &error);
        }
    }
    Ok(clock.found)
}

/// Operations that share buffers.
type Group<'b> = fn(&Bench<'b>, &mut Clock<'_>) -> Result<()>;

/// What all measurements share.
struct Bench<'a> {
    cuda: &'a Cuda,
    config: &'a ModelConfig,
    sizes: &'a KernelSizes,
}

impl Bench<'_> {
    /// Rows of a step of training.
    fn m(&self) -> usize {
        self.sizes.tokens * self.sizes.documents
    }

    /// `n` buffers of `len` random activations.
    fn acts(&self, n: usize, len: usize) -> Result<Vec<CudaAct>> {
        let values = values(len);
        (0..n).map(|_| Ok(self.cuda.upload_act(&values)?)).collect()
    }

    /// `n` buffers of `len` zeros.
    fn outs(&self, n: usize, len: usize) -> Result<Vec<CudaAct>> {
        (0..n).map(|_| Ok(self.cuda.alloc_act(len)?)).collect()
    }

    /// Memory to memory: what anything that moves data can be compared with.
    fn copy(&self, clock: &mut Clock<'_>) -> Result<()> {
        let len = self.sizes.copied;
        let n_sets = clock.n_sets(4 * len);
        if !clock.wants("copy_act") {
            return Ok(());
        }
        let (from, mut to) = (self.acts(n_sets, len)?, self.outs(n_sets, len)?);
        let work = Work {
            op: "copy_act",
            dims: dims([("len", len)]),
            flops: 0.0,
            bytes: 4.0 * len as f64,
        };
        clock.measure(work, false, n_sets, &mut |set| {
            self.cuda.copy_act(&mut to[set], &from[set], len)
        });
        Ok(())
    }
}

/// An operation at one shape, and what it costs at least.
struct Work {
    op: &'static str,
    dims: BTreeMap<&'static str, usize>,
    flops: f64,
    bytes: f64,
}

fn dims<const N: usize>(pairs: [(&'static str, usize); N]) -> BTreeMap<&'static str, usize> {
    pairs.into_iter().collect()
}

/// The product of sizes as a float: counts of operations exceed no integer then.
fn count<const N: usize>(sizes: [usize; N]) -> f64 {
    sizes.into_iter().map(|size| size as f64).product()
}

/// `len` random numbers in (-1, 1) of 16 bits.
fn values(len: usize) -> Vec<f32> {
    let key = random::key(&[INPUT_STREAM, len as u64]);
    let mut values = Vec::with_capacity(len.next_multiple_of(8));
    for counter in 0..len.div_ceil(8) as u64 {
        for word in random::block(key, counter) {
            let halves = [word as u16 as i16, (word >> 16) as u16 as i16];
            values.extend(halves.map(|half| f32::from(half) / 32768.0));
        }
    }
    values.truncate(len);
    values
}
