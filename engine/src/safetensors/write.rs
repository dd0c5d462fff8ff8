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
    let sizes = sorted
        .iter()
        .map(|tensor| (tensor.name, tensor.shape, size_of_val(tensor.values) as u64));
    let mut bytes = header(sizes, metadata);
    for value in sorted.iter().flat_map(|tensor| tensor.values) {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// What comes before the data of one tensor of 32-bit floats, for a file that is written piece by piece: the values
/// follow, row-major and little-endian. `None` when no file can be so large.
pub fn header_of_one(name: &str, shape: &[usize]) -> Option<Vec<u8>> {
    let n_bytes = shape.iter().try_fold(size_of::<f32>() as u64, |product, &dim| {
        product.checked_mul(dim as u64)
    })?;
    // Files are addressed by signed offsets.
    (n_bytes < i64::MAX as u64 / 2).then(|| header([(name, shape, n_bytes)], &[("format", "pt")]))
}

/// The header of tensors with their names, shapes and bytes, in the order of their data.
fn header<'t>(
    tensors: impl IntoIterator<Item = (&'t str, &'t [usize], u64)>,
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), metadata.iter().copied().collect());
    let mut end = 0;
    for (name, shape, n_bytes) in tensors {
        let start = end;
        end += n_bytes;
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.to_owned(), entry);
    }
    let mut header = serde_json::Value::Object(entries).to_string();
    // The data begins on a multiple of 8, as the format's own writer has it.
    header.extend(std::iter::repeat_n(
        ' ',
        header.len().next_multiple_of(8) - header.len(),
    ));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes
}
