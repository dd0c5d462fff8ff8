//! Decodes the block formats of GGUF files, as `ggml-quants.c` of llama.cpp defines them.
//!
//! Invariant: the smallest thing decoded is a run of 32 elements, which every format holds whole: a matrix can be
//! read from the middle of a row.

#[cfg(test)]
mod tests;

use crate::weight::Format;

/// Elements of a run.
pub(crate) const RUN_LEN: usize = 32;

/// Decodes `out.len()` elements of the row whose bytes are `row`, beginning at element `first`.
///
/// `first` and, for the quantized formats, `out.len()` are multiples of [`RUN_LEN`]. Elements past the row's end are
/// left as they are.
#[inline(always)]
pub(crate) fn decode_row(format: Format, row: &[u8], first: usize, out: &mut [f32]) {
    match format {
        Format::F32 => decode_plain(row, first, out, f32::from_le_bytes),
        Format::F16 => decode_plain(row, first, out, f16_of),
        Format::Bf16 => decode_plain(row, first, out, bf16_of),
        Format::Q8_0 => decode_runs(row, first, out, 1, q8_0),
        Format::Q4_0 => decode_runs(row, first, out, 1, q4_0),
        Format::Q4_1 => decode_runs(row, first, out, 1, q4_1),
        Format::Q5_0 => decode_runs(row, first, out, 1, q5_0),
        Format::Q5_1 => decode_runs(row, first, out, 1, q5_1),
        Format::Iq4Nl => decode_runs(row, first, out, 1, iq4_nl),
        Format::Q2K => decode_runs(row, first, out, 8, q2_k),
        Format::Q3K => decode_runs(row, first, out, 8, q3_k),
        Format::Q4K => decode_runs(row, first, out, 8, q4_k),
        Format::Q5K => decode_runs(row, first, out, 8, q5_k),
        Format::Q6K => decode_runs(row, first, out, 8, q6_k),
    }
}

/// The half whose bytes these are. Written out, since a call into a library would break up vector code.
#[inline(always)]
fn f16_of(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    let (sign, magnitude) = (half >> 15 << 31, (half & 0x7fff) << 13);
    // moving the exponent's bias from 15 to 127 by a product keeps subnormal halves right
    let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let bits = if magnitude >= 0x1f << 23 {
        magnitude | 0xff << 23
    } else {
        scaled.to_bits()
    };
    f32::from_bits(bits | sign)
}

/// bfloat16 is the upper half of a 32-bit float.
#[inline(always)]
fn bf16_of([low, high]: [u8; 2]) -> f32 {
    f32::from_le_bytes([0, 0, low, high])
}

#[inline(always)]
fn decode_plain<const BYTES: usize>(
    row: &[u8],
    first: usize,
    out: &mut [f32],
    decode: impl Fn([u8; BYTES]) -> f32,
) {
    let elements = row.as_chunks::<BYTES>().0.iter().skip(first);
    for (out, &bytes) in out.iter_mut().zip(elements) {
        *out = decode(bytes);
    }
}

/// Calls `decode(block, run within the block, out)` for each run.
#[inline(always)]
fn decode_runs<const BYTES: usize>(
    row: &[u8],
    first: usize,
    out: &mut [f32],
    runs_per_block: usize,
    decode: impl Fn(&[u8; BYTES], usize, &mut [f32; RUN_LEN]),
) {
    let blocks = row.as_chunks::<BYTES>().0;
    let runs = first / RUN_LEN..;
    for (run, out) in runs.zip(out.as_chunks_mut::<RUN_LEN>().0) {
        if let Some(block) = blocks.get(run / runs_per_block) {
            decode(block, run % runs_per_block, out);
        }
    }
}

#[inline(always)]
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16_of([block[at], block[at + 1]])
}

#[inline(always)]
fn q8_0(block: &[u8; 34], _: usize, out: &mut [f32; RUN_LEN]) {
    let scale = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(q as i8);
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], _: usize, out: &mut [f32; RUN_LEN]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = scale * (f32::from(byte & 15) - 8.0);
        *high = scale * (f32::from(byte >> 4) - 8.0);
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], _: usize, out: &mut [f32; RUN_LEN]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = scale * f32::from(byte & 15) + minimum;
        *high = scale * f32::from(byte >> 4) + minimum;
    }
}

/// Numbers of 5 bits: 16 bytes of nibbles, low ones first, and above them a bit each from `high`.
#[inline(always)]
fn five_bits(high: &[u8], nibbles: &[u8], out: &mut [f32; RUN_LEN], value: impl Fn(f32) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        let fifth = high[i / 8] >> (i % 8) & 1;
        *out = value(f32::from(nibbles[i % 16] >> (i / 16 * 4) & 15 | fifth << 4));
    }
}

#[inline(always)]
fn q5_0(block: &[u8; 22], _: usize, out: &mut [f32; RUN_LEN]) {
    let scale = half_at(block, 0);
    five_bits(&block[2..6], &block[6..], out, |q| scale * (q - 16.0));
}

#[inline(always)]
fn q5_1(block: &[u8; 24], _: usize, out: &mut [f32; RUN_LEN]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[4..8], &block[8..], out, |q| scale * q + minimum);
}

/// The levels of IQ4_NL, `kvalues_iq4nl` in `ggml-common.h`.
const IQ4_NL_LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

#[inline(always)]
fn iq4_nl(block: &[u8; 18], _: usize, out: &mut [f32; RUN_LEN]) {
    let scale = half_at(block, 0);
    let level = |code: u8| scale * f32::from(IQ4_NL_LEVELS[usize::from(code)]);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = level(byte & 15);
        *high = level(byte >> 4);
    }
}

/// Super-block: 16 bytes, each a 4-bit scale and a 4-bit minimum of 16 elements, 64 bytes of bit pairs, f16 scale, f16
/// minimum. Each half of the super-block holds runs 0 to 3 in the bit pairs of its 32 bytes, the lowest first.
#[inline(always)]
fn q2_k(block: &[u8; 84], run: usize, out: &mut [f32; RUN_LEN]) {
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    let (bytes, shift) = (&block[16 + run / 4 * RUN_LEN..], run % 4 * 2);
    for (i, out) in out.iter_mut().enumerate() {
        let packed = block[2 * run + i / 16];
        let q = f32::from(bytes[i] >> shift & 3);
        *out = scale * f32::from(packed & 15) * q - minimum * f32::from(packed >> 4);
    }
}

/// Super-block: 32 bytes of third bits, bit `run` for the elements of a run, 64 bytes of bit pairs as in Q2_K, sixteen
/// 6-bit scales in 12 bytes, f16 scale. A third bit that is not set takes 4 off.
#[inline(always)]
fn q3_k(block: &[u8; 110], run: usize, out: &mut [f32; RUN_LEN]) {
    let packed = &block[96..108];
    let scales = [2 * run, 2 * run + 1].map(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        half_at(block, 108) * (f32::from(low | high << 4) - 32.0)
    });
    let (bytes, shift) = (&block[32 + run / 4 * RUN_LEN..], run % 4 * 2);
    for (i, out) in out.iter_mut().enumerate() {
        let third = block[i] >> run & 1;
        *out = scales[i / 16] * (f32::from(bytes[i] >> shift & 3 | third << 2) - 4.0);
    }
}

/// The scale and the minimum of a run of Q4_K and Q5_K: f16 scale, f16 minimum, eight 6-bit pairs in 12 bytes.
#[inline(always)]
fn scale_and_minimum(block: &[u8], run: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, minimum) = if run < 4 {
        (packed[run] & 63, packed[run + 4] & 63)
    } else {
        let low = packed[run + 4];
        (
            low & 15 | packed[run - 4] >> 6 << 4,
            low >> 4 | packed[run] >> 6 << 4,
        )
    };
    (
        half_at(block, 0) * f32::from(scale),
        half_at(block, 2) * f32::from(minimum),
    )
}

/// Super-block: scales and minimums, 128 bytes of nibbles. Runs 2i and 2i + 1 are the low and the high nibbles of bytes
/// `32 i ..`.
#[inline(always)]
fn q4_k(block: &[u8; 144], run: usize, out: &mut [f32; RUN_LEN]) {
    let (scale, minimum) = scale_and_minimum(block, run);
    let shift = run % 2 * 4;
    let bytes = &block[16 + run / 2 * RUN_LEN..];
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = scale * f32::from(byte >> shift & 15) - minimum;
    }
}

/// Super-block: as Q4_K with 32 bytes of fifth bits before the nibbles, bit `run` for the elements of a run.
#[inline(always)]
fn q5_k(block: &[u8; 176], run: usize, out: &mut [f32; RUN_LEN]) {
    let (scale, minimum) = scale_and_minimum(block, run);
    let shift = run % 2 * 4;
    let (high, bytes) = (&block[16..48], &block[48 + run / 2 * RUN_LEN..]);
    for ((out, &byte), &high) in out.iter_mut().zip(bytes).zip(high) {
        *out = scale * f32::from(byte >> shift & 15 | (high >> run & 1) << 4) - minimum;
    }
}

/// Super-block: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 i8 scales of 16 elements each, f16 scale.
/// Each half of the super-block holds runs 0 to 3: low nibbles of bytes 0.. and 32.., then their high nibbles.
#[inline(always)]
fn q6_k(block: &[u8; 210], run: usize, out: &mut [f32; RUN_LEN]) {
    let (half, quarter) = (run / 4, run % 4);
    let low = &block[64 * half + quarter % 2 * RUN_LEN..];
    let high = &block[128 + 32 * half..];
    let scales = &block[192 + 8 * half + 2 * quarter..];
    let scale = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
        *out = scale * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
    }
}
