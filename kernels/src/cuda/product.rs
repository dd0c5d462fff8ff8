//! Launches of products on tensor cores.
//!
//! Invariant: where the number of rows says which kernel runs, that changes no bit of a row's result.

use super::launch::Launch;
use super::{Cuda, Kernel, check};
use crate::error::Result;

/// Most blocks along the second axis of a grid.
pub(super) const GRID_Y_MAX: usize = 0xffff;
/// Threads of a product's block.
pub(super) const PRODUCT_THREADS: u32 = 128;

/// Threads of a block of the kernels that make tiles.
const TILE_THREADS: u32 = 256;

/// Rows and columns of a block's tile.
pub(super) type Tile = [usize; 2];
/// Of a forward product.
pub(super) const FORWARD_TILE: Tile = [128, 128];
/// Of a backward product.
pub(super) const BACKWARD_TILE: Tile = [128, 256];
/// Of a product by one of Hopper's own kernels, in either direction.
pub(super) const HOPPER_TILE: Tile = [256, 128];

impl Cuda {
    /// A product of `m` rows whose columns make so many blocks. Blocks of the same columns follow one another, so that
    /// where there are many rows the weight is read from memory once.
    pub(super) fn product(
        &self,
        op: &'static str,
        [few, many]: [Kernel; 2],
        m: usize,
        n_column_blocks: usize,
    ) -> Result<Launch<'_>> {
        let (kernel, rows) = if m <= 16 { (few, 16) } else { (many, 32) };
        let expected = "no more than CUDA's grids hold; run this model on the CPU";
        check::setting(
            op,
            "the number of features",
            expected,
            n_column_blocks <= GRID_Y_MAX,
        )?;
        let grid = (
            check::blocks(op, "rows", m.div_ceil(rows))?,
            n_column_blocks as u32,
        );
        Ok(self.launch_grid(op, kernel, grid, PRODUCT_THREADS))
    }
}

impl Cuda {
    /// A product by tiles: a block for each of the output.
    pub(super) fn tiles(
        &self,
        op: &'static str,
        kernel: Kernel,
        [m, n_columns]: [usize; 2],
        [tile_rows, tile_columns]: Tile,
    ) -> Result<Launch<'_>> {
        let dims = [m.div_ceil(tile_rows), n_columns.div_ceil(tile_columns)];
        let n_blocks = check::blocks(op, "blocks", check::size(op, "blocks", &dims)?)?;
        Ok(self.launch(op, kernel, (n_blocks, TILE_THREADS)))
    }
}

/// The kernel for `m` rows, and how many blocks of it along the second axis.
pub(super) fn rows(op: &'static str, [few, many]: [Kernel; 2], m: usize) -> Result<(Kernel, u32)> {
    let (kernel, rows) = if m <= 16 { (few, 16) } else { (many, 32) };
    let n_blocks = m.div_ceil(rows);
    let expected = "at most 2,097,120; take a smaller batch";
    check::setting(op, "the number of rows", expected, n_blocks <= GRID_Y_MAX)?;
    Ok((kernel, n_blocks as u32))
}

/// The dimensions as the kernels take them.
pub(super) fn dims(op: &'static str, [m, n, k]: [usize; 3]) -> Result<[i32; 3]> {
    Ok([
        check::int(op, "M", m)?,
        check::int(op, "N", n)?,
        check::int(op, "K", k)?,
    ])
}
