//! Reads the safetensors files in `tests/golden`, for this crate's tests.
//!
//! Invariant: a file that is missing or malformed fails the test that asked for it.

use std::path::PathBuf;

use serde_json::Value;

/// Tensors by name, as raw little-endian bytes.
pub(crate) struct Golden {
    header: Value,
    data: Vec<u8>,
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/golden")
            .join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Self {
            header: serde_json::from_slice(header).unwrap(),
            data: data.to_vec(),
        }
    }

    pub(crate) fn shape(&self, tensor: &str) -> Vec<usize> {
        let shape = self.header[tensor]["shape"].as_array().unwrap();
        shape.iter().map(|dim| dim.as_u64().unwrap() as usize).collect()
    }

    pub(crate) fn u8(&self, tensor: &str) -> Vec<u8> {
        let offsets = &self.header[tensor]["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().unwrap() as usize;
        self.data[at(0)..at(1)].to_vec()
    }

    pub(crate) fn f32(&self, tensor: &str) -> Vec<f32> {
        assert_eq!(self.header[tensor]["dtype"], "F32", "{tensor}");
        self.u8(tensor)
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    }
}

/// Fails, naming the first element, unless both hold the same bits.
#[track_caller]
pub(crate) fn assert_same_bits(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(
            got.to_bits(),
            expected.to_bits(),
            "element {i}: {got} and {expected}"
        );
    }
}
