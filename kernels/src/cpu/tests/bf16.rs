//! Products of operands rounded to bf16: in pairs where the machine multiplies them, else as rounded floats.

use half::bf16;

use super::products::blocks;
use super::support::*;
use crate::cpu::simd::round_row;
use crate::cpu::{Compute, Isa};
use crate::golden::assert_same_bits;
use crate::{Backend, Cpu, DoubleQuant, Format, HostWeight, Nf4Matrix};

/// A backend for each instruction set: the best one multiplies pairs, where the machine can.
fn rounding() -> Vec<Cpu> {
    let sets = Isa::all().into_iter();
    sets.map(|isa| Cpu::with_isa(Some(2), isa).unwrap().with_compute(Compute::Bf16))
        .collect()
}

fn rounded(values: &[f32]) -> Vec<f64> {
    values
        .iter()
        .map(|value| f64::from(bf16::from_f32(*value).to_f32()))
        .collect()
}

fn forward(cpu: &Cpu, weight: &HostWeight, x: &[f32], m: usize) -> Vec<f32> {
    let mut y = vec![0.0; m * weight.shape().0];
    let weight = cpu.load_weight(weight.clone()).unwrap();
    matmul(cpu, &mut y, x, &weight, m).unwrap();
    y
}

fn backward(cpu: &Cpu, weight: &HostWeight, dy: &[f32], m: usize) -> Vec<f32> {
    let mut dx = vec![0.0; m * weight.shape().1];
    let weight = cpu.load_weight(weight.clone()).unwrap();
    cpu.matmul_backward(&mut dx, &dy.to_vec(), &weight, m).unwrap();
    dx
}

fn weights() -> [HostWeight; 4] {
    let nf4 = |n, k| Nf4Matrix::quantize(n, k, &values(3, n * k), DoubleQuant::Yes).unwrap();
    [
        HostWeight::Nf4(nf4(70, 192)),
        HostWeight::Nf4(nf4(5, 64)),
        blocks(Format::Q8_0, 70, 160),
        HostWeight::from_f32(33, 31, &values(5, 33 * 31)).unwrap(),
    ]
}

#[test]
fn rounding_is_that_of_the_type() {
    let mut all = values(1, 1000);
    all.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        1.0 + f32::EPSILON,
    ]);
    // halfway between two neighbours, where the even one is below and where it is above
    all.extend([0x3f80_8000, 0x3f81_8000].map(f32::from_bits));
    for isa in Isa::all() {
        let mut out = vec![0.0; all.len()];
        round_row(isa, &all, &mut out);
        for (out, value) in out.iter().zip(&all) {
            assert_eq!(
                out.to_bits(),
                bf16::from_f32(*value).to_f32().to_bits(),
                "{value}"
            );
        }
        let mut nan = [0.0];
        round_row(isa, &[f32::from_bits(0x7fff_ffff)], &mut nan);
        assert!(nan[0].is_nan());
    }
}

#[test]
fn products_are_those_of_rounded_operands() {
    // sums are float32, of at most 192 terms
    const BOUND: f64 = 192.0 * f32::EPSILON as f64;
    for weight in weights() {
        let (n, k) = weight.shape();
        let w = rounded(&weight.to_f32());
        for m in [1, 3, 14, 33] {
            let (x, dy) = (values(1, m * k), values(2, m * n));
            let (exact_x, exact_dy) = (rounded(&x), rounded(&dy));
            let y: Vec<f64> = (0..m * n)
                .map(|at| (0..k).map(|p| exact_x[at / n * k + p] * w[at % n * k + p]).sum())
                .collect();
            let dx: Vec<f64> = (0..m * k)
                .map(|at| (0..n).map(|p| exact_dy[at / k * n + p] * w[p * k + at % k]).sum())
                .collect();
            for cpu in rounding() {
                assert_close(&forward(&cpu, &weight, &x, m), &y, BOUND);
                assert_close(&backward(&cpu, &weight, &dy, m), &dx, BOUND);
            }
        }
    }
}

#[test]
fn a_row_is_the_same_among_any_number_of_rows() {
    for cpu in rounding() {
        for weight in weights() {
            let (n, k) = weight.shape();
            let x = values(1, 40 * k);
            let all = forward(&cpu, &weight, &x, 40);
            for row in [0, 13, 39] {
                for m in [1, 2, 3, 4, 5].into_iter().filter(|m| row + m <= 40) {
                    let few = forward(&cpu, &weight, &x[row * k..(row + m) * k], m);
                    assert_same_bits(&few, &all[row * n..(row + m) * n]);
                }
            }
        }
    }
}

#[test]
fn a_nan_is_not_rounded_away() {
    for cpu in rounding() {
        let weight = HostWeight::from_f32(2, 3, &values(5, 6)).unwrap();
        let y = forward(&cpu, &weight, &[1.0, f32::from_bits(0x7fff_ffff), 2.0], 1);
        assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
    }
}

#[test]
fn names_are_read_and_written() {
    for compute in [Compute::F32, Compute::Bf16] {
        assert_eq!(compute.to_string().parse::<Compute>().unwrap(), compute);
    }
    assert!("fp16".parse::<Compute>().is_err());
}
