//! Looks up the levels of NF4 codes while panels are packed.
//!
//! Invariant: an element is `level * scale`, one multiplication, wherever it is unpacked.

use super::{Isa, TileRow, transpose_bytes};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// Codes of a matrix `[N, K]` in tiles of 32 rows: 16 bytes for each of the K columns, byte `j` with the code of row `j`
/// in its low and of row `16 + j` in its high nibble.
#[derive(Clone, Copy)]
pub(crate) struct Nf4TileView<'a> {
    /// `[tiles][K]`.
    pub codes: &'a [[u8; 16]],
    /// `[tiles][K / 64]`, the scales of the tile's rows.
    pub scales: &'a [TileRow],
    /// Elements of a row, whole blocks.
    pub k: usize,
}

impl<'a> Nf4TileView<'a> {
    /// A tile's codes from column `k_first` on, the beginning of a block, and the scales of the blocks from there on.
    #[inline(always)]
    pub(crate) fn tile(self, tile: usize, k_first: usize) -> (&'a [[u8; 16]], &'a [TileRow]) {
        let n_blocks = self.k / BLOCK_LEN;
        (
            &self.codes[tile * self.k + k_first..(tile + 1) * self.k],
            &self.scales[tile * n_blocks + k_first / BLOCK_LEN..(tile + 1) * n_blocks],
        )
    }
}

/// Compiles a body that calls `levels` once for each instruction set.
macro_rules! with_levels {
    ($(#[$meta:meta])* fn $name:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        $(#[$meta])*
        #[expect(unsafe_code, reason = "calls code compiled for an instruction set that was detected")]
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn $name(isa: Isa, $($arg: $ty),*) {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body($($arg),*, |codes, scales, out| super::x86::scaled_levels_avx512(codes, scales, out));
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*, |codes, scales, out| super::x86_avx2::scaled_levels_avx2(codes, scales, out));
            }
            match isa.set() {
                // SAFETY: this `Isa` exists, so AVX-512 F, BW, DQ and VL were detected.
                super::Set::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: this `Isa` exists, so AVX2 and FMA were detected.
                super::Set::Avx2 => unsafe { avx2($($arg),*) },
                super::Set::Portable => $body($($arg),*, levels_portable),
            }
        }

        $(#[$meta])*
        #[cfg(not(target_arch = "x86_64"))]
        pub(crate) fn $name(_: Isa, $($arg: $ty),*) {
            $body($($arg),*, levels_portable);
        }
    };
}

with_levels!(
    /// `panel[i][j] = W[32 tile + j, k_first + i]`; `k_first` is the beginning of a block.
    fn nf4_columns, columns_body,
    (weight: Nf4TileView<'_>, tile: usize, k_first: usize, panel: &mut [TileRow])
);

with_levels!(
    /// `panel[i][j] = W[32 tile + i, k_first + j]` for as many rows as the panel has; `k_first` is a multiple of 32.
    fn nf4_rows, rows_body,
    (weight: Nf4TileView<'_>, tile: usize, k_first: usize, panel: &mut [TileRow])
);

with_levels!(
    /// `out[i] = ` element `first + i` of a flattened matrix whose bytes hold two codes each, the even element's in the
    /// high nibble, with a scale for each block.
    fn nf4_run, run_body,
    (codes: &[u8], scales: &[f32], first: usize, out: &mut [f32])
);

#[inline(always)]
fn columns_body(
    weight: Nf4TileView<'_>,
    tile: usize,
    k_first: usize,
    panel: &mut [TileRow],
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    let (codes, scales) = weight.tile(tile, k_first);
    let blocks = codes.chunks(BLOCK_LEN).zip(panel.chunks_mut(BLOCK_LEN));
    for ((codes, panel), scales) in blocks.zip(scales) {
        let [low, high] = scales.as_chunks::<16>().0 else {
            return;
        };
        for (codes, out) in codes.iter().zip(panel) {
            let [out_low, out_high] = out.as_chunks_mut::<16>().0 else {
                return;
            };
            levels(codes, [low, high], [out_low, out_high]);
        }
    }
}

#[inline(always)]
fn rows_body(
    weight: Nf4TileView<'_>,
    tile: usize,
    k_first: usize,
    panel: &mut [TileRow],
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    for (part, panel) in panel.chunks_mut(32).enumerate() {
        let block_first = k_first / BLOCK_LEN * BLOCK_LEN;
        let (codes, scales) = weight.tile(tile + part, block_first);
        let columns = codes[k_first - block_first..].as_chunks::<16>().0;
        let (low, high) = panel.split_at_mut(panel.len().min(16));
        let mut beyond = [[0f32; 32]; 16];
        for (half, codes) in columns.iter().take(2).enumerate() {
            let rows = transpose_bytes(codes);
            for (i, codes) in rows.iter().enumerate().take(low.len()) {
                let scales = [&[scales[0][i]; 16], &[scales[0][16 + i]; 16]];
                // the last tile may have fewer rows
                let high = high.get_mut(i).unwrap_or(&mut beyond[i]);
                let out = [low[i].as_chunks_mut().0, high.as_chunks_mut().0].map(|row| &mut row[half]);
                levels(codes, scales, out);
            }
        }
    }
}

#[inline(always)]
fn run_body(
    codes: &[u8],
    scales: &[f32],
    first: usize,
    out: &mut [f32],
    levels: impl Fn(&[u8; 16], [&[f32; 16]; 2], [&mut [f32; 16]; 2]),
) {
    let element = |i: usize| {
        let byte = codes[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        CODE_VALUES[usize::from(code)] * scales[i / BLOCK_LEN]
    };
    // runs of 32 that begin at a multiple of 32 lie in one block
    let n_before = first.next_multiple_of(32).saturating_sub(first).min(out.len());
    let (before, aligned) = out.split_at_mut(n_before);
    for (i, out) in before.iter_mut().enumerate() {
        *out = element(first + i);
    }
    let first = first + n_before;
    let (runs, after) = aligned.as_chunks_mut::<32>();
    let n_runs = runs.len();
    for (run, out) in runs.iter_mut().enumerate() {
        let start = first + 32 * run;
        let scale = [scales[start / BLOCK_LEN]; 16];
        // elements 0 to 15 are in the first 8 bytes, 16 to 31 in the others
        let bytes = &codes[start / 2..][..16];
        let mut paired = [0u8; 16];
        for (pair, (low, high)) in paired
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(bytes[..8].iter().zip(&bytes[8..]))
        {
            *pair = [low >> 4 | high & 0xf0, low & 15 | high << 4];
        }
        let [low, high] = out.as_chunks_mut::<16>().0 else {
            return;
        };
        levels(&paired, [&scale, &scale], [low, high]);
    }
    for (i, out) in after.iter_mut().enumerate() {
        *out = element(first + 32 * n_runs + i);
    }
}

/// `out[h][j] = level * scales[h][j]` of the code in the low half, for `h` 1 in the high half, of byte `j`.
#[inline(always)]
fn levels_portable(codes: &[u8; 16], scales: [&[f32; 16]; 2], out: [&mut [f32; 16]; 2]) {
    for (half, (scales, out)) in scales.into_iter().zip(out).enumerate() {
        for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
            *out = CODE_VALUES[usize::from(code >> (4 * half) & 15)] * scale;
        }
    }
}
