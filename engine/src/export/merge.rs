//! The values of a model with its adapter merged in, one tensor at a time.
//!
//! Invariant: a merged linear is what the adapter was trained on plus the pair's product, `W + (alpha/R)·B·A`, where
//! `W` is the base as it was held in training: dequantized NF4, or the file's own values.

use llamaduo_kernels::{Format, HostWeight};

use super::encode::encode;
use super::place::Sink;
use crate::config::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::local_model::{BaseQuant, prepare};
use crate::lora::{Adapter, LinearName, LoraLayout};
use crate::weights::{LayerTensor, TensorName, interleave_heads};

/// Elements decoded at a time where a matrix need not be whole in memory.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// A model to be written as plain weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge<'a> {
    pub(crate) files: &'a ModelFiles,
    /// How the base was held when the adapter was trained.
    pub(crate) quant: BaseQuant,
    pub(crate) adapter: Option<&'a Adapter>,
}

/// In which order the rows of queries and keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadOrder {
    /// Row `i` of a head pairs with row `i + D/2`.
    Halves,
    /// Rows that pair are neighbours, as llama.cpp has it for the architecture `llama`.
    Neighbours,
}

impl HeadOrder {
    /// That of GGUF files of a family.
    pub(crate) fn of_gguf(family: Family) -> Self {
        match family {
            Family::Llama | Family::Mistral => Self::Neighbours,
            Family::Gemma | Family::Gemma3 | Family::Qwen2 | Family::Qwen3 => Self::Halves,
        }
    }

    /// Puts the rows of `tensor` into this order, given as halves.
    pub(crate) fn arrange<T: Copy>(
        self,
        tensor: LayerTensor,
        config: &ModelConfig,
        rows: Vec<T>,
        row_len: usize,
    ) -> Vec<T> {
        let heads = config.heads;
        let n_heads = match tensor {
            LayerTensor::Query | LayerTensor::QueryBias => heads.n_heads,
            LayerTensor::Key | LayerTensor::KeyBias => heads.n_kv_heads,
            _ => return rows,
        };
        match self {
            Self::Halves => rows,
            Self::Neighbours => interleave_heads(&rows, row_len, n_heads, heads.head_dim),
        }
    }
}

impl<'a> Merge<'a> {
    /// Fails when the adapter was made for a model of other sizes.
    pub(crate) fn new(files: &'a ModelFiles, quant: BaseQuant, adapter: Option<&'a Adapter>) -> Result<Self> {
        if let Some(adapter) = adapter {
            let expected = LoraLayout::new(&files.config, adapter.config());
            if *adapter.layout() != expected {
                return Err(Error::AdapterMismatch {
                    expected: format!("{} parameters", expected.len()),
                    found: format!("{} parameters of a model of other sizes", adapter.params().len()),
                });
            }
        }
        Ok(Self {
            files,
            quant,
            adapter,
        })
    }

    pub(crate) fn config(&self) -> &'a ModelConfig {
        &self.files.config
    }

    /// Writes a matrix with its rows in `order`.
    pub(crate) fn write_matrix(
        &self,
        name: TensorName,
        order: HeadOrder,
        format: Format,
        out: &mut Sink,
    ) -> Result<()> {
        let weight = self.files.weights.matrix(name)?;
        let spelling = name.hugging_face();
        let TensorName::Layer(layer, tensor) = name else {
            return stream(&spelling, &weight, format, out);
        };
        let linear = LinearName::ALL
            .into_iter()
            .find(|linear| linear.tensor() == tensor);
        let weight = match linear {
            Some(_) => prepare(weight, self.quant)?,
            None => weight,
        };
        let slot = linear.and_then(|linear| {
            self.adapter
                .and_then(|adapter| adapter.layout().slot(layer, linear))
        });
        let (n, k) = weight.shape();
        if let (HostWeight::Blocks(blocks), None) = (&weight, slot)
            && blocks.format() == format
        {
            let row_bytes = format.bytes_for(k).unwrap_or(0);
            let bytes = order.arrange(tensor, self.config(), blocks.data().to_vec(), row_bytes);
            return out.write(&bytes);
        }
        let mut values = weight.to_f32();
        if let (Some(slot), Some(adapter)) = (slot, self.adapter) {
            let params = adapter.params();
            let a = &params[slot.a_offset..slot.b_offset];
            let b = &params[slot.b_offset..slot.b_offset + n * slot.rank];
            add_product(&mut values, a, b, k, slot.rank, slot.scale);
        }
        let values = order.arrange(tensor, self.config(), values, k);
        let values = HostWeight::from_f32(n, k, &values)?;
        stream(&spelling, &values, format, out)
    }

    /// A norm's weight or a bias, in `order`, as files with this offset in their norms hold it.
    pub(crate) fn vector(
        &self,
        name: TensorName,
        order: HeadOrder,
        norm_weight_offset: f32,
    ) -> Result<Vec<f32>> {
        let mut values = self.files.weights.vector(name)?;
        let is_bias = matches!(
            name,
            TensorName::Layer(
                _,
                LayerTensor::QueryBias | LayerTensor::KeyBias | LayerTensor::ValueBias
            )
        );
        let change = self.config().norm_weight_offset - norm_weight_offset;
        if !is_bias && change != 0.0 {
            values.iter_mut().for_each(|value| *value += change);
        }
        Ok(match name {
            TensorName::Layer(_, tensor) => order.arrange(tensor, self.config(), values, 1),
            _ => values,
        })
    }
}

/// `values [N, K] += scale · b [N, R] · a [R, K]`.
fn add_product(values: &mut [f32], a: &[f32], b: &[f32], k: usize, rank: usize, scale: f32) {
    for (row, b) in values.chunks_exact_mut(k.max(1)).zip(b.chunks_exact(rank.max(1))) {
        for (a, &b) in a.chunks_exact(k.max(1)).zip(b) {
            let factor = scale * b;
            row.iter_mut().zip(a).for_each(|(value, &a)| *value += factor * a);
        }
    }
}

/// Writes a matrix in pieces of some rows; as its file holds it, where that is the format asked for.
fn stream(what: &str, weight: &HostWeight, format: Format, out: &mut Sink) -> Result<()> {
    let (n, k) = weight.shape();
    let HostWeight::Blocks(blocks) = weight else {
        let values = HostWeight::from_f32(n, k, &weight.to_f32())?;
        return stream(what, &values, format, out);
    };
    if blocks.format() == format {
        return out.write(blocks.data());
    }
    let n_rows = (CHUNK_ELEMENTS / k.max(1)).max(1);
    let mut bytes = Vec::new();
    for first in (0..n).step_by(n_rows) {
        bytes.clear();
        encode(
            what,
            format,
            &blocks.rows_to_f32(first..first + n_rows),
            &mut bytes,
        )?;
        out.write(&bytes)?;
    }
    Ok(())
}
