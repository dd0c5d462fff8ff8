//! Rotary position embedding (Su et al. 2021), pairing element `i` with `i + D/2`.
//!
//! Invariant: the angle is `position * frequency` rounded to 32 bits, as the reference implementations have it; its
//! sine and cosine are then exact to 32 bits.

use super::simd::versions;
use super::{Cpu, check};
use crate::error::Result;

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    Forward,
    Back,
}

/// Turns `x [M, heads, D]` in place.
pub(super) fn rotate(
    cpu: &Cpu,
    x: &mut [f32],
    positions: &[u32],
    frequencies: &[f32],
    [n_heads, head_dim, m]: [usize; 3],
    turn: Turn,
) -> Result<()> {
    let op = if turn == Turn::Forward {
        "rope"
    } else {
        "rope_backward"
    };
    check::setting(op, "head_dim", "even", head_dim.is_multiple_of(2))?;
    let width = check::size(op, "row", &[n_heads, head_dim])?;
    let x = check::part_mut(op, "x", x, &[m, width])?;
    let positions = check::part(op, "positions", positions, &[m])?;
    let frequencies = check::part(op, "frequencies", frequencies, &[head_dim / 2])?;
    if x.is_empty() {
        return Ok(());
    }
    let rows = cpu.rows_per_task(m, 4 * width); // a sine weighs as much as several elements
    let tasks = x.chunks_mut(rows * width).zip(positions.chunks(rows)).collect();
    cpu.each(tasks, 4 * m * width, |(x, positions)| {
        let mut turns = vec![[0f32; 2]; frequencies.len()];
        for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
            for (out, frequency) in turns.iter_mut().zip(frequencies) {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                *out = [
                    cos as f32,
                    if turn == Turn::Forward {
                        sin as f32
                    } else {
                        -sin as f32
                    },
                ];
            }
            rotate_row(cpu.isa, row, &turns);
        }
    });
    Ok(())
}

versions! {
    fn rotate_row(row: &mut [f32], turns: &[[f32; 2]]) {
        for head in row.chunks_exact_mut(2 * turns.len()) {
            let (first, second) = head.split_at_mut(turns.len());
            for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
