//! Reading and writing safetensors, one file or a checkpoint of shards.
//!
//! Invariant: a [`SafetensorsFile`] that exists has been checked whole: every tensor's bytes are as many as its
//! shape and type demand, and together they fill the file without gap or overlap, as the format asks.

mod header;
mod shards;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamaduo_kernels::{Format, SharedBytes, map_file};

use crate::error::{Error, Result};
use crate::weights::floats;

pub use shards::Shards;
pub use write::{Named, header_of_one, serialize, serialize_with_metadata};

/// An opened safetensors file.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: SharedBytes,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    data_start: usize,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
    /// The element type as the format spells it.
    pub element: String,
}

impl std::fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SafetensorsFile")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl SafetensorsFile {
    /// Maps and checks a file. Fails when it cannot be read or breaks the format.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, map_file(path)?)
    }

    /// Checks bytes that are already in memory; `path` names them in errors.
    pub fn from_bytes(path: &Path, bytes: SharedBytes) -> Result<Self> {
        let contents = header::parse((*bytes).as_ref()).map_err(|found| Error::Damaged {
            path: path.to_owned(),
            found,
        })?;
        let header::Contents {
            tensors,
            metadata,
            data_start,
        } = contents;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            tensors,
            metadata,
            data_start,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> SharedBytes {
        Arc::clone(&self.bytes)
    }

    /// Everything before the tensors' data.
    pub fn header(&self) -> &[u8] {
        (*self.bytes).as_ref().get(..self.data_start).unwrap_or_default()
    }

    /// The free texts of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by its exact name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::TensorMissing {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })
    }

    /// How a tensor's elements are to be read. Fails for types that are no floats of 16 or 32 bits.
    pub fn format(&self, name: &str, tensor: &Tensor) -> Result<Format> {
        match tensor.element.as_str() {
            "F32" => Ok(Format::F32),
            "F16" => Ok(Format::F16),
            "BF16" => Ok(Format::Bf16),
            _ => Err(self.wrong_element(name, tensor, "F32, F16 and BF16")),
        }
    }

    /// A tensor's shape and its values as 32-bit floats. Fails when it is missing or not of floats.
    pub fn f32_values(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.tensor(name)?;
        let format = self.format(name, tensor)?;
        Ok((tensor.shape.clone(), floats(self.data(tensor), format)))
    }

    /// A tensor's shape and its values as 64-bit integers. Fails when it is missing or of another type.
    #[cfg(test)]
    pub(crate) fn i64_values(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        let tensor = self.tensor(name)?;
        if tensor.element != "I64" {
            return Err(self.wrong_element(name, tensor, "I64"));
        }
        let values = self
            .data(tensor)
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&eight| i64::from_le_bytes(eight));
        Ok((tensor.shape.clone(), values.collect()))
    }

    /// A tensor's bytes.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        (*self.bytes)
            .as_ref()
            .get(tensor.range.clone())
            .unwrap_or_default()
    }

    fn wrong_element(&self, name: &str, tensor: &Tensor, supported: &'static str) -> Error {
        Error::TensorFormat {
            path: self.path.clone(),
            tensor: name.to_owned(),
            found: tensor.element.clone(),
            supported,
        }
    }
}
