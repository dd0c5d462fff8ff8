//! The tensors of a base checkpoint, by what they are for and not by how a file spells them.
//!
//! Invariant: what is handed out has the shape that the model's description demands; nothing is copied unless its
//! rows have to move.

mod name;
mod nf4;
mod random;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamaduo_kernels::{Format, HostWeight};

use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::safetensors::Shards;

use name::Place;
pub use name::{LayerTensor, TensorName};
use random::RandomWeights;

/// A base checkpoint's tensors.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    source: Source,
}

/// Where tensors lie.
#[derive(Debug)]
enum Source {
    Gguf(GgufFile),
    Safetensors(Shards, Place),
    Random(RandomWeights),
}

/// A tensor as its file holds it.
struct Stored {
    spelling: String,
    path: PathBuf,
    /// Outermost first.
    shape: Vec<usize>,
    format: Format,
    bytes: llamaduo_kernels::SharedBytes,
    offset: usize,
}

impl Weights {
    pub(crate) fn from_gguf(file: GgufFile, config: ModelConfig) -> Self {
        Self {
            config,
            source: Source::Gguf(file),
        }
    }

    pub(crate) fn from_safetensors(shards: Shards, config: ModelConfig) -> Self {
        let holds = |place: &Place| shards.tensor(&place.spell(TensorName::Embedding)).is_ok();
        let place = Place::ALL.into_iter().find(holds).unwrap_or(Place::Alone);
        Self {
            config,
            source: Source::Safetensors(shards, place),
        }
    }

    /// Made up, for the model that `directory` describes.
    pub(crate) fn random(directory: &Path, config: ModelConfig) -> Self {
        let source = Source::Random(RandomWeights::new(directory, &config));
        Self { config, source }
    }

    /// The file, or the directory of several.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Gguf(file) => file.path(),
            Source::Safetensors(shards, _) => shards.path(),
            Source::Random(weights) => weights.path(),
        }
    }

    /// The GGUF file that the tensors come from; `None` for a checkpoint of safetensors.
    pub(crate) fn gguf(&self) -> Option<&GgufFile> {
        match &self.source {
            Source::Gguf(file) => Some(file),
            Source::Safetensors(..) | Source::Random(_) => None,
        }
    }

    /// A matrix `[N, K]` in the file's own format, bitsandbytes' NF4 among them. The head of a model with a tied head is its embedding.
    ///
    /// Fails when the tensor is missing, is no matrix of the shape the model demands, or is stored in a format that
    /// cannot be read.
    pub fn matrix(&self, name: TensorName) -> Result<HostWeight> {
        let name = if name == TensorName::Head && self.config.tied_head {
            TensorName::Embedding
        } else {
            name
        };
        if let Source::Safetensors(shards, place) = &self.source
            && let Some(matrix) = nf4::read(shards, &place.spell(name), name.shape(&self.config))?
        {
            return Ok(HostWeight::Nf4(matrix));
        }
        let stored = self.stored(name)?;
        let [n, k] = stored.shape[..] else {
            return Err(stored.misshaped(name.shape(&self.config)));
        };
        let weight = HostWeight::blocks(n, k, stored.format, Arc::clone(&stored.bytes), stored.offset)?;
        match self.interleaved_heads(name) {
            None => Ok(weight),
            Some(n_heads) => {
                let row_bytes = stored.format.bytes_for(k).unwrap_or(0);
                let rows = stored.slice(row_bytes * n)?;
                let rows = deinterleave_heads(rows, row_bytes, n_heads, self.config.heads.head_dim);
                stored.bytes.release(stored.offset..stored.offset + row_bytes * n);
                Ok(HostWeight::blocks(n, k, stored.format, Arc::new(rows), 0)?)
            }
        }
    }

    /// A vector (norm weight or bias) as 32-bit floats.
    ///
    /// Fails when the tensor is missing, has another length than the model demands, or is not of floats.
    pub fn vector(&self, name: TensorName) -> Result<Vec<f32>> {
        let stored = self.stored(name)?;
        let len: usize = stored.shape.iter().product();
        let Some(size) = stored
            .format
            .bytes_for(len)
            .filter(|_| stored.format.block_len() == 1)
        else {
            return Err(Error::TensorFormat {
                path: stored.path,
                tensor: stored.spelling,
                found: format!("{:?}", stored.format),
                supported: "F32, F16 and BF16",
            });
        };
        let values = floats(stored.slice(size)?, stored.format);
        Ok(match self.interleaved_heads(name) {
            None => values,
            Some(n_heads) => deinterleave_heads(&values, 1, n_heads, self.config.heads.head_dim),
        })
    }

    /// Finds a tensor and holds it to the shape its name demands.
    fn stored(&self, name: TensorName) -> Result<Stored> {
        let stored = match &self.source {
            Source::Gguf(file) => {
                let spelling = name.gguf();
                let tensor = file.tensor(&spelling)?;
                Stored {
                    shape: tensor.shape.clone(),
                    format: file.format(&spelling, tensor)?,
                    bytes: file.bytes(),
                    offset: tensor.offset,
                    path: file.path().to_owned(),
                    spelling,
                }
            }
            Source::Safetensors(shards, place) => {
                let spelling = place.spell(name);
                let (file, tensor) = shards.tensor(&spelling)?;
                Stored {
                    shape: tensor.shape.clone(),
                    format: file.format(&spelling, tensor)?,
                    bytes: file.bytes(),
                    offset: tensor.range.start,
                    path: file.path().to_owned(),
                    spelling,
                }
            }
            Source::Random(weights) => weights.stored(name, &self.config),
        };
        let expected = name.shape(&self.config);
        if stored.shape == expected {
            Ok(stored)
        } else {
            Err(stored.misshaped(expected))
        }
    }

    /// Heads of a projection whose rows llama.cpp interleaved for its own rotation, which pairs neighbours.
    fn interleaved_heads(&self, name: TensorName) -> Option<usize> {
        let TensorName::Layer(_, tensor) = name else {
            return None;
        };
        let is_permuted = matches!(self.source, Source::Gguf(_))
            && matches!(self.config.family, Family::Llama | Family::Mistral);
        match tensor {
            LayerTensor::Query | LayerTensor::QueryBias if is_permuted => Some(self.config.heads.n_heads),
            LayerTensor::Key | LayerTensor::KeyBias if is_permuted => Some(self.config.heads.n_kv_heads),
            _ => None,
        }
    }
}

impl Stored {
    fn slice(&self, size: usize) -> Result<&[u8]> {
        let all: &[u8] = (*self.bytes).as_ref();
        let end = self.offset.checked_add(size);
        end.and_then(|end| all.get(self.offset..end))
            .ok_or_else(|| Error::Damaged {
                path: self.path.clone(),
                found: format!(
                    "tensor `{}` reaches beyond the file's {} bytes",
                    self.spelling,
                    all.len()
                ),
            })
    }

    fn misshaped(self, expected: Vec<usize>) -> Error {
        Error::TensorShape {
            path: self.path,
            tensor: self.spelling,
            expected,
            found: self.shape,
        }
    }
}

/// Undoes llama.cpp's order of a head's rows `0, D/2, 1, D/2 + 1, …`: row `i` again pairs with row `i + D/2`.
fn deinterleave_heads<T: Copy>(rows: &[T], row_len: usize, n_heads: usize, head_dim: usize) -> Vec<T> {
    let mut ordered = Vec::with_capacity(rows.len());
    for head in 0..n_heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + half;
                ordered.extend_from_slice(&rows[row * row_len..(row + 1) * row_len]);
            }
        }
    }
    ordered
}

/// llama.cpp's order of a head's rows, the inverse of [`deinterleave_heads`].
pub(crate) fn interleave_heads<T: Copy>(
    rows: &[T],
    row_len: usize,
    n_heads: usize,
    head_dim: usize,
) -> Vec<T> {
    let mut ordered = Vec::with_capacity(rows.len());
    for head in 0..n_heads {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = head * head_dim + half * (head_dim / 2) + pair;
                ordered.extend_from_slice(&rows[row * row_len..(row + 1) * row_len]);
            }
        }
    }
    ordered
}

/// Little-endian floats of one of the three plain formats.
pub(crate) fn floats(bytes: &[u8], format: Format) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match format {
        Format::F16 => pairs()
            .map(|&pair| half::f16::from_le_bytes(pair).to_f32())
            .collect(),
        Format::Bf16 => pairs()
            .map(|&pair| half::bf16::from_le_bytes(pair).to_f32())
            .collect(),
        _ => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&four| f32::from_le_bytes(four))
            .collect(),
    }
}
