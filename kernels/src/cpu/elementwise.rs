//! The residual stream's addition and the bias.
//!
//! Invariant: one addition per element.

use super::simd::versions;
use super::{Cpu, check};
use crate::error::Result;

/// `y[..len] += x[..len]`.
pub(super) fn add(cpu: &Cpu, y: &mut [f32], x: &[f32], len: usize) -> Result<()> {
    let y = check::part_mut("add", "y", y, &[len])?;
    let x = check::part("add", "x", x, &[len])?;
    let chunk = cpu.rows_per_task(len, 1);
    let tasks = y.chunks_mut(chunk).zip(x.chunks(chunk)).collect();
    cpu.each(tasks, len, |(y, x)| add_to(cpu.isa, y, x));
    Ok(())
}

/// `y [M, N] += bias [N]` in every row.
pub(super) fn add_bias(cpu: &Cpu, y: &mut [f32], bias: &[f32], n: usize, m: usize) -> Result<()> {
    let y = check::part_mut("add_bias", "y", y, &[m, n])?;
    let bias = check::part("add_bias", "bias", bias, &[n])?;
    if y.is_empty() {
        return Ok(());
    }
    let rows = cpu.rows_per_task(m, n);
    cpu.each(y.chunks_mut(rows * n).collect(), m * n, |y| {
        y.chunks_exact_mut(n).for_each(|row| add_to(cpu.isa, row, bias));
    });
    Ok(())
}

versions! {
    fn add_to(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}
