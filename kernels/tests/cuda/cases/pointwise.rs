//! The gated feed-forward, the residual stream, biases.
//!
//! Invariant: see the table.

use llamaduo_kernels::{Backend, GateActivation};

use super::LENGTHS;
use crate::case::{BF16, Case, Output, activations, numbers};

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for len in LENGTHS {
        for activation in [GateActivation::Silu, GateActivation::GeluTanh] {
            gated(cases, activation, len);
            gated_backward(cases, activation, len);
        }
        add(cases, len);
    }
    for (m, n) in [(1, 1), (3, 31), (33, 33), (2, 257), (1, 1030)] {
        add_bias(cases, m, n);
    }
}

fn gated(cases: &mut Vec<Case>, activation: GateActivation, len: usize) {
    cases.push(Case::new(
        format!("gated: {activation:?}, {len}"),
        move |cpu, cuda| {
            // large enough that both ends of the sigmoid are met
            let gate: Vec<f32> = activations(10, len).iter().map(|value| value * 8.0).collect();
            let up = activations(11, len);
            let mut expected = vec![0.0; len];
            cpu.gated(&mut expected, &gate, &up, activation, len)?;
            let mut out = cuda.alloc_act(len)?;
            cuda.gated(
                &mut out,
                &cuda.upload_act(&gate)?,
                &cuda.upload_act(&up)?,
                activation,
                len,
            )?;
            let mut got = vec![0.0; len];
            cuda.read_act(&out, 0, &mut got)?;
            Ok(vec![Output {
                what: "out",
                expected,
                got,
                bound: BF16,
            }])
        },
    ));
}

fn gated_backward(cases: &mut Vec<Case>, activation: GateActivation, len: usize) {
    let name = format!("gated_backward: {activation:?}, {len}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let [dout, gate, up] = [12, 13, 14].map(|seed| activations(seed, len));
        let gate: Vec<f32> = gate.iter().map(|value| value * 4.0).collect();
        let (mut dgate, mut dup) = (cuda.upload_act(&gate)?, cuda.upload_act(&up)?);
        cuda.gated_backward(&mut dgate, &mut dup, &cuda.upload_act(&dout)?, activation, len)?;
        let (mut expected_gate, mut expected_up) = (gate, up);
        cpu.gated_backward(&mut expected_gate, &mut expected_up, &dout, activation, len)?;
        let (mut got_gate, mut got_up) = (vec![0.0; len], vec![0.0; len]);
        cuda.read_act(&dgate, 0, &mut got_gate)?;
        cuda.read_act(&dup, 0, &mut got_up)?;
        Ok(vec![
            Output {
                what: "dgate",
                expected: expected_gate,
                got: got_gate,
                bound: BF16,
            },
            Output {
                what: "dup",
                expected: expected_up,
                got: got_up,
                bound: BF16,
            },
        ])
    }));
}

fn add(cases: &mut Vec<Case>, len: usize) {
    cases.push(Case::new(format!("add: {len}"), move |cpu, cuda| {
        let (y, x) = (activations(15, len), activations(16, len));
        let mut expected = y.clone();
        cpu.add(&mut expected, &x, len)?;
        let mut out = cuda.upload_act(&y)?;
        cuda.add(&mut out, &cuda.upload_act(&x)?, len)?;
        let mut got = vec![0.0; len];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "y",
            expected,
            got,
            bound: BF16,
        }])
    }));
}

fn add_bias(cases: &mut Vec<Case>, m: usize, n: usize) {
    cases.push(Case::new(format!("add_bias: M {m}, N {n}"), move |cpu, cuda| {
        let (y, bias) = (activations(17, m * n), numbers(18, n));
        let mut expected = y.clone();
        cpu.add_bias(&mut expected, &bias, n, m)?;
        let mut out = cuda.upload_act(&y)?;
        cuda.add_bias(&mut out, &cuda.upload_f32(&bias)?, n, m)?;
        let mut got = vec![0.0; m * n];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "y",
            expected,
            got,
            bound: BF16,
        }])
    }));
}
