//! A link of integers: the left operand rounded to 14 bits, the weight's codes as integers.
//!
//! Invariant: see [`simd::multiply_integers`](crate::cpu::simd::multiply_integers): an element's sums are exact within a
//! block, and blocks follow in their order.

use std::ops::Range;

use super::left::Integers;
use super::{Link, Right, Start, Task, part_len};
use crate::cpu::Cpu;
use crate::cpu::simd::{IntegerLeft, IntegerPanel, TILE_COLUMNS, TILE_ROWS, multiply_integers};

/// Longest part of K: half a panel, which is used at once, is then 12 KiB. A multiple of 64.
const PART_MAX: usize = 384;

/// Most blocks of a part: those of Q8_0.
const BLOCKS_MAX: usize = PART_MAX / 32;

impl Cpu {
    /// The whole link, where both operands have integers; else does nothing and says so.
    pub(super) fn multiply_integers(&self, task: &mut Task<'_>, link: &Link<'_>) -> bool {
        let (Some(left), Right::Transposed(weight)) = (&link.left.integers, link.right) else {
            return false;
        };
        let Some(block_len) = weight.integer_block_len() else {
            return false;
        };
        if task.groups.len() == 1 {
            let range = link.left.groups.range(task.groups.start);
            let a = lefts(left, range.clone(), 0..link.left.k);
            let a = &a[..range.len()];
            // for all tiles or for none: whether it can is a matter of the weight and the rows
            let done = task.tiles.iter_mut().fold(false, |_, tile| {
                let rows = &mut tile.c.rows(0..range.len())[..range.len()];
                weight.multiply_few_integers(self.isa, tile.column, a, rows, task.start)
            });
            if done {
                return true;
            }
        }
        let mut room = self.scratch(PART_MAX / 2 * TILE_COLUMNS);
        let panel = bytemuck::cast_slice_mut::<f32, i32>(&mut room);
        let panel = panel.as_chunks_mut::<TILE_COLUMNS>().0;
        let mut scales = [[0f32; TILE_COLUMNS]; BLOCKS_MAX];
        let part_len = part_len(link.left.k, PART_MAX);
        for part in (0..link.left.k).step_by(part_len) {
            let part = part..(part + part_len).min(link.left.k);
            let panel = &mut panel[..part.len() / 2];
            let scales = &mut scales[..part.len() / block_len];
            for tile in &mut task.tiles {
                weight.pack_integers(self.isa, tile.column, part.start, panel, scales);
                let panel = IntegerPanel {
                    pairs: panel,
                    scales,
                    block_len,
                };
                let mut done = 0;
                for group in task.groups.clone() {
                    let range = link.left.groups.range(group);
                    let a = lefts(left, range.clone(), part.clone());
                    let rows = &mut tile.c.rows(done..done + range.len())[..range.len()];
                    multiply_integers(self.isa, &a[..range.len()], panel, rows, task.start);
                    done += range.len();
                }
            }
            task.start = Start::Current;
        }
        true
    }
}

/// Elements `part` of each of `rows`, which are at most 12.
fn lefts<'a>(left: &'a Integers<'_>, rows: Range<usize>, part: Range<usize>) -> [IntegerLeft<'a>; TILE_ROWS] {
    let mut lefts = [IntegerLeft::default(); TILE_ROWS];
    for (out, row) in lefts.iter_mut().zip(rows) {
        *out = left.row(row, part.clone());
    }
    lefts
}
