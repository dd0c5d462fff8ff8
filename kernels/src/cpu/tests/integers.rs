//! Products of integers: exact within a block, and near to the products of floats.

use super::products::blocks;
use super::support::*;
use crate::cpu::{Compute, Isa};
use crate::golden::assert_same_bits;
use crate::{Backend, Cpu, DoubleQuant, Format, HostWeight, Nf4Matrix};

fn forward(cpu: &Cpu, weight: &HostWeight, x: &[f32], m: usize) -> Vec<f32> {
    let mut y = vec![0.0; m * weight.shape().0];
    let weight = cpu.load_weight(weight.clone()).unwrap();
    matmul(cpu, &mut y, x, &weight, m).unwrap();
    y
}

fn integers(isa: Isa) -> Cpu {
    Cpu::with_isa(Some(2), isa).unwrap().with_compute(Compute::Int16)
}

fn nf4(n: usize, k: usize) -> HostWeight {
    HostWeight::Nf4(Nf4Matrix::quantize(n, k, &values(3, n * k), DoubleQuant::Yes).unwrap())
}

/// Weights that are multiplied as integers: rows in every remainder, and K of 832, which every set takes in parts, some of
/// which end with a shorter one.
fn weights() -> [HostWeight; 7] {
    [
        nf4(70, 192),
        nf4(5, 64),
        nf4(33, 576),
        blocks(Format::Q8_0, 70, 192),
        blocks(Format::Q8_0, 16, 320),
        nf4(33, 832),
        blocks(Format::Q8_0, 70, 832),
    ]
}

#[test]
fn every_set_gives_the_same_bits_and_a_row_those_it_has_alone() {
    for weight in weights() {
        let (n, k) = weight.shape();
        for m in [1, 2, 5, 6, 7, 12, 13, 31] {
            let x = values(4, m * k);
            let portable = forward(&integers(*Isa::all().last().unwrap()), &weight, &x, m);
            for isa in Isa::all() {
                assert_same_bits(&forward(&integers(isa), &weight, &x, m), &portable);
            }
            for (row, y) in x.chunks(k).zip(portable.chunks(n)) {
                let alone = forward(&integers(Isa::detect()), &weight, row, 1);
                assert_same_bits(&alone, y);
            }
        }
    }
}

#[test]
fn they_are_near_to_products_of_floats() {
    for weight in weights() {
        let k = weight.shape().1;
        let x = values(5, 9 * k);
        let exact = forward(&Cpu::new(Some(2)).unwrap(), &weight, &x, 9);
        let got = forward(&integers(Isa::detect()), &weight, &x, 9);
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
        };
        let off = norm(&mut got.iter().zip(&exact).map(|(got, exact)| got - exact));
        let error = off / norm(&mut exact.iter().copied());
        // half a unit of 4095 and of 8191, evenly spread: 7e-5 and 4e-5 of the largest
        assert!(error > 0.0 && error < 3e-4, "{:?}: {error}", weight.shape());
    }
}

#[test]
fn the_largest_operands_do_not_overflow() {
    // levels 1 and -1 in every place, inputs at their largest
    for sign in [1.0, -1.0] {
        let weight = Nf4Matrix::quantize(4, 64, &[sign; 256], DoubleQuant::No).unwrap();
        let y = forward(&integers(Isa::detect()), &HostWeight::Nf4(weight), &[3.0; 64], 1);
        for value in y {
            assert!((value - sign * 192.0).abs() < 1e-4, "{value}");
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(6, 2 * 192);
        x[200] = bad;
        let y = forward(&integers(Isa::detect()), &nf4(70, 192), &x, 2);
        assert!(y[..70].iter().all(|value| value.is_finite()));
        assert!(y[70..].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn nothing_becomes_of_nothing_and_of_almost_nothing() {
    let y = forward(&integers(Isa::detect()), &nf4(70, 192), &[0.0; 192], 1);
    assert!(y.iter().all(|value| *value == 0.0));
    let y = forward(&integers(Isa::detect()), &nf4(70, 192), &[1e-42; 192], 1);
    assert!(y.iter().all(|value| value.abs() < 1e-37));
}

#[test]
fn other_weights_and_other_products_are_those_of_floats() {
    let exact = Cpu::new(Some(2)).unwrap();
    let cpu = integers(Isa::detect());
    for weight in [
        HostWeight::from_f32(33, 31, &values(5, 33 * 31)).unwrap(),
        blocks(Format::Q8_0, 70, 160), // rows that are no whole blocks of 64
    ] {
        let x = values(7, 3 * weight.shape().1);
        assert_same_bits(&forward(&cpu, &weight, &x, 3), &forward(&exact, &weight, &x, 3));
    }
    let backward = |cpu: &Cpu| {
        let mut dx = vec![0.0; 3 * 192];
        let weight = cpu.load_weight(nf4(70, 192)).unwrap();
        cpu.matmul_backward(&mut dx, &values(8, 3 * 70), &weight, 3)
            .unwrap();
        dx
    };
    assert_same_bits(&backward(&cpu), &backward(&exact));
}
