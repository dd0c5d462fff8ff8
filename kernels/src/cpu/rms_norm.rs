//! RMSNorm (Zhang & Sennrich 2019): `out = x * rstd * (weight + offset)`, `rstd = 1 / sqrt(mean(x²) + epsilon)`.
//!
//! Invariant: a row's `rstd` is the exact one rounded once to 32 bits, whatever the other rows are: its error would be
//! that of the whole row, which the sums of the products after it do not average out.

use super::math::{dot, sum_squares};
use super::simd::versions;
use super::{Cpu, check};
use crate::backend::RmsNormSpec;
use crate::error::Result;

const OP: &str = "rms_norm";
const OP_BACKWARD: &str = "rms_norm_backward";

pub(super) fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weight: &[f32],
    spec: RmsNormSpec,
    m: usize,
) -> Result<()> {
    let width = spec.width;
    check::setting(OP, "width", "at least 1", width > 0)?;
    let out = check::part_mut(OP, "out", out, &[m, width])?;
    let rstd = check::part_mut(OP, "rstd", rstd, &[m])?;
    let x = check::part(OP, "x", x, &[m, width])?;
    let weight = check::part(OP, "weight", weight, &[width])?;
    let rows = cpu.rows_per_task(m, width);
    let tasks = out
        .chunks_mut(rows * width)
        .zip(rstd.chunks_mut(rows))
        .zip(x.chunks(rows * width))
        .collect();
    cpu.each(tasks, m * width, |((out, rstd), x)| {
        forward_rows(cpu.isa, out, rstd, x, weight, spec)
    });
    Ok(())
}

pub(super) fn backward(
    cpu: &Cpu,
    dx: &mut [f32],
    [dy, x]: [&[f32]; 2],
    rstd: &[f32],
    weight: &[f32],
    spec: RmsNormSpec,
    m: usize,
) -> Result<()> {
    let width = spec.width;
    check::setting(OP_BACKWARD, "width", "at least 1", width > 0)?;
    let dx = check::part_mut(OP_BACKWARD, "dx", dx, &[m, width])?;
    let dy = check::part(OP_BACKWARD, "dy", dy, &[m, width])?;
    let x = check::part(OP_BACKWARD, "x", x, &[m, width])?;
    let rstd = check::part(OP_BACKWARD, "rstd", rstd, &[m])?;
    let weight = check::part(OP_BACKWARD, "weight", weight, &[width])?;
    let rows = cpu.rows_per_task(m, width);
    let inputs = dy
        .chunks(rows * width)
        .zip(x.chunks(rows * width))
        .zip(rstd.chunks(rows));
    let tasks = dx.chunks_mut(rows * width).zip(inputs).collect();
    cpu.each(tasks, m * width, |(dx, ((dy, x), rstd))| {
        backward_rows(cpu.isa, dx, dy, x, rstd, weight, spec);
    });
    Ok(())
}

versions! {
    fn forward_rows(out: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], spec: RmsNormSpec) {
        let rows = out.chunks_exact_mut(spec.width).zip(x.chunks_exact(spec.width));
        for ((out, x), rstd) in rows.zip(rstd) {
            let mean_square = sum_squares(x) / spec.width as f64;
            *rstd = (1.0 / (mean_square + f64::from(spec.epsilon)).sqrt()) as f32;
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * *rstd * (weight + spec.weight_offset);
            }
        }
    }
}

versions! {
    /// With `g = dy * (weight + offset)`: `dx += rstd * (g - x * rstd² * mean(g * x))`.
    fn backward_rows(
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        rstd: &[f32],
        weight: &[f32],
        spec: RmsNormSpec,
    ) {
        let width = spec.width;
        let mut g = vec![0f32; width];
        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((dx, dy), x), rstd) in rows.zip(rstd) {
            for ((g, dy), weight) in g.iter_mut().zip(dy).zip(weight) {
                *g = dy * (weight + spec.weight_offset);
            }
            let shared = dot(&g, x) / width as f32 * rstd * rstd;
            for ((dx, g), x) in dx.iter_mut().zip(&g).zip(x) {
                *dx += rstd * (g - x * shared);
            }
        }
    }
}
