//! 32-bit floats to the element types that exported files hold.
//!
//! Invariant: rounding is to the nearest, as PyTorch and ggml do it; a value that a type cannot hold is an error, never
//! an infinity.

use llamaduo_kernels::Format;

use crate::error::{Error, Result};

/// Elements of a block of Q8_0.
const Q8_0_LEN: usize = 32;

/// How the matrices of an exported model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredType {
    /// 4 bytes a weight; nothing is rounded.
    F32,
    /// IEEE half, 2 bytes.
    F16,
    /// bfloat16, 2 bytes: the range of 32-bit floats with 8 bits of precision.
    Bf16,
    /// Blocks of 32 with one scale, some 8.5 bits a weight; GGUF only.
    Q8_0,
}

impl StoredType {
    /// As the command line and messages spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// `general.file_type` of GGUF, `llama_ftype` of llama.cpp.
    pub(crate) const fn gguf_file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// The format of a matrix with rows of `k`: F16 where they do not fill the blocks of Q8_0, as llama.cpp's converter
    /// has it.
    pub(crate) const fn format_of_rows(self, k: usize) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::Q8_0 if k.is_multiple_of(Q8_0_LEN) => Format::Q8_0,
            Self::F16 | Self::Q8_0 => Format::F16,
        }
    }
}

/// Appends `values`, whole rows, to `out`. Fails on a value that the format cannot hold; `what` names the tensor then.
pub(crate) fn encode(what: &str, format: Format, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let refuse = |value: f32, remedy: &str| {
        Err(Error::Export {
            what: format!("tensor `{what}`"),
            reason: format!("it holds {value}, which {remedy}"),
        })
    };
    if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
        return refuse(
            value,
            "is no finite number; the model's or the adapter's numbers are damaged",
        );
    }
    let largest_half = half::f16::MAX.to_f32();
    let needs_half = matches!(format, Format::F16 | Format::Q8_0);
    if let Some(&value) = values
        .iter()
        .find(|value| needs_half && value.abs() > largest_half)
    {
        return refuse(value, "is beyond what 16-bit halves hold; choose --type bf16");
    }
    match format {
        Format::F16 => values
            .iter()
            .for_each(|&value| out.extend(half::f16::from_f32(value).to_le_bytes())),
        Format::Bf16 => values
            .iter()
            .for_each(|&value| out.extend(half::bf16::from_f32(value).to_le_bytes())),
        Format::Q8_0 => values.chunks(Q8_0_LEN).for_each(|block| encode_q8_0(block, out)),
        _ => values.iter().for_each(|value| out.extend(value.to_le_bytes())),
    }
    Ok(())
}

/// One block: a scale `d = max|x| / 127` as a half, then `round(x / d)`, halves away from zero.
fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let largest = block
        .iter()
        .fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(half::f16::from_f32(scale).to_le_bytes());
    out.extend(
        block
            .iter()
            .map(|value| ((value * inverse).round() as i8).to_le_bytes()[0]),
    );
}
