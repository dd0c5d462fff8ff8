//! Vector instructions: which set runs, and the code that is written for one set in particular.
//!
//! Invariant: whatever the set, the same bits come out.

mod few_rows;
mod isa;
mod nf4_panel;
mod tile;
mod transpose;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

pub(crate) use few_rows::nf4_multiply;
pub use isa::Isa;
pub(crate) use isa::{Set, versions};
pub(crate) use nf4_panel::{Nf4TileView, nf4_columns, nf4_rows, nf4_run};
pub(crate) use tile::{Start, TILE_COLUMNS, TILE_ROWS, TileRow, multiply_tile};
pub(crate) use transpose::{prefetch, transpose_bytes, transpose_floats};
