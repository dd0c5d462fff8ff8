//! Looks up the levels of an NF4 matrix while its panels are packed.
//!
//! Invariant: an element is `level * scale`, one multiplication, wherever it is unpacked.

use super::{Isa, TILE_COLUMNS, TileRow, prefetch, transpose_bytes};
use crate::nf4::{BLOCK_LEN, CODE_VALUES};

/// The codes of a matrix `[N, K]` and the scale of each block.
#[derive(Clone, Copy)]
pub(crate) struct Nf4View<'a> {
    /// Two codes a byte.
    pub codes: &'a [u8],
    /// One for each block.
    pub scales: &'a [f32],
    /// Elements of a row.
    pub k: usize,
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
                $body($($arg),*, |codes, scales, out| super::x86::levels_avx512(codes, scales, out));
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*, |codes, scales, out| super::x86::levels_avx2(codes, scales, out));
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
    /// `panel[i][j] = W[n_first + j, k_first + i]` for `j < n_columns`, 0 beyond. Rows and `k_first` are whole blocks.
    fn nf4_columns, columns_body,
    (weight: Nf4View<'_>, n_first: usize, n_columns: usize, k_first: usize, panel: &mut [TileRow])
);

with_levels!(
    /// `out[i] = ` element `first + i` of the flattened matrix.
    fn nf4_row, row_body,
    (weight: Nf4View<'_>, first: usize, out: &mut [f32])
);

with_levels!(
    /// `panel[i][j] = ` element `first + i * K + j` of the flattened matrix for `j < n_columns`, 0 beyond.
    fn nf4_rows, rows_body,
    (weight: Nf4View<'_>, first: usize, n_columns: usize, panel: &mut [TileRow])
);

#[inline(always)]
fn rows_body(
    weight: Nf4View<'_>,
    first: usize,
    n_columns: usize,
    panel: &mut [TileRow],
    levels: impl Fn(&[u8; 16], &[f32; 16], &mut [f32; 16]),
) {
    for (i, out) in panel.iter_mut().enumerate() {
        out[n_columns..].fill(0.0);
        row_body(weight, first + i * weight.k, &mut out[..n_columns], &levels);
    }
}

#[inline(always)]
fn columns_body(
    weight: Nf4View<'_>,
    n_first: usize,
    n_columns: usize,
    k_first: usize,
    panel: &mut [TileRow],
    levels: impl Fn(&[u8; 16], &[f32; 16], &mut [f32; 16]),
) {
    let n_codes = panel.len() / 2;
    for half in 0..2 {
        let n_rows = n_columns.saturating_sub(16 * half).min(16);
        let first = n_first + 16 * half;
        let mut rows: [(&[u8], &[f32]); 16] = [(&[], &[]); 16];
        for (r, row) in rows.iter_mut().take(n_rows).enumerate() {
            let start = (first + r) * weight.k + k_first;
            let codes = &weight.codes[start / 2..][..n_codes];
            *row = (
                codes,
                &weight.scales[start / BLOCK_LEN..][..n_codes.div_ceil(BLOCK_LEN / 2)],
            );
            // the same part of the next tile, which this thread packs next
            let next = start / 2 + TILE_COLUMNS * weight.k / 2;
            (0..n_codes)
                .step_by(64)
                .for_each(|line| prefetch(weight.codes, next + line));
        }
        for (block, panel) in panel.chunks_mut(BLOCK_LEN).enumerate() {
            let mut scales = [0f32; 16];
            for (scale, (_, row)) in scales.iter_mut().zip(&rows[..n_rows]) {
                *scale = row[block];
            }
            for (part, panel) in panel.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let mut bytes = [[0u8; 16]; 16];
                for (bytes, (row, _)) in bytes.iter_mut().zip(&rows[..n_rows]) {
                    *bytes = row.as_chunks().0[2 * block + part];
                }
                let columns = transpose_bytes(&bytes);
                for (codes, pair) in columns.iter().zip(panel.as_chunks_mut::<2>().0) {
                    let [even, odd] = pair;
                    levels(
                        &codes.map(|code| code >> 4),
                        &scales,
                        &mut even.as_chunks_mut::<16>().0[half],
                    );
                    levels(codes, &scales, &mut odd.as_chunks_mut::<16>().0[half]);
                }
            }
        }
    }
}

#[inline(always)]
fn row_body(
    weight: Nf4View<'_>,
    first: usize,
    out: &mut [f32],
    levels: impl Fn(&[u8; 16], &[f32; 16], &mut [f32; 16]),
) {
    let element = |i: usize| {
        let byte = weight.codes[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        CODE_VALUES[usize::from(code)] * weight.scales[i / BLOCK_LEN]
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
        let scales = [weight.scales[start / BLOCK_LEN]; 16];
        let mut codes = [0u8; 32];
        for (pair, byte) in codes
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(&weight.codes[start / 2..][..16])
        {
            *pair = [byte >> 4, byte & 15];
        }
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            levels(codes, &scales, out);
        }
    }
    for (i, out) in after.iter_mut().enumerate() {
        *out = element(first + 32 * n_runs + i);
    }
}

#[inline(always)]
fn levels_portable(codes: &[u8; 16], scales: &[f32; 16], out: &mut [f32; 16]) {
    for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
        *out = CODE_VALUES[usize::from(code & 15)] * scale;
    }
}
