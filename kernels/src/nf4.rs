//! NF4: a matrix in 4 bits an element, as QLoRA (Dettmers et al. 2023, §3) defines it and bitsandbytes stores it.
//!
//! Invariant: codes and scales are those of bitsandbytes, bit for bit: blocks of 64 run over the flattened tensor,
//! the element with the even index sits in the high nibble.

mod dynamic_map;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rayon::prelude::*;

use crate::cpu::simd::{Isa, versions};
use crate::error::{Error, Result};
use dynamic_map::{dynamic_map, nearest};

/// The 256 values that the scales of a double-quantized matrix are rounded to: bitsandbytes' dynamic 8-bit map.
pub fn scale_values() -> &'static [f32; 256] {
    dynamic_map()
}

/// Elements that share a scale.
pub const BLOCK_LEN: usize = 64;

/// Elements that are decoded and quantized in one go, where rows are not longer.
const RUN_LEN: usize = 1 << 16;

/// Scales that share a scale of their own under double quantization.
pub const SCALE_BLOCK_LEN: usize = 256;

/// The 16 values of a code: quantiles of a normal distribution, scaled to [-1, 1].
#[expect(clippy::excessive_precision, reason = "the digits of the published table")]
pub const CODE_VALUES: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Whether the scales are quantized too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubleQuant {
    /// 4.127 bits an element.
    Yes,
    /// 4.5 bits an element.
    No,
}

/// The scale of each block: the largest magnitude in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Nf4Scales {
    /// As they are, one for each block of [`BLOCK_LEN`].
    Plain(Arc<[f32]>),
    /// `scale = map[code] * absmax + offset` with bitsandbytes' dynamic 8-bit map.
    Nested {
        /// One for each block of [`BLOCK_LEN`].
        codes: Arc<[u8]>,
        /// One for each [`SCALE_BLOCK_LEN`] codes.
        absmax: Arc<[f32]>,
        /// Mean of the scales.
        offset: f32,
    },
}

/// A matrix `[N, K]` in NF4.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Matrix {
    n: usize,
    k: usize,
    codes: Arc<[u8]>,
    scales: Nf4Scales,
}

impl Nf4Matrix {
    /// Quantizes `values [N, K]`. Fails when their number is not `n * k`.
    pub fn quantize(n: usize, k: usize, values: &[f32], double_quant: DoubleQuant) -> Result<Self> {
        check_part("values", n, k, len_of(n, k)?, values.len())?;
        Self::quantize_rows(n, k, double_quant, |row, out| {
            out.copy_from_slice(&values[row * k..][..out.len()]);
        })
    }

    /// Quantizes the values `[N, K]` in runs of rows, which `decode(row, out)` gives from a row on, on all threads of the
    /// pool it is called in: only a run for each thread is held as floats.
    pub(crate) fn quantize_rows(
        n: usize,
        k: usize,
        double_quant: DoubleQuant,
        decode: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let len = len_of(n, k)?;
        let isa = Isa::detect();
        let mut codes = vec![0u8; len.div_ceil(2)];
        let mut scales = vec![0f32; len.div_ceil(BLOCK_LEN)];
        // So many rows are whole blocks, so no block is in two runs.
        let rows_whole = BLOCK_LEN >> k.trailing_zeros().min(BLOCK_LEN.trailing_zeros());
        let rows = rows_whole * (RUN_LEN / rows_whole.saturating_mul(k).max(1)).max(1);
        let run_len = rows.saturating_mul(k).max(BLOCK_LEN);
        let runs = codes
            .par_chunks_mut(run_len / 2)
            .zip(scales.par_chunks_mut(run_len / BLOCK_LEN));
        runs.enumerate()
            .for_each_init(Vec::new, |values, (index, (codes, scales))| {
                values.resize(run_len.min(len - index * run_len), 0f32);
                decode(index * rows, values);
                let blocks = values.chunks(BLOCK_LEN).zip(codes.chunks_mut(BLOCK_LEN / 2));
                for ((block, codes), scale) in blocks.zip(scales) {
                    quantize_block(isa, block, codes, scale);
                }
            });
        let scales = match double_quant {
            DoubleQuant::No => Nf4Scales::Plain(scales.into()),
            DoubleQuant::Yes => quantize_scales(&scales),
        };
        Ok(Self {
            n,
            k,
            codes: codes.into(),
            scales,
        })
    }

    /// A matrix from what a checkpoint holds. Fails when a part's length does not follow from the shape.
    pub fn from_parts(n: usize, k: usize, codes: Vec<u8>, scales: Nf4Scales) -> Result<Self> {
        let len = len_of(n, k)?;
        let n_blocks = len.div_ceil(BLOCK_LEN);
        check_part("codes", n, k, len.div_ceil(2), codes.len())?;
        match &scales {
            Nf4Scales::Plain(scales) => check_part("scales", n, k, n_blocks, scales.len())?,
            Nf4Scales::Nested { codes, absmax, .. } => {
                check_part("scale codes", n, k, n_blocks, codes.len())?;
                check_part(
                    "nested absmax",
                    n,
                    k,
                    n_blocks.div_ceil(SCALE_BLOCK_LEN),
                    absmax.len(),
                )?;
            }
        }
        Ok(Self {
            n,
            k,
            codes: codes.into(),
            scales,
        })
    }

    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// Two codes a byte, the even element's in the high nibble.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The codes, shared.
    pub(crate) fn shared_codes(&self) -> Arc<[u8]> {
        Arc::clone(&self.codes)
    }

    /// The scales as they are stored.
    pub fn scales(&self) -> &Nf4Scales {
        &self.scales
    }

    /// The scale of each block of [`BLOCK_LEN`] elements.
    pub fn block_scales(&self) -> Arc<[f32]> {
        self.scales.of_blocks()
    }

    /// The values, `[N, K]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let len = self.n * self.k; // held in memory as codes, so it does not overflow
        let scales = self.block_scales();
        (0..len)
            .map(|i| CODE_VALUES[usize::from(code_at(&self.codes, i))] * scales[i / BLOCK_LEN])
            .collect()
    }
}

impl Nf4Scales {
    /// One for each block of [`BLOCK_LEN`] elements.
    fn of_blocks(&self) -> Arc<[f32]> {
        match self {
            Self::Plain(scales) => Arc::clone(scales),
            Self::Nested {
                codes,
                absmax,
                offset,
            } => codes
                .chunks(SCALE_BLOCK_LEN)
                .zip(absmax.iter())
                .flat_map(|(codes, absmax)| {
                    codes
                        .iter()
                        .map(move |&code| dynamic_map()[usize::from(code)] * absmax + offset)
                })
                .collect(),
        }
    }
}

/// The code of the flattened tensor's element `i`.
#[inline]
pub(crate) fn code_at(codes: &[u8], i: usize) -> u8 {
    if i.is_multiple_of(2) {
        codes[i / 2] >> 4
    } else {
        codes[i / 2] & 15
    }
}

fn len_of(n: usize, k: usize) -> Result<usize> {
    n.checked_mul(k).ok_or(Error::Overflow {
        op: "nf4",
        what: "matrix",
    })
}

fn check_part(what: &'static str, n: usize, k: usize, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Nf4Part {
            what,
            n,
            k,
            expected,
            got,
        })
    }
}

versions! {
    /// The nearest code of each element of one block, the lower one when two are equally near, as `argmin` has it.
    fn quantize_block(block: &[f32], codes: &mut [u8], scale: &mut f32) {
        let mut largest = 0f32;
        for &value in block {
            let magnitude = value.abs();
            // a NaN must not vanish: once taken it stays, for nothing compares greater
            if magnitude > largest || magnitude.is_nan() {
                largest = magnitude;
            }
        }
        *scale = largest;
        let inverse = if largest > f32::MIN_POSITIVE { 1.0 / largest } else { 0.0 };
        let mut padded = [0f32; BLOCK_LEN];
        for (padded, value) in padded.iter_mut().zip(block) {
            *padded = value * inverse;
        }
        let mut nibbles = [0i32; BLOCK_LEN];
        for (nibble, &x) in nibbles.iter_mut().zip(&padded) {
            for pair in CODE_VALUES.windows(2) {
                *nibble += i32::from((x - pair[0]).abs() > (x - pair[1]).abs());
            }
        }
        for (index, byte) in codes.iter_mut().enumerate() {
            let odd = if 2 * index + 1 < block.len() { nibbles[2 * index + 1] } else { 0 };
            *byte = (nibbles[2 * index] << 4 | odd) as u8;
        }
    }
}

/// Scales quantized in their turn.
pub(crate) fn quantize_scales(scales: &[f32]) -> Nf4Scales {
    let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
    let offset = if scales.is_empty() {
        0.0
    } else {
        (sum / scales.len() as f64) as f32
    };
    let mut codes = Vec::with_capacity(scales.len());
    let mut absmax = Vec::with_capacity(scales.len().div_ceil(SCALE_BLOCK_LEN));
    for block in scales.chunks(SCALE_BLOCK_LEN) {
        let largest = block
            .iter()
            .fold(0f32, |largest, scale| largest.max((scale - offset).abs()));
        let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
        codes.extend(block.iter().map(|scale| nearest((scale - offset) * inverse)));
        absmax.push(largest);
    }
    Nf4Scales::Nested {
        codes: codes.into(),
        absmax: absmax.into(),
        offset,
    }
}
