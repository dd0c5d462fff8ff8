//! Vector instructions: which set runs, and the code that is written for one set in particular.
//!
//! Invariant: whatever the set, the same bits come out.

mod isa;
mod nf4_panel;
mod tile;
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

pub use isa::Isa;
pub(crate) use isa::{Set, versions};
pub(crate) use nf4_panel::{Nf4View, nf4_columns, nf4_row, nf4_rows};
pub(crate) use tile::{Start, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile};
pub(crate) use transpose::{prefetch, transpose_bytes, transpose_floats};
