//! Writing safetensors.
//!
//! Invariant: the same tensors give the same bytes, whatever order they are given in.

use serde_json::json;

/// A tensor of 32-bit floats to be written.
#[derive(Clone, Copy, Debug)]
pub struct Named<'t> {
    /// Its name.
    pub name: &'t str,
    /// Outermost first.
    pub shape: &'t [usize],
    /// Row-major, as many as the shape says.
    pub values: &'t [f32],
}

/// A whole file of `tensors`, whose names must differ. Its metadata says `format: pt`, without which older releases
/// of transformers and PEFT refuse it.
pub fn serialize(tensors: &[Named<'_>]) -> Vec<u8> {
    serialize_with_metadata(tensors, &[("format", "pt")])
}

/// As [`serialize`], with these texts as the metadata.
pub fn serialize_with_metadata(tensors: &[Named<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut sorted: Vec<&Named<'_>> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.name);
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), metadata.iter().copied().collect());
    let mut end = 0;
    for tensor in &sorted {
        let start = end;
        end += size_of_val(tensor.values);
        let entry = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.to_owned(), entry);
    }
    let mut header = serde_json::Value::Object(entries).to_string();
    // The data begins on a multiple of 8, as the format's own writer has it.
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));

    let mut bytes = Vec::with_capacity(8 + header.len() + end);
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    for value in sorted.iter().flat_map(|tensor| tensor.values) {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
