//! The header of a safetensors file: eight bytes of length, then JSON.
//!
//! Invariant: any bytes give contents or a reason, never a panic; nothing is reserved for what is only claimed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::Tensor;

/// Most bytes of a header, the format's own bound.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// What a file says.
#[derive(Debug)]
pub(super) struct Contents {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
    pub data_start: usize,
}

/// One entry as it is written.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// All entries; a name that occurs twice is refused, since readers would differ on which one counts.
#[derive(Default)]
struct Entries {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        entries.metadata = map.next_value()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if entries.tensors.insert(name, entry).is_some() {
                        return Err(A::Error::custom("a tensor occurs twice"));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Reads a whole file, or says what does not fit.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, String> {
    let Some((&length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!(
            "it has {} bytes, fewer than the 8 of its header's length",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(format!(
            "its header claims {length} bytes, more than {HEADER_BYTES_MAX}"
        ));
    }
    let length = length as usize; // at most HEADER_BYTES_MAX
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(format!(
            "its header claims {length} bytes, {} are left",
            rest.len()
        ));
    };
    let entries: Entries =
        serde_json::from_slice(header).map_err(|error| format!("in its header, {error}"))?;
    let data_start = 8 + length;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries.tensors {
        let tensor = place(&name, entry, data_start, data.len())?;
        tensors.insert(name, tensor);
    }
    check_filled(&tensors, data_start, bytes.len())?;
    Ok(Contents {
        tensors,
        metadata: entries.metadata,
        data_start,
    })
}

/// Holds one entry to its own shape and to the size of the data.
fn place(name: &str, entry: Entry, data_start: usize, data_len: usize) -> Result<Tensor, String> {
    let Entry {
        dtype,
        shape,
        data_offsets: (start, end),
    } = entry;
    if start > end || end > data_len {
        return Err(format!(
            "tensor `{name}` claims bytes {start}..{end}, the data has {data_len}"
        ));
    }
    let bits =
        element_bits(&dtype).ok_or_else(|| format!("tensor `{name}` has the unknown type `{dtype}`"))?;
    let expected = shape
        .iter()
        .try_fold(bits, |product, &dim| product.checked_mul(dim))
        .filter(|bits| bits.is_multiple_of(8))
        .map(|bits| bits / 8);
    if expected != Some(end - start) {
        return Err(format!(
            "tensor `{name}` of {dtype} {shape:?} claims {} bytes",
            end - start
        ));
    }
    Ok(Tensor {
        shape,
        range: data_start + start..data_start + end,
        element: dtype,
    })
}

/// The tensors must follow one another from the header to the end of the file.
fn check_filled(tensors: &BTreeMap<String, Tensor>, data_start: usize, size: usize) -> Result<(), String> {
    let mut by_offset: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (tensor.range.clone(), name))
        .collect();
    by_offset.sort_by_key(|(range, _)| (range.start, range.end));
    let mut end = data_start;
    for (range, name) in by_offset {
        if range.start != end {
            return Err(format!(
                "tensor `{name}` begins at byte {}, expected {end}",
                range.start
            ));
        }
        end = range.end;
    }
    if end == size {
        Ok(())
    } else {
        Err(format!("its tensors end at byte {end}, the file at {size}"))
    }
}

/// Bits of an element, from the format's list of types.
fn element_bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}
