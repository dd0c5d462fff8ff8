//! The header of a GGUF file to be written: metadata, and what tensors follow in what order.
//!
//! Invariant: what follows the header's bytes is each tensor's data in the order it was announced, padded by
//! [`padding`]; the same entries give the same bytes.

use std::collections::BTreeMap;

use llamaduo_kernels::Format;

use super::types;

/// Bytes that every tensor's data is aligned to, the format's default.
const ALIGNMENT: u64 = 32;
/// The format's version.
const VERSION: u32 = 3;

/// What comes before the tensors' data.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// Each value with the number of its type before it.
    metadata: BTreeMap<String, Vec<u8>>,
    tensors: Vec<Info>,
    /// Bytes of data announced so far, padding included.
    n_data_bytes: u64,
}

#[derive(Debug)]
struct Info {
    name: String,
    /// Innermost first, as the format has it.
    shape: Vec<u64>,
    type_id: u32,
    offset: u64,
}

/// Zeros after `n_bytes` of a tensor's data.
pub(crate) fn padding(n_bytes: u64) -> usize {
    (n_bytes.next_multiple_of(ALIGNMENT) - n_bytes) as usize // below ALIGNMENT
}

impl Header {
    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.entry(key, 7, &[u8::from(value)]);
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        push_text(&mut bytes, value);
        self.entry(key, 8, &bytes);
    }

    pub(crate) fn strings<T: AsRef<str>>(&mut self, key: &str, values: &[T]) {
        let mut bytes = array_start(8, values.len());
        values
            .iter()
            .for_each(|value| push_text(&mut bytes, value.as_ref()));
        self.entry(key, 9, &bytes);
    }

    pub(crate) fn i32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        let mut bytes = array_start(5, values.len());
        values.for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, &bytes);
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        let mut bytes = array_start(6, values.len());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, &bytes);
    }

    /// An entry as another file holds it: the number of its type, then the value.
    pub(crate) fn written(&mut self, key: &str, value: &[u8]) {
        self.metadata.insert(key.to_owned(), value.to_vec());
    }

    /// Announces the next tensor, of a shape with its outermost dimension first. Gives the bytes of its data; `None` when
    /// its rows do not fill whole blocks.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], format: Format) -> Option<u64> {
        let row_len = shape.last().copied().unwrap_or(1);
        let n_rows: usize = shape.iter().rev().skip(1).product();
        let n_bytes = format.bytes_for(row_len)?.checked_mul(n_rows)? as u64;
        self.tensors.push(Info {
            name: name.to_owned(),
            shape: shape.iter().rev().map(|&dim| dim as u64).collect(),
            type_id: types::id(format),
            offset: self.n_data_bytes,
        });
        self.n_data_bytes += n_bytes + padding(n_bytes) as u64;
        Some(n_bytes)
    }

    /// The header, up to where the data of the first tensor begins.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            push_text(&mut bytes, key);
            bytes.extend_from_slice(value);
        }
        for info in &self.tensors {
            push_text(&mut bytes, &info.name);
            bytes.extend((info.shape.len() as u32).to_le_bytes());
            info.shape.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(info.type_id.to_le_bytes());
            bytes.extend(info.offset.to_le_bytes());
        }
        bytes.resize(bytes.len() + padding(bytes.len() as u64), 0);
        bytes
    }

    fn entry(&mut self, key: &str, type_id: u32, value: &[u8]) {
        let written = [&type_id.to_le_bytes()[..], value].concat();
        self.metadata.insert(key.to_owned(), written);
    }
}

fn array_start(type_id: u32, len: usize) -> Vec<u8> {
    let mut bytes = type_id.to_le_bytes().to_vec();
    bytes.extend((len as u64).to_le_bytes());
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}
