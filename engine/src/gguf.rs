//! Reading GGUF files: metadata, and where each tensor lies.
//!
//! Invariant: a [`GgufFile`] that exists has been checked whole: every tensor lies inside the file, none overlap,
//! and no count, length or offset was believed before it was compared with the size of the file.

mod parse;
#[cfg(test)]
pub(crate) mod tests;
mod types;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llamaduo_kernels::{Format, SharedBytes, map_file};

use crate::error::{Error, Result};

pub use parse::Value;

/// An opened GGUF file.
pub struct GgufFile {
    path: PathBuf,
    bytes: SharedBytes,
    metadata: BTreeMap<String, Value>,
    metadata_ranges: BTreeMap<String, Range<usize>>,
    tensors: BTreeMap<String, Tensor>,
    data_start: usize,
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Outermost first; GGUF itself writes them the other way round.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// GGML's number of the element type.
    type_id: u32,
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl GgufFile {
    /// Maps and checks a file. Fails when it cannot be read or breaks the format.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path, map_file(path)?)
    }

    /// Checks bytes that are already in memory; `path` names them in errors.
    pub fn from_bytes(path: &Path, bytes: SharedBytes) -> Result<Self> {
        let contents = parse::parse((*bytes).as_ref()).map_err(|found| Error::Damaged {
            path: path.to_owned(),
            found,
        })?;
        let parse::Contents {
            metadata,
            metadata_ranges,
            tensors,
            data_start,
        } = contents;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
            metadata_ranges,
            tensors,
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

    /// How a tensor's elements are to be read. Fails for formats that the kernels cannot read.
    pub fn format(&self, name: &str, tensor: &Tensor) -> Result<Format> {
        types::format(tensor.type_id).ok_or_else(|| Error::TensorFormat {
            path: self.path.clone(),
            tensor: name.to_owned(),
            found: types::name(tensor.type_id).to_owned(),
            supported: "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL and Q2_K to Q6_K",
        })
    }

    /// Drops metadata that is of no more use; a vocabulary takes megabytes.
    pub(crate) fn forget(&mut self, prefix: &str) {
        self.metadata.retain(|key, _| !key.starts_with(prefix));
    }

    /// Every metadata entry of the file as it is written: the number of its type, then the value. Also of those that
    /// were forgotten.
    pub(crate) fn written_metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let all: &[u8] = (*self.bytes).as_ref();
        let entries = self.metadata_ranges.iter();
        entries.map(move |(key, range)| (key.as_str(), all.get(range.clone()).unwrap_or_default()))
    }

    /// A metadata value by its exact key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A metadata string. `None` when absent; fails when it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A metadata integer. `None` when absent; fails when it is negative or something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an unsigned integer", Value::as_unsigned)
    }

    /// A metadata number. `None` when absent; fails when it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_float)
    }

    /// A metadata flag. `None` when absent; fails when it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A metadata array with each element read by `element`. `None` when absent; fails when it is something else.
    pub fn array<'f, T>(
        &'f self,
        key: &str,
        expected: &str,
        element: impl Fn(&'f Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, expected, |value| match value {
            Value::Array(elements) => elements.iter().map(element).collect(),
            _ => None,
        })
    }

    /// An error about a metadata key.
    pub fn config_error(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::Config {
            path: self.path.clone(),
            field: key.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    fn typed<'f, T>(
        &'f self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'f Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.config_error(key, expected, value.kind())),
        }
    }
}
