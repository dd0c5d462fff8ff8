//! Cross-entropy, AdamW, the sum of squares.
//!
//! Invariant: see the table.

use llamaduo_kernels::{AdamwSpec, Backend, HostWeight, NO_LABEL};

use super::LENGTHS;
use crate::case::{BF16, Bound, Case, EXACT, Output, numbers};

/// Sums of f64 in another order, then cut to f32 to be compared.
const F64_AS_F32: Bound = Bound {
    absolute: 0.0,
    relative: 2e-7,
};

/// Approximate exponentials of differences that are large: an error of 2 units in the last place of the exponent.
const LOSS: Bound = Bound {
    absolute: 1e-5,
    relative: 4e-6,
};

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for n_vocab in [1, 31, 33, 257, 600] {
        cross_entropy(cases, n_vocab, true);
        cross_entropy(cases, n_vocab, false);
    }
    for len in LENGTHS {
        for step in [1, 7] {
            adamw(cases, step, len);
        }
        sum_squares(cases, len);
    }
    sum_squares(cases, 40_000);
}

fn cross_entropy(cases: &mut Vec<Case>, n_vocab: usize, with_gradient: bool) {
    let name = format!(
        "cross_entropy: M 4, V {n_vocab}{}",
        if with_gradient { ", gradient" } else { "" }
    );
    cases.push(Case::new(name, move |cpu, cuda| {
        let m = 4;
        let labels = vec![n_vocab as u32 - 1, NO_LABEL, 0, n_vocab as u32 / 2];
        let logits: Vec<f32> = numbers(19, m * n_vocab).iter().map(|value| value * 6.0).collect();
        // A head that is the identity makes the CPU's inputs logits, and its input gradient theirs.
        let identity: Vec<f32> = (0..n_vocab * n_vocab)
            .map(|i| f32::from(i / n_vocab == i % n_vocab))
            .collect();
        let head = cpu.load_weight(HostWeight::from_f32(n_vocab, n_vocab, &identity)?)?;
        let (mut expected_losses, mut expected) = (vec![0.0; m], vec![0.0; m * n_vocab]);
        let dx = with_gradient.then_some(&mut expected);
        cpu.cross_entropy(&mut expected_losses, dx, &logits, &head, &labels, 0.5, m)?;
        let (mut losses, mut dlogits) = (cuda.alloc_f32(m)?, cuda.alloc_act(m * n_vocab)?);
        let logits = cuda.upload_f32(&logits)?;
        let gradient = with_gradient.then_some(&mut dlogits);
        cuda.softmax_cross_entropy(&mut losses, gradient, &logits, &labels, 0.5, n_vocab)?;
        let (mut got_losses, mut got) = (vec![0.0; m], vec![0.0; m * n_vocab]);
        cuda.read_f32(&losses, 0, &mut got_losses)?;
        cuda.read_act(&dlogits, 0, &mut got)?;
        Ok(vec![
            Output {
                what: "losses",
                expected: expected_losses,
                got: got_losses,
                bound: LOSS,
            },
            Output {
                what: "dlogits",
                expected,
                got,
                bound: BF16,
            },
        ])
    }));
}

fn adamw(cases: &mut Vec<Case>, step: u32, len: usize) {
    cases.push(Case::new(
        format!("adamw: step {step}, {len}"),
        move |cpu, cuda| {
            let spec = AdamwSpec {
                learning_rate: 2e-4,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.01,
                step,
                gradient_scale: 0.37,
            };
            let [params, grads, first] = [20, 21, 22].map(|seed| numbers(seed, len));
            let second: Vec<f32> = numbers(23, len).iter().map(|value| value.abs()).collect();
            let mut expected = [params.clone(), first.clone(), second.clone()];
            let [p, f, s] = &mut expected;
            cpu.adamw(p, &grads, f, s, spec, len)?;
            let mut held = [
                cuda.upload_f32(&params)?,
                cuda.upload_f32(&first)?,
                cuda.upload_f32(&second)?,
            ];
            let [p, f, s] = &mut held;
            cuda.adamw(p, &cuda.upload_f32(&grads)?, f, s, spec, len)?;
            let names = ["params", "first moment", "second moment"];
            names
                .into_iter()
                .zip(expected)
                .zip(&held)
                .map(|((what, expected), held)| {
                    let mut got = vec![0.0; len];
                    cuda.read_f32(held, 0, &mut got)?;
                    Ok(Output {
                        what,
                        expected,
                        got,
                        bound: EXACT,
                    })
                })
                .collect()
        },
    ));
}

fn sum_squares(cases: &mut Vec<Case>, len: usize) {
    cases.push(Case::new(format!("sum_squares: {len}"), move |cpu, cuda| {
        let values = numbers(24, len);
        let expected = vec![cpu.sum_squares(&values, len)? as f32];
        let got = vec![cuda.sum_squares(&cuda.upload_f32(&values)?, len)? as f32];
        Ok(vec![Output {
            what: "sum",
            expected,
            got,
            bound: F64_AS_F32,
        }])
    }));
}
