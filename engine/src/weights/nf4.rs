//! Matrices that bitsandbytes has quantized to NF4, read as they are.
//!
//! Invariant: codes and scales are the file's own; what is stored in another way is refused by name, never quantized anew.
//!
//! Beside `weight [n * k / 2]` there are `absmax`, the table of code values, and a JSON text with shape and block length.
//! Double quantization stores `absmax` in 8 bits and adds scales, table and mean of its own.

use llamaduo_kernels::nf4::{BLOCK_LEN, CODE_VALUES, SCALE_BLOCK_LEN, scale_values};
use llamaduo_kernels::{Nf4Matrix, Nf4Scales};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsFile, Shards};

/// The JSON text, as far as it matters.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// A matrix by the name of its weight; `None` where the checkpoint holds it in another format than those of
/// bitsandbytes in 4 bits.
pub(super) fn read(shards: &Shards, weight: &str, expected: Vec<usize>) -> Result<Option<Nf4Matrix>> {
    let parts = Parts { shards, weight };
    if let Some((file, _)) = parts.find(".quant_state.bitsandbytes__fp4") {
        return Err(parts.format_error(file, "bitsandbytes FP4".to_owned()));
    }
    let Some((file, state)) = parts.find(".quant_state.bitsandbytes__nf4") else {
        return Ok(None);
    };
    let state: QuantState = serde_json::from_slice(state).map_err(|error| Error::Damaged {
        path: file.path().to_owned(),
        found: format!("the quantization state of tensor `{weight}` cannot be read: {error}"),
    })?;
    let [n, k] = state.shape[..] else {
        return Err(parts.misshaped(file, expected, state.shape));
    };
    if state.shape != expected {
        return Err(parts.misshaped(file, expected, state.shape));
    }
    if state.blocksize != BLOCK_LEN {
        return Err(parts.format_error(file, format!("NF4 in blocks of {}", state.blocksize)));
    }
    if parts.floats(".quant_map")? != CODE_VALUES {
        return Err(parts.format_error(file, "NF4 with another table of values".to_owned()));
    }
    let scales = parts.scales(file, &state)?;
    let codes = parts.bytes("")?.to_vec();
    parts.release("");
    let matrix = Nf4Matrix::from_parts(n, k, codes, scales).map_err(|error| Error::Damaged {
        path: file.path().to_owned(),
        found: format!("tensor `{weight}` does not fit its quantization state: {error}"),
    })?;
    Ok(Some(matrix))
}

/// The tensors of one matrix.
struct Parts<'s> {
    shards: &'s Shards,
    weight: &'s str,
}

impl<'s> Parts<'s> {
    fn find(&self, part: &str) -> Option<(&'s SafetensorsFile, &'s [u8])> {
        let (file, tensor) = self.shards.tensor(&format!("{}{part}", self.weight)).ok()?;
        Some((file, file.data(tensor)))
    }

    /// Gives back the memory that a mapped part takes.
    fn release(&self, part: &str) {
        if let Ok((file, tensor)) = self.shards.tensor(&format!("{}{part}", self.weight)) {
            file.bytes().release(tensor.range.clone());
        }
    }

    fn floats(&self, part: &str) -> Result<Vec<f32>> {
        let name = format!("{}{part}", self.weight);
        let (file, _) = self.shards.tensor(&name)?;
        Ok(file.f32_values(&name)?.1)
    }

    fn bytes(&self, part: &str) -> Result<&'s [u8]> {
        let name = format!("{}{part}", self.weight);
        let (file, tensor) = self.shards.tensor(&name)?;
        if tensor.element == "U8" {
            Ok(file.data(tensor))
        } else {
            Err(self.format_error(file, format!("NF4 packed into {}", tensor.element)))
        }
    }

    fn scales(&self, file: &SafetensorsFile, state: &QuantState) -> Result<Nf4Scales> {
        let Some(offset) = state.nested_offset else {
            return Ok(Nf4Scales::Plain(self.floats(".absmax")?.into()));
        };
        if let Some(other) = state.nested_blocksize.filter(|&len| len != SCALE_BLOCK_LEN) {
            return Err(self.format_error(file, format!("NF4 with scales in blocks of {other}")));
        }
        if self.floats(".nested_quant_map")? != scale_values() {
            return Err(self.format_error(file, "NF4 with another table of scales".to_owned()));
        }
        Ok(Nf4Scales::Nested {
            codes: self.bytes(".absmax")?.into(),
            absmax: self.floats(".nested_absmax")?.into(),
            offset: offset as f32,
        })
    }

    fn format_error(&self, file: &SafetensorsFile, found: String) -> Error {
        Error::TensorFormat {
            path: file.path().to_owned(),
            tensor: self.weight.to_owned(),
            found,
            supported: "F32, F16, BF16 and bitsandbytes NF4 in blocks of 64",
        }
    }

    fn misshaped(&self, file: &SafetensorsFile, expected: Vec<usize>, found: Vec<usize>) -> Error {
        Error::TensorShape {
            path: file.path().to_owned(),
            tensor: self.weight.to_owned(),
            expected,
            found,
        }
    }
}
