//! The GGUF format, versions 2 and 3, little-endian.
//!
//! Invariant: any bytes give contents or a reason, never a panic, and memory in proportion to a fixed bound.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Tensor, types};

/// Most metadata elements of a file, arrays counted by element. The largest vocabularies in use hold about 260
/// thousand tokens, each with a text, a score, a type and some two merges.
const ELEMENTS_MAX: usize = 4 << 20;
/// Most tensors of a file; a model of 100 layers has about a thousand.
const TENSORS_MAX: u64 = 1 << 16;
/// Arrays within arrays; no known key has any.
const ARRAY_DEPTH_MAX: usize = 2;
/// Dimensions of a tensor, `GGML_MAX_DIMS`.
const DIMS_MAX: u32 = 4;
/// The format's default of `general.alignment`, bytes.
const ALIGNMENT_DEFAULT: usize = 32;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any of the unsigned integers.
    Unsigned(u64),
    /// Any of the signed integers.
    Signed(i64),
    /// Either of the floats.
    Float(f64),
    /// A flag.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// An integer that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::Float(value) => Some(value),
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            _ => None,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a flag",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

/// What a file says.
pub(super) struct Contents {
    pub metadata: BTreeMap<String, Value>,
    /// Where each metadata value lies with the number of its type before it.
    pub metadata_ranges: BTreeMap<String, Range<usize>>,
    pub tensors: BTreeMap<String, Tensor>,
    pub data_start: usize,
}

type Parsed<T> = Result<T, String>;

/// Reads a whole file, or says what does not fit.
pub(super) fn parse(bytes: &[u8]) -> Parsed<Contents> {
    let mut reader = Reader {
        bytes,
        position: 0,
        elements: 0,
    };
    if reader.take(4, "the magic")? != b"GGUF" {
        return Err("it does not begin with `GGUF`".to_owned());
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        let what = if (2..=3).contains(&version.swap_bytes()) {
            "big-endian, "
        } else {
            ""
        };
        return Err(format!(
            "{what}version {version}; readable are little-endian versions 2 and 3"
        ));
    }
    let n_tensors = reader.u64("the tensor count")?;
    let n_metadata = reader.u64("the metadata count")?;
    if n_tensors > TENSORS_MAX {
        return Err(format!("it claims {n_tensors} tensors, more than {TENSORS_MAX}"));
    }

    let mut metadata = BTreeMap::new();
    let mut metadata_ranges = BTreeMap::new();
    for _ in 0..n_metadata {
        let key = reader.string("a metadata key")?;
        let start = reader.position;
        let type_id = reader.u32("a metadata type")?;
        let value = reader.value(type_id, &key, 0)?;
        metadata_ranges.insert(key.clone(), start..reader.position);
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata key `{key}` occurs twice"));
        }
    }

    let mut tensors = BTreeMap::new();
    for _ in 0..n_tensors {
        let name = reader.string("a tensor name")?;
        let tensor = reader.tensor(&name)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("tensor `{name}` occurs twice"));
        }
    }

    let alignment = alignment(&metadata)?;
    let data_start = reader
        .position
        .checked_next_multiple_of(alignment)
        .ok_or("its header is too long")?;
    place(&mut tensors, data_start, alignment, bytes.len())?;
    Ok(Contents {
        metadata,
        metadata_ranges,
        tensors,
        data_start: data_start.min(bytes.len()),
    })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Parsed<usize> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    value
        .as_unsigned()
        .and_then(|value| usize::try_from(value).ok())
        .filter(|value| value.is_power_of_two() && *value <= 1 << 20)
        .ok_or_else(|| "`general.alignment` is not a power of two up to 1 MiB".to_owned())
}

/// Turns offsets within the data into offsets within the file, and holds them to the file's size and one another.
fn place(
    tensors: &mut BTreeMap<String, Tensor>,
    data_start: usize,
    alignment: usize,
    size: usize,
) -> Parsed<()> {
    for (name, tensor) in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{name}` at {} is not aligned to {alignment}",
                tensor.offset
            ));
        }
        let start = tensor.offset.checked_add(data_start);
        let end = start.and_then(|start| start.checked_add(tensor.size));
        match (start, end) {
            (Some(start), Some(end)) if end <= size => tensor.offset = start,
            _ => {
                return Err(format!(
                    "tensor `{name}` of {} bytes at {} reaches beyond the file's {size} bytes",
                    tensor.size, tensor.offset
                ));
            }
        }
    }
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in by_offset.windows(2) {
        if let [(first, before), (second, after)] = pair
            && before.offset + before.size > after.offset
        {
            return Err(format!("tensors `{first}` and `{second}` overlap"));
        }
    }
    Ok(())
}

struct Reader<'b> {
    bytes: &'b [u8],
    position: usize,
    /// Metadata elements so far.
    elements: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, len: usize, what: &str) -> Parsed<&'b [u8]> {
        let end = self.position.checked_add(len);
        let taken = end
            .and_then(|end| self.bytes.get(self.position..end))
            .ok_or_else(|| {
                format!(
                    "{what} at byte {} needs {len} bytes, {} are left",
                    self.position,
                    self.left()
                )
            })?;
        self.position += len;
        Ok(taken)
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    fn array<const LEN: usize>(&mut self, what: &str) -> Parsed<[u8; LEN]> {
        let mut array = [0; LEN];
        array.copy_from_slice(self.take(LEN, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str) -> Parsed<String> {
        let len = self.u64(what)?;
        // A length beyond usize is beyond the file as well.
        let text = self.take(usize::try_from(len).unwrap_or(usize::MAX), what)?;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("{what} before byte {} is not UTF-8", self.position)),
        }
    }

    /// A value of the metadata type with this number, as `gguf.md` of ggml lists them.
    fn value(&mut self, type_id: u32, key: &str, depth: usize) -> Parsed<Value> {
        self.elements += 1;
        if self.elements > ELEMENTS_MAX {
            return Err(format!(
                "it holds more than {ELEMENTS_MAX} metadata elements, at `{key}`"
            ));
        }
        Ok(match type_id {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array(key)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(key)?))),
            7 => Value::Bool(self.array::<1>(key)? != [0]),
            8 => Value::String(self.string(key)?),
            9 => {
                if depth >= ARRAY_DEPTH_MAX {
                    return Err(format!(
                        "`{key}` is an array nested deeper than {ARRAY_DEPTH_MAX}"
                    ));
                }
                let element_type = self.u32(key)?;
                let len = self.u64(key)?;
                // Every element takes at least a byte; what is claimed beyond that is not reserved.
                if len > self.left() as u64 {
                    return Err(format!(
                        "`{key}` claims {len} elements, {} bytes are left",
                        self.left()
                    ));
                }
                let mut elements = Vec::new();
                for _ in 0..len {
                    elements.push(self.value(element_type, key, depth + 1)?);
                }
                Value::Array(elements)
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(format!("`{key}` has the unknown type {type_id}")),
        })
    }

    fn tensor(&mut self, name: &str) -> Parsed<Tensor> {
        let n_dims = self.u32(name)?;
        if !(1..=DIMS_MAX).contains(&n_dims) {
            return Err(format!(
                "tensor `{name}` has {n_dims} dimensions, more than {DIMS_MAX} or none"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let dim = self.u64(name)?;
            shape
                .push(usize::try_from(dim).map_err(|_| format!("tensor `{name}` has a dimension of {dim}"))?);
        }
        let type_id = self.u32(name)?;
        let offset = self.u64(name)?;
        let (block_len, block_bytes) = types::block(type_id)
            .ok_or_else(|| format!("tensor `{name}` has the unknown element type {type_id}"))?;
        let size = shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|_| shape[0].is_multiple_of(block_len))
            .and_then(|n_elements| (n_elements / block_len).checked_mul(block_bytes))
            .ok_or_else(|| {
                format!(
                    "tensor `{name}` of {shape:?} does not fill blocks of {block_len} {}",
                    types::name(type_id)
                )
            })?;
        let offset = usize::try_from(offset).map_err(|_| format!("tensor `{name}` lies at {offset}"))?;
        shape.reverse();
        Ok(Tensor {
            shape,
            offset,
            size,
            type_id,
        })
    }
}
