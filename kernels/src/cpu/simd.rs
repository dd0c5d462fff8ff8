//! Vector instructions: which set runs, and the code that is written for one set in particular.
//!
//! Invariant: whatever the set, the same bits come out, but for products of bf16, which one set alone multiplies.

mod bf16;
mod few_rows;
mod integers;
mod isa;
mod keep;
mod nf4_panel;
mod panel;
mod prefetch;
mod q8_0_panel;
mod scores;
mod tile;
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_bf16;
#[cfg(target_arch = "x86_64")]
mod x86_few_rows;
#[cfg(target_arch = "x86_64")]
mod x86_integers;
#[cfg(target_arch = "x86_64")]
mod x86_keep;
#[cfg(target_arch = "x86_64")]
mod x86_vnni;

#[cfg(test)]
mod tests;

pub(crate) use bf16::{Bf16, PairRow, round_panel, round_row};
pub(crate) use few_rows::{FewRows, Q8_0TileView, Q8Column, nf4_multiply, q8_0_multiply};
pub(crate) use integers::{
    IntegerLeft, IntegerPanel, IntegerRow, IntegerRows, LEFT_BLOCK_LEN, Rounding, WEIGHT_UNIT, has_vnni,
    multiply_integers, nf4_few_integers, nf4_integers, q8_0_few_integers, q8_0_integers, round_left,
};
pub use isa::Isa;
pub(crate) use isa::{Set, versions};
pub(crate) use keep::draw_kept;
pub(crate) use nf4_panel::{Nf4TileView, nf4_columns, nf4_rows, nf4_run};
pub(crate) use panel::{HALF_COLUMNS, HalfRow, Panel, PanelMut};
pub(crate) use prefetch::prefetch;
pub(crate) use q8_0_panel::{q8_0_columns, q8_0_rows};
pub(crate) use scores::{KeyRow, SCORED_HEADS_MAX, Scored, score_pages};
pub(crate) use tile::{Start, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile};
pub(crate) use transpose::{transpose_bytes, transpose_floats};
