//! Widens Q8_0 codes to floats while panels are packed.
//!
//! Invariant: an element is `scale * code`, one multiplication, wherever it is unpacked.

use super::isa::with_step;
use super::{
    HALF_COLUMNS, HalfRow, PanelMut, Q8_0TileView, Q8Column, TILE_COLUMNS, TileRow, transpose_bytes,
};

const BLOCK_LEN: usize = Q8_0TileView::BLOCK_LEN;

with_step!(
    [super::x86::widen_avx512, super::x86_avx2::widen_avx2, widen_portable],
    /// `panel[i][j] = scales[i / 32][j] * codes[i][j]`.
    fn q8_0_columns, columns_body,
    (codes: &[Q8Column], scales: &[TileRow], panel: PanelMut<'_>)
);

with_step!(
    [super::x86::widen_avx512, super::x86_avx2::widen_avx2, widen_portable],
    /// `panel[i][j] = scales[i] * codes[j][i]` of one block, for as many rows as the panel has.
    fn q8_0_rows, rows_body,
    (codes: &[Q8Column; BLOCK_LEN], scales: &TileRow, panel: PanelMut<'_>)
);

#[inline(always)]
fn columns_body(
    codes: &[Q8Column],
    scales: &[TileRow],
    mut panel: PanelMut<'_>,
    widen: impl Fn(&[u8; 16], &[f32; 16], &mut HalfRow),
) {
    let blocks = codes.chunks(BLOCK_LEN).zip(panel.chunks(BLOCK_LEN));
    for ((codes, mut panel), scales) in blocks.zip(scales) {
        for (codes, [out_low, out_high]) in codes.iter().zip(panel.rows()) {
            let ([low, high], [scales_low, scales_high]) = (codes.0.as_chunks().0, scales.as_chunks().0)
            else {
                return;
            };
            widen(low, scales_low, out_low);
            widen(high, scales_high, out_high);
        }
    }
}

#[inline(always)]
fn rows_body(
    codes: &[Q8Column; BLOCK_LEN],
    scales: &TileRow,
    panel: PanelMut<'_>,
    widen: impl Fn(&[u8; 16], &[f32; 16], &mut HalfRow),
) {
    let halves = [panel.low, panel.high].into_iter();
    for (half, columns) in halves.zip(codes.as_chunks::<HALF_COLUMNS>().0) {
        for (part, out) in half.chunks_mut(16).enumerate().take(TILE_COLUMNS / 16) {
            let mut bytes = [[0u8; 16]; HALF_COLUMNS];
            for (bytes, column) in bytes.iter_mut().zip(columns) {
                *bytes = column.0.as_chunks().0[part];
            }
            let rows = transpose_bytes(&bytes);
            for ((codes, out), scale) in rows.iter().zip(out).zip(&scales[16 * part..]) {
                widen(codes, &[*scale; 16], out);
            }
        }
    }
}

#[inline(always)]
fn widen_portable(codes: &[u8; 16], scales: &[f32; 16], out: &mut HalfRow) {
    for ((out, code), scale) in out.iter_mut().zip(codes).zip(scales) {
        *out = scale * f32::from(code.cast_signed());
    }
}
