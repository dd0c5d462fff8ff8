//! What a card computes, on disk beside what it was given, so that another program can say how exact it is: what
//! `llamaduo bench kernels --save` writes.
//!
//! Invariant: inputs are written as the card has them (activations after their rounding to bf16, NF4 weights as the
//! values that their codes stand for), so that an error is the operation's alone.

mod attention;
mod products;
mod rows;

use std::path::{Path, PathBuf};

use half::bf16;
use llamaduo_kernels::cuda::{CudaAct, CudaF32};
use llamaduo_kernels::{Cuda, random};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::safetensors::{Named, serialize_with_metadata};

/// Sets these numbers apart from the other random streams.
const INPUT_STREAM: u64 = 9;

/// Sizes that are not the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccuracySizes {
    /// Rows of the products and of what goes over rows.
    pub rows: usize,
    /// Tokens of the document that attention is over.
    pub tokens: usize,
    /// Sequences of a decoding step.
    pub sequences: usize,
    /// Rank of the LoRA pairs.
    pub rank: usize,
    /// Most rows of the head that logits and losses are made of.
    pub vocab_max: usize,
}

/// Runs every operation once at the widths of `config` and writes a file of tensors for each, whose names it gives
/// back. Their metadata names the operation and its settings.
///
/// Fails when an operation does, or a file cannot be written.
pub fn save_operations(
    cuda: &Cuda,
    config: &ModelConfig,
    sizes: AccuracySizes,
    directory: &Path,
) -> Result<Vec<PathBuf>> {
    let mut saver = Saver {
        cuda,
        config,
        sizes,
        directory,
        n_drawn: 0,
        written: Vec::new(),
    };
    saver.products()?;
    saver.pairs()?;
    saver.head()?;
    saver.attention()?;
    saver.attention_paged()?;
    saver.rows()?;
    saver.optimizer()?;
    Ok(saver.written)
}

struct Saver<'a> {
    cuda: &'a Cuda,
    config: &'a ModelConfig,
    sizes: AccuracySizes,
    directory: &'a Path,
    n_drawn: u64,
    written: Vec<PathBuf>,
}

/// A tensor to be written.
type Tensor<'a> = (&'a str, Vec<usize>, &'a [f32]);

impl Saver<'_> {
    /// `len` numbers in (-2, 2), mostly small, never the same twice.
    fn numbers(&mut self, len: usize) -> Vec<f32> {
        self.n_drawn += 1;
        let key = random::key(&[INPUT_STREAM, self.n_drawn]);
        let pair = |i: u64| {
            let [a, b, ..] = random::block(key, i);
            2.0 * (random::uniform_of(a) + random::uniform_of(b)) - 2.0
        };
        (0..len as u64).map(pair).collect()
    }

    /// The same as activations: on the host and on the card.
    fn acts(&mut self, len: usize) -> Result<(Vec<f32>, CudaAct)> {
        let rounded = self.numbers(len).into_iter().map(bf16::from_f32);
        let values: Vec<f32> = rounded.map(bf16::to_f32).collect();
        let on_card = self.cuda.upload_act(&values)?;
        Ok((values, on_card))
    }

    fn read_act(&self, source: &CudaAct, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.cuda.read_act(source, 0, &mut values)?;
        Ok(values)
    }

    fn read_f32(&self, source: &CudaF32, len: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; len];
        self.cuda.read_f32(source, 0, &mut values)?;
        Ok(values)
    }

    /// Writes an operation's file. The names of results begin with `out.`.
    fn save(&mut self, op: &str, settings: &[(&str, String)], tensors: &[Tensor<'_>]) -> Result<()> {
        let named: Vec<Named<'_>> = tensors
            .iter()
            .map(|(name, shape, values)| Named { name, shape, values })
            .collect();
        let mut metadata = vec![("op", op)];
        metadata.extend(settings.iter().map(|(key, value)| (*key, value.as_str())));
        let path = self.directory.join(format!("{op}.safetensors"));
        let written = std::fs::write(&path, serialize_with_metadata(&named, &metadata));
        written.map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
        self.written.push(path);
        Ok(())
    }
}
