//! AdamW (Loshchilov & Hutter 2019) on flat buffers, and the sum of squares that clipping needs.
//!
//! Invariant: the operations per element are those of `torch.optim.AdamW` on the CPU, in its order, with factors that
//! are made in double precision and rounded once; torch may fuse a product into the sum after it.

use super::simd::versions;
use super::{Cpu, check, math};
use crate::backend::AdamwSpec;
use crate::error::Result;

/// Elements whose squares are summed before the sums are: fixed, so that the result does not depend on threads.
const SUM_LEN: usize = 1 << 14;

pub(super) fn step(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    [first_moment, second_moment]: [&mut [f32]; 2],
    spec: AdamwSpec,
    len: usize,
) -> Result<()> {
    const OP: &str = "adamw";
    let params = check::part_mut(OP, "params", params, &[len])?;
    let grads = check::part(OP, "grads", grads, &[len])?;
    let first = check::part_mut(OP, "first_moment", first_moment, &[len])?;
    let second = check::part_mut(OP, "second_moment", second_moment, &[len])?;
    check::setting(OP, "step", "at least 1", spec.step > 0)?;
    let chunk = cpu.rows_per_task(len, 1);
    let moments = first.chunks_mut(chunk).zip(second.chunks_mut(chunk));
    let tasks = params
        .chunks_mut(chunk)
        .zip(grads.chunks(chunk))
        .zip(moments)
        .collect();
    let factors = Factors::of(spec);
    cpu.each(tasks, 4 * len, |((params, grads), (first, second))| {
        update(cpu.isa, params, grads, first, second, factors);
    });
    Ok(())
}

/// What is the same for all elements.
#[derive(Clone, Copy)]
struct Factors {
    gradient_scale: f32,
    decay: f32,
    first_rest: f32,
    second_decay: f32,
    second_rest: f32,
    step_size: f32,
    second_root: f32,
    epsilon: f32,
}

impl Factors {
    fn of(spec: AdamwSpec) -> Self {
        let bias = |beta: f64| 1.0 - beta.powf(f64::from(spec.step));
        Self {
            gradient_scale: spec.gradient_scale,
            decay: (1.0 - spec.learning_rate * spec.weight_decay) as f32,
            first_rest: (1.0 - spec.beta1) as f32,
            second_decay: spec.beta2 as f32,
            second_rest: (1.0 - spec.beta2) as f32,
            step_size: (spec.learning_rate / bias(spec.beta1)) as f32,
            second_root: bias(spec.beta2).sqrt() as f32,
            epsilon: spec.epsilon as f32,
        }
    }
}

versions! {
    fn update(
        params: &mut [f32],
        grads: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        factors: Factors,
    ) {
        let moments = first.iter_mut().zip(second);
        for ((param, grad), (first, second)) in params.iter_mut().zip(grads).zip(moments) {
            let grad = grad * factors.gradient_scale;
            *first += factors.first_rest * (grad - *first);
            *second = factors.second_decay * *second + factors.second_rest * grad * grad;
            let root = second.sqrt() / factors.second_root + factors.epsilon;
            *param = *param * factors.decay - factors.step_size * *first / root;
        }
    }
}

/// Sum of squares in f64.
pub(super) fn sum_squares(cpu: &Cpu, values: &[f32], len: usize) -> Result<f64> {
    let values = check::part("sum_squares", "values", values, &[len])?;
    let mut sums = vec![0f64; values.len().div_ceil(SUM_LEN)];
    let tasks = sums.iter_mut().zip(values.chunks(SUM_LEN)).collect();
    cpu.each(tasks, len, |(sum, values)| {
        *sum = sum_squares_part(cpu.isa, values)
    });
    Ok(sums.iter().sum())
}

versions! {
    fn sum_squares_part(values: &[f32]) -> f64 {
        math::sum_squares(values)
    }
}
