//! Operations on rows and single elements: norms, rotation, gates, additions, the optimizer.

use super::support::*;
use crate::{AdamwSpec, Backend, Cpu, GateActivation, RmsNormSpec};

const ACTIVATIONS: [GateActivation; 2] = [GateActivation::Silu, GateActivation::GeluTanh];

fn norm_forward(cpu: &Cpu, x: &[f32], weight: &[f32], spec: RmsNormSpec) -> (Vec<f32>, Vec<f32>) {
    let m = x.len() / spec.width;
    let (mut out, mut rstd) = (vec![0.0; x.len()], vec![0.0; m]);
    cpu.rms_norm(&mut out, &mut rstd, &x.to_vec(), &weight.to_vec(), spec, m)
        .unwrap();
    (out, rstd)
}

fn norm_backward(cpu: &Cpu, x: &[f32], dy: &[f32], weight: &[f32], spec: RmsNormSpec) -> Vec<f32> {
    let (_, rstd) = norm_forward(cpu, x, weight, spec);
    let mut dx = vec![0.0; x.len()];
    cpu.rms_norm_backward(
        &mut dx,
        &dy.to_vec(),
        &x.to_vec(),
        &rstd,
        &weight.to_vec(),
        spec,
        rstd.len(),
    )
    .unwrap();
    dx
}

#[test]
fn rms_norm_and_its_gradient() {
    for width in ODD_SIZES {
        let spec = RmsNormSpec {
            width,
            epsilon: 1e-5,
            weight_offset: 1.0,
        };
        let (x, weight, dy) = (values(1, 33 * width), values(2, width), values(3, 33 * width));
        let out = same_everywhere(|cpu| norm_forward(cpu, &x, &weight, spec).0);
        let mut expected = Vec::new();
        for row in x.chunks(width) {
            let mean: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
            let rstd = 1.0 / (mean + 1e-5).sqrt();
            expected.extend(
                row.iter()
                    .zip(&weight)
                    .map(|(&v, &w)| f64::from(v) * rstd * (1.0 + f64::from(w))),
            );
        }
        assert_close(&out, &expected, 1e-6);
        let dx = same_everywhere(|cpu| norm_backward(cpu, &x, &dy, &weight, spec));
        let cpu = cpu();
        // away from 0, where a row of one element turns sharply
        let x: Vec<f32> = x.iter().map(|v| v + 2.0 * v.signum()).collect();
        let dx_away = norm_backward(&cpu, &x, &dy, &weight, spec);
        assert_gradient(&x, &dx_away, |x| {
            weighted_sum(&norm_forward(&cpu, x, &weight, spec).0, &dy)
        });
        assert!(dx.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn the_rstd_of_a_norm_is_rounded_once() {
    for width in [1, 31, 576, 4096] {
        let spec = RmsNormSpec {
            width,
            epsilon: 1e-5,
            weight_offset: 0.0,
        };
        let (x, weight) = (values(4, 33 * width), vec![1.0; width]);
        let rstd = same_everywhere(|cpu| norm_forward(cpu, &x, &weight, spec).1);
        for (row, rstd) in x.chunks(width).zip(rstd) {
            let mean: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
            assert_eq!(rstd, (1.0 / (mean + f64::from(spec.epsilon)).sqrt()) as f32);
        }
    }
}

#[test]
fn rms_norm_backward_adds() {
    let spec = RmsNormSpec {
        width: 5,
        epsilon: 1e-5,
        weight_offset: 0.0,
    };
    let (x, weight, dy) = (values(1, 10), values(2, 5), values(3, 10));
    let cpu = cpu();
    let once = norm_backward(&cpu, &x, &dy, &weight, spec);
    let (_, rstd) = norm_forward(&cpu, &x, &weight, spec);
    let mut sum = vec![10.0; 10];
    cpu.rms_norm_backward(&mut sum, &dy, &x, &rstd, &weight, spec, 2)
        .unwrap();
    assert!(
        sum.iter()
            .zip(once)
            .all(|(sum, once)| (sum - 10.0 - once).abs() < 1e-5)
    );
}

#[test]
fn rope_turns_pairs_and_back() {
    let (m, heads, d) = (33, 3, 62);
    let x = values(1, m * heads * d);
    let positions: Vec<u32> = (0..m as u32).map(|i| i * 37 % 501).collect();
    let frequencies: Vec<f32> = (0..d / 2)
        .map(|i| 10_000f32.powf(-2.0 * i as f32 / d as f32))
        .collect();
    let turned = same_everywhere(|cpu| {
        let mut x = x.clone();
        cpu.rope(&mut x, &positions, &frequencies, heads, d, m).unwrap();
        x
    });
    let mut expected = vec![0f64; x.len()];
    for (row, position) in positions.iter().enumerate() {
        for head in 0..heads {
            for (i, frequency) in frequencies.iter().enumerate() {
                let at = (row * heads + head) * d + i;
                let (sin, cos) = f64::from(*position as f32 * frequency).sin_cos();
                let (a, b) = (f64::from(x[at]), f64::from(x[at + d / 2]));
                expected[at] = a * cos - b * sin;
                expected[at + d / 2] = b * cos + a * sin;
            }
        }
    }
    assert_close(&turned, &expected, 1e-6);
    let cpu = cpu();
    let mut back = turned.clone();
    cpu.rope_backward(&mut back, &positions, &frequencies, heads, d, m)
        .unwrap();
    assert_close(&back, &wide(&x), 1e-6);
    // a rotation's gradient is the rotation back
    let dy = values(2, x.len());
    let mut dx = dy.clone();
    cpu.rope_backward(&mut dx, &positions, &frequencies, heads, d, m)
        .unwrap();
    assert_gradient(&x, &dx, |x| {
        let mut x = x.to_vec();
        cpu.rope(&mut x, &positions, &frequencies, heads, d, m).unwrap();
        weighted_sum(&x, &dy)
    });
}

fn gate_forward(cpu: &Cpu, gate: &[f32], up: &[f32], activation: GateActivation) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    cpu.gated(&mut out, &gate.to_vec(), &up.to_vec(), activation, gate.len())
        .unwrap();
    out
}

#[test]
fn gates_and_their_gradients() {
    for len in ODD_SIZES {
        for activation in ACTIVATIONS {
            let gate: Vec<f32> = values(1, len).iter().map(|v| v * 6.0).collect();
            let (up, dout) = (values(2, len), values(3, len));
            let out = same_everywhere(|cpu| gate_forward(cpu, &gate, &up, activation));
            let expected: Vec<f64> = gate
                .iter()
                .zip(&up)
                .map(|(&g, &u)| {
                    let (g, u) = (f64::from(g), f64::from(u));
                    let gelu = 0.5
                        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh());
                    u * g
                        * if activation == GateActivation::Silu {
                            1.0 / (1.0 + (-g).exp())
                        } else {
                            gelu
                        }
                })
                .collect();
            assert_close(&out, &expected, 1e-6);
            let both = same_everywhere(|cpu| {
                let (mut dgate, mut dup) = (gate.clone(), up.clone());
                cpu.gated_backward(&mut dgate, &mut dup, &dout, activation, len)
                    .unwrap();
                [dgate, dup].concat()
            });
            let cpu = cpu();
            assert_gradient(&gate, &both[..len], |gate| {
                weighted_sum(&gate_forward(&cpu, gate, &up, activation), &dout)
            });
            assert_gradient(&up, &both[len..], |up| {
                weighted_sum(&gate_forward(&cpu, &gate, up, activation), &dout)
            });
        }
    }
}

#[test]
fn additions() {
    let x = values(1, 70_000);
    let sum = same_everywhere(|cpu| {
        let mut y = values(2, 70_000);
        cpu.add(&mut y, &x, 69_999).unwrap();
        y
    });
    let y = values(2, 70_000);
    assert!((0..69_999).all(|i| sum[i] == y[i] + x[i]));
    assert_eq!(sum[69_999], y[69_999]);
    let biased = same_everywhere(|cpu| {
        let mut y = values(2, 70_000);
        cpu.add_bias(&mut y, &x[..7].to_vec(), 7, 10_000).unwrap();
        y
    });
    assert!((0..70_000).all(|i| biased[i] == y[i] + x[i % 7]));
}

#[test]
fn sum_of_squares() {
    let x = values(1, 70_000);
    let expected: f64 = x.iter().map(|&value| f64::from(value).powi(2)).sum();
    let sums: Vec<f64> = backends()
        .iter()
        .map(|cpu| cpu.sum_squares(&x, 70_000).unwrap())
        .collect();
    assert!((sums[0] - expected).abs() < 1e-9 * expected);
    assert!(sums.iter().all(|sum| sum.to_bits() == sums[0].to_bits()));
}

#[test]
fn adamw_follows_its_formula() {
    let len = 257;
    let spec = |step| AdamwSpec {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.5,
    };
    let got = same_everywhere(|cpu| {
        let (mut params, mut first, mut second) = (values(1, len), vec![0.0; len], vec![0.0; len]);
        for step in 1..=5 {
            let grads = values(10 + u64::from(step), len);
            cpu.adamw(&mut params, &grads, &mut first, &mut second, spec(step), len)
                .unwrap();
        }
        params
    });
    let (mut params, mut first, mut second) = (wide(&values(1, len)), vec![0f64; len], vec![0f64; len]);
    for step in 1..=5 {
        for (i, grad) in wide(&values(10 + step as u64, len))
            .iter()
            .map(|g| g * 0.5)
            .enumerate()
        {
            first[i] = 0.9 * first[i] + 0.1 * grad;
            second[i] = 0.999 * second[i] + 0.001 * grad * grad;
            let mean = first[i] / (1.0 - 0.9f64.powi(step));
            let spread = second[i] / (1.0 - 0.999f64.powi(step));
            params[i] = params[i] * (1.0 - 0.01 * 0.1) - 0.01 * mean / (spread.sqrt() + 1e-8);
        }
    }
    assert_close(&got, &params, 1e-6);
}

#[test]
fn adamw_rounds_its_factors_once_as_torch_does() {
    let len = 100;
    let spec = AdamwSpec {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        step: 1,
        gradient_scale: 1.0,
    };
    let grads = values(1, len);
    for cpu in backends() {
        let (mut params, mut first, mut second) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        cpu.adamw(&mut params, &grads, &mut first, &mut second, spec, len)
            .unwrap();
        for (i, &grad) in grads.iter().enumerate() {
            // `1.0 - 0.999f32` is 0.00099998713.
            assert_eq!((first[i], second[i]), (0.1 * grad, 0.001 * grad * grad));
        }
    }
}
