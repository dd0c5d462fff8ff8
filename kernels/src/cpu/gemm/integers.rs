//! A link of integers: the left operand rounded to 14 bits, the weight's codes as integers.
//!
//! Invariant: see [`simd::multiply_integers`](crate::cpu::simd::multiply_integers): an element's sums are exact within a
//! block, and blocks follow in their order.

use super::{Link, Right, Start, Task, part_len};
use crate::cpu::Cpu;
use crate::cpu::simd::{
    IntegerLeft, IntegerPanel, Isa, TILE_COLUMNS, TILE_ROWS, has_vnni, multiply_integers,
};

/// Longest part of K, a multiple of 64: as with floats, half a panel, 12 KiB, stays in the first cache, or with VNNI a whole
/// one, 48 KiB, in the second.
fn longest_part(isa: Isa) -> usize {
    match has_vnni(isa) {
        true => PART_MAX,
        false => PART_MAX / 2,
    }
}

/// The longest of all.
const PART_MAX: usize = 768;

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
        if let (1, [tile]) = (task.groups.len(), &mut task.tiles[..]) {
            let range = link.left.groups.range(task.groups.start);
            let mut a = [IntegerLeft::default(); TILE_ROWS];
            for (a, row) in a.iter_mut().zip(range.clone()) {
                *a = left.row(row);
            }
            let a = &a[..range.len()];
            let rows = &mut tile.c.rows(0..range.len())[..range.len()];
            if weight.multiply_few_integers(self.isa, tile.column, a, rows, task.start) {
                return true;
            }
        }
        let part_len = part_len(link.left.k, longest_part(self.isa));
        let mut room = self.scratch(part_len / 2 * TILE_COLUMNS);
        let panel = bytemuck::cast_slice_mut::<f32, i32>(&mut room);
        let panel = panel.as_chunks_mut::<TILE_COLUMNS>().0;
        let mut scales = [[0f32; TILE_COLUMNS]; BLOCKS_MAX];
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
                    let a = left.rows(range.start, part.start);
                    let rows = &mut tile.c.rows(done..done + range.len())[..range.len()];
                    multiply_integers(self.isa, a, panel, rows, task.start);
                    done += range.len();
                }
            }
            task.start = Start::Current;
        }
        true
    }
}
