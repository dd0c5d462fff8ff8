//! Embedding: `out [M, C] = scale * table[ids]`.
//!
//! Invariant: an id outside the table is an error, never another row.

use super::simd::versions;
use super::{Cpu, CpuWeight, check};
use crate::error::Result;

const OP: &str = "embed";

pub(super) fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    ids: &[u32],
    table: &CpuWeight,
    scale: f32,
    m: usize,
) -> Result<()> {
    let (n_rows, width) = table.shape();
    let ids = check::part(OP, "ids", ids, &[m])?;
    check::below(OP, "id", ids, n_rows)?;
    let out = check::part_mut(OP, "out", out, &[m, width])?;
    if out.is_empty() {
        return Ok(());
    }
    let rows = out.chunks_mut(width).zip(ids).collect();
    cpu.each(rows, m * width, |(out, &id)| {
        table.decode(cpu.isa, id as usize, 0, out);
        multiply(cpu.isa, out, scale);
    });
    Ok(())
}

versions! {
    fn multiply(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}
