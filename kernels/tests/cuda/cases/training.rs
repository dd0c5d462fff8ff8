//! Cross-entropy, AdamW, the sum of squares.
//!
//! Invariant: see the table.

use llamaduo_kernels::cuda::LossInputs;
use llamaduo_kernels::{AdamwSpec, Backend, HostWeight, NO_LABEL};

use super::LENGTHS;
use crate::case::{BF16, Bound, Case, EXACT, Output, activations, numbers};

/// Sums of f64 in another order, then cut to f32 to be compared.
const F64_AS_F32: Bound = Bound {
    absolute: 0.0,
    relative: 2e-7,
};

/// Gradients of logits, at most 0.5, are rounded to bf16 before they are multiplied with values below 2, and few of a row are
/// large. The sum is rounded once more.
const GRADIENT: Bound = Bound {
    absolute: 2.0 * 0.5 * 2.0 / 512.0,
    relative: BF16.relative,
};

/// Approximate exponentials of differences that are large: an error of 2 units in the last place of the exponent.
const LOSS: Bound = Bound {
    absolute: 1e-5,
    relative: 4e-6,
};

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for with_gradient in [true, false] {
        for (m, n_vocab, width) in [(1, 1, 1), (4, 31, 33), (33, 33, 31), (31, 257, 64), (9, 600, 40)] {
            cross_entropy(cases, [m, n_vocab, width], None, with_gradient);
            cross_entropy(cases, [m, n_vocab, width], Some(12), with_gradient);
        }
    }
    cross_entropy(cases, [257, 33, 8], Some(100), true);
    for len in LENGTHS {
        for step in [1, 7] {
            adamw(cases, step, len);
        }
        sum_squares(cases, len);
    }
    sum_squares(cases, 40_000);
}

/// `m` rows, of which some have no label, `n_rows_max` at a time.
fn cross_entropy(
    cases: &mut Vec<Case>,
    [m, n_vocab, width]: [usize; 3],
    n_rows_max: Option<usize>,
    with_gradient: bool,
) {
    let name = format!(
        "cross_entropy: M {m}, V {n_vocab}, C {width}, at most {n_rows_max:?} rows{}",
        if with_gradient { ", gradient" } else { "" }
    );
    cases.push(Case::new(name, move |cpu, cuda| {
        let labels: Vec<u32> = (0..m)
            .map(|row| match row % 5 {
                3 => NO_LABEL,
                _ => ((row + 1) * n_vocab * 3 / 4 % n_vocab) as u32,
            })
            .collect();
        let x = activations(19, m * width);
        let head = HostWeight::from_f32(n_vocab, width, &activations(20, n_vocab * width))?;
        let on_cpu = cpu.load_weight(head.clone())?;
        let (mut expected_losses, mut expected) = (vec![9.0; m], vec![9.0; m * width]);
        let dx = with_gradient.then_some(&mut expected);
        cpu.cross_entropy(&mut expected_losses, dx, &x, &on_cpu, &labels, 0.5, m)?;
        let mut losses = cuda.upload_f32(&vec![9.0; m])?;
        let mut dx = cuda.upload_act(&vec![9.0; m * width])?;
        let inputs = LossInputs {
            x: &cuda.upload_act(&x)?,
            head: &cuda.load_weight(head)?,
            labels: &labels,
            loss_scale: 0.5,
        };
        let gradient = with_gradient.then_some(&mut dx);
        match n_rows_max {
            None => cuda.cross_entropy(&mut losses, gradient, inputs)?,
            Some(n_rows_max) => cuda.cross_entropy_by(&mut losses, gradient, inputs, n_rows_max)?,
        }
        let (mut got_losses, mut got) = (vec![0.0; m], vec![0.0; m * width]);
        cuda.read_f32(&losses, 0, &mut got_losses)?;
        cuda.read_act(&dx, 0, &mut got)?;
        Ok(vec![
            Output {
                what: "losses",
                expected: expected_losses,
                got: got_losses,
                bound: LOSS,
            },
            Output {
                what: "dx",
                expected,
                got,
                bound: GRADIENT,
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
