//! Weights made up at a model's true shapes: what it costs to compute with a model can be measured without its files.
//!
//! Invariant: the same description gives the same values. Matrices are windows of one run of random numbers, so that
//! a model takes the memory of its largest matrix, whatever its size.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use llamaduo_kernels::{Format, SharedBytes, random};

use super::{LayerTensor, Stored, TensorName};
use crate::config::ModelConfig;

/// Sets these numbers apart from the other random streams.
const WEIGHT_STREAM: u64 = 7;
/// Places at which a matrix may begin in the run, so that the matrices of a model differ.
const N_PLACES: usize = 1 << 16;
/// Magnitudes are below this: a standard deviation of 0.02, with which these families are initialized.
const LARGEST: f32 = 0.035;

/// The run, and where the description of the model is.
pub(super) struct RandomWeights {
    path: PathBuf,
    /// bf16.
    run: SharedBytes,
}

impl fmt::Debug for RandomWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RandomWeights of {}", self.path.display())
    }
}

impl RandomWeights {
    /// Weights for the model that `path` describes.
    pub(super) fn new(path: &Path, config: &ModelConfig) -> Self {
        let len_of = |name: TensorName| name.shape(config).iter().product();
        let largest: usize = TensorName::all(config).into_iter().map(len_of).max().unwrap_or(0);
        let n_values = largest + N_PLACES;
        let key = random::key(&[WEIGHT_STREAM]);
        let mut run = Vec::with_capacity(2 * n_values.next_multiple_of(8));
        for counter in 0..n_values.div_ceil(8) as u64 {
            for word in random::block(key, counter) {
                for half in [word as u16, (word >> 16) as u16] {
                    let value = f32::from(half as i16) * (LARGEST / 32768.0);
                    run.extend_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
        }
        Self {
            path: path.to_owned(),
            run: Arc::new(run),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor: a window of the run for a matrix, for a norm what leaves its input's size as it is, for a bias zeros.
    pub(super) fn stored(&self, name: TensorName, config: &ModelConfig) -> Stored {
        let shape = name.shape(config);
        let constant = match name {
            TensorName::Embedding | TensorName::Head => None,
            TensorName::FinalNorm => Some(1.0 - config.norm_weight_offset),
            TensorName::Layer(_, tensor) => match tensor {
                LayerTensor::QueryBias | LayerTensor::KeyBias | LayerTensor::ValueBias => Some(0.0),
                LayerTensor::Query
                | LayerTensor::Key
                | LayerTensor::Value
                | LayerTensor::Output
                | LayerTensor::Gate
                | LayerTensor::Up
                | LayerTensor::Down => None,
                _ => Some(1.0 - config.norm_weight_offset),
            },
        };
        let (bytes, offset): (SharedBytes, usize) = match constant {
            Some(value) => {
                let bytes = bf16::from_f32(value).to_le_bytes();
                (Arc::new(bytes.repeat(shape.iter().product())), 0)
            }
            None => (Arc::clone(&self.run), 2 * place(name)),
        };
        Stored {
            spelling: name.hugging_face(),
            path: self.path.clone(),
            shape,
            format: Format::Bf16,
            bytes,
            offset,
        }
    }
}

/// Where in the run a matrix begins.
fn place(name: TensorName) -> usize {
    let key = match name {
        TensorName::Embedding => random::key(&[0]),
        TensorName::FinalNorm => random::key(&[1]),
        TensorName::Head => random::key(&[2]),
        TensorName::Layer(layer, tensor) => random::key(&[3, layer as u64, tensor as u64]),
    };
    key as usize % N_PLACES
}
