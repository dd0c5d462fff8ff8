//! The tile of integers with AVX-512 VNNI, which multiplies two neighbours of K and adds both products in one instruction.
//!
//! Invariant: see [`super::integers`].

use std::arch::x86_64::*;

use super::integers::{IntegerLeft, IntegerPanel, IntegerRows, LEFT_BLOCK_LEN};
use super::tile::{Start, TILE_COLUMNS, TILE_ROWS};
use super::x86::{by_rows, load_512, load_words_512, store_512};

/// See [`super::multiply_integers`]; rows are 16 or 32 long.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn multiply(a: IntegerRows<'_>, panel: IntegerPanel<'_>, rows: &mut [&mut [f32]], start: Start) {
    let n = rows.len();
    if rows.first().is_some_and(|row| row.len() < TILE_COLUMNS) {
        by_rows!(multiply_rows, 1, (a, panel, rows, start), n, [1 2 3 4 5 6 7 8 9 10 11]);
    } else {
        by_rows!(multiply_rows, 2, (a, panel, rows, start), n, [1 2 3 4 5 6 7 8 9 10 11]);
    }
}

/// W rows of R registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_rows<const W: usize, const R: usize>(
    a: IntegerRows<'_>,
    panel: IntegerPanel<'_>,
    rows: &mut [&mut [f32]],
    start: Start,
) {
    let Some(rows) = rows.first_chunk_mut::<W>() else {
        return;
    };
    let mut totals = [[_mm512_setzero_ps(); R]; W];
    if start == Start::Current {
        for i in 0..W {
            let Some(parts) = rows[i].as_chunks().0.first_chunk::<R>() else {
                return;
            };
            for part in 0..R {
                totals[i][part] = load_512(&parts[part]);
            }
        }
    }
    let mut lefts = [IntegerLeft::default(); W];
    for (i, left) in lefts.iter_mut().enumerate() {
        *left = a.row(i, panel.pairs.len());
    }
    let block_pairs = panel.block_len / 2;
    let blocks = panel.pairs.chunks_exact(block_pairs).zip(panel.scales);
    for (block, (pairs, scales)) in blocks.enumerate() {
        let mut left = [&[0i32; 0][..]; W];
        for i in 0..W {
            left[i] = &lefts[i].pairs[block * block_pairs..][..block_pairs];
        }
        let mut sums = [[_mm512_setzero_si512(); R]; W];
        for (p, pair) in pairs.iter().enumerate() {
            let parts = pair.as_chunks::<16>().0;
            let mut y = [_mm512_setzero_si512(); R];
            for part in 0..R {
                y[part] = load_words_512(&parts[part]);
            }
            for i in 0..W {
                let x = _mm512_set1_epi32(left[i][p]);
                for part in 0..R {
                    // it saturates, which no sum reaches; its plain twin is compiled into two instructions
                    sums[i][part] = _mm512_dpwssds_epi32(sums[i][part], x, y[part]);
                }
            }
        }
        // the factors by themselves, so that the loop below is unrolled and the sums stay in registers
        let mut factors = [0f32; W];
        for i in 0..W {
            factors[i] = lefts[i].scales[block * panel.block_len / LEFT_BLOCK_LEN];
        }
        let parts = scales.as_chunks::<16>().0;
        for part in 0..R {
            let scales = load_512(&parts[part]);
            for i in 0..W {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(factors[i]));
                let sum = _mm512_cvtepi32_ps(sums[i][part]);
                totals[i][part] = _mm512_fmadd_ps(sum, scale, totals[i][part]);
            }
        }
    }
    for i in 0..W {
        let Some(parts) = rows[i].as_chunks_mut().0.first_chunk_mut::<R>() else {
            return;
        };
        for part in 0..R {
            store_512(&mut parts[part], totals[i][part]);
        }
    }
}
