//! Gated feed-forward (Shazeer 2020): `out = activation(gate) * up`.
//!
//! Invariant: both activations are `g * sigmoid(u(g))`, with `u = g` for SiLU and `u = 2 sqrt(2/π) (g + 0.044715 g³)`
//! for GELU, since `(1 + tanh(t)) / 2 = sigmoid(2t)`.

use super::math::sigmoid;
use super::simd::versions;
use super::{Cpu, check};
use crate::backend::GateActivation;
use crate::error::Result;

const OP: &str = "gated";
const OP_BACKWARD: &str = "gated_backward";

/// `2 sqrt(2/π)`.
const GELU_FACTOR: f32 = 1.595_769;
/// The cubic term of GELU's tanh approximation.
const GELU_CUBIC: f32 = 0.044_715;

pub(super) fn forward(
    cpu: &Cpu,
    out: &mut [f32],
    gate: &[f32],
    up: &[f32],
    activation: GateActivation,
    len: usize,
) -> Result<()> {
    let out = check::part_mut(OP, "out", out, &[len])?;
    let gate = check::part(OP, "gate", gate, &[len])?;
    let up = check::part(OP, "up", up, &[len])?;
    let chunk = cpu.rows_per_task(len, 1);
    let tasks = out
        .chunks_mut(chunk)
        .zip(gate.chunks(chunk))
        .zip(up.chunks(chunk))
        .collect();
    cpu.each(tasks, 4 * len, |((out, gate), up)| {
        forward_part(cpu.isa, out, gate, up, activation)
    });
    Ok(())
}

pub(super) fn backward(
    cpu: &Cpu,
    [gate, up]: [&mut [f32]; 2],
    dout: &[f32],
    activation: GateActivation,
    len: usize,
) -> Result<()> {
    let gate = check::part_mut(OP_BACKWARD, "gate", gate, &[len])?;
    let up = check::part_mut(OP_BACKWARD, "up", up, &[len])?;
    let dout = check::part(OP_BACKWARD, "dout", dout, &[len])?;
    let chunk = cpu.rows_per_task(len, 1);
    let tasks = gate
        .chunks_mut(chunk)
        .zip(up.chunks_mut(chunk))
        .zip(dout.chunks(chunk))
        .collect();
    cpu.each(tasks, 4 * len, |((gate, up), dout)| {
        backward_part(cpu.isa, gate, up, dout, activation);
    });
    Ok(())
}

/// `u(g)` and its derivative.
#[inline(always)]
fn inner(activation: GateActivation, g: f32) -> (f32, f32) {
    match activation {
        GateActivation::Silu => (g, 1.0),
        GateActivation::GeluTanh => {
            let square = g * g;
            let u = GELU_FACTOR * g * (1.0 + GELU_CUBIC * square);
            (u, GELU_FACTOR * (1.0 + 3.0 * GELU_CUBIC * square))
        }
    }
}

versions! {
    fn forward_part(out: &mut [f32], gate: &[f32], up: &[f32], activation: GateActivation) {
        for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
            let (u, _) = inner(activation, gate);
            *out = gate * sigmoid(u) * up;
        }
    }
}

versions! {
    /// `activation'(g) = s + g s (1 - s) u'(g)` with `s = sigmoid(u(g))`.
    fn backward_part(gate: &mut [f32], up: &mut [f32], dout: &[f32], activation: GateActivation) {
        for ((gate, up), dout) in gate.iter_mut().zip(up).zip(dout) {
            let (u, slope) = inner(activation, *gate);
            let s = sigmoid(u);
            let dgate = dout * *up * (s + *gate * s * (1.0 - s) * slope);
            *up = dout * *gate * s;
            *gate = dgate;
        }
    }
}
