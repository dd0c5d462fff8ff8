//! Products with weights of every form, and LoRA.

use std::sync::Arc;

use super::support::*;
use crate::cpu::Isa;
use crate::golden::assert_same_bits;
use crate::{
    Backend, Compute, Cpu, DoubleQuant, Dropout, Format, HostWeight, LinearForward, Lora, LoraForward,
    LoraSlot, Nf4Matrix,
};

fn nf4(n: usize, k: usize) -> HostWeight {
    HostWeight::Nf4(Nf4Matrix::quantize(n, k, &values(3, n * k), DoubleQuant::Yes).unwrap())
}

/// A matrix in a block format from bytes that are random but for the halves, which must be finite.
pub(super) fn blocks(format: Format, n: usize, k: usize) -> HostWeight {
    let len = format.bytes_for(k).unwrap() * n;
    let mut bytes: Vec<u8> = values(4, len)
        .iter()
        .map(|value| (value * 127.0) as i8 as u8)
        .collect();
    let halves: &[usize] = match format {
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        Format::F16 | Format::Bf16 => &[0],
        Format::F32 => return HostWeight::from_f32(n, k, &values(4, n * k)).unwrap(),
    };
    for (i, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
        for &at in halves {
            let value = half::f16::from_f32(0.01 + (i % 7) as f32 / 100.0);
            let bits = if format == Format::Bf16 {
                value.to_bits() | 0x3000
            } else {
                value.to_bits()
            };
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    HostWeight::blocks(n, k, format, Arc::new(bytes), 0).unwrap()
}

fn forward(cpu: &Cpu, weight: &HostWeight, x: &[f32], m: usize) -> Vec<f32> {
    let mut y = vec![0.0; m * weight.shape().0];
    let weight = cpu.load_weight(weight.clone()).unwrap();
    matmul(cpu, &mut y, x, &weight, m).unwrap();
    y
}

fn backward(cpu: &Cpu, weight: &HostWeight, dy: &[f32], m: usize) -> Vec<f32> {
    let mut dx = values(9, m * weight.shape().1);
    let weight = cpu.load_weight(weight.clone()).unwrap();
    cpu.matmul_backward(&mut dx, &dy.to_vec(), &weight, m).unwrap();
    dx
}

/// `y[i][j] = sum of x[i][p] * w(p, j)` as a chain of fused multiply-adds from `start`: the contract, bit for bit.
fn chains(
    m: usize,
    n: usize,
    k: usize,
    x: &[f32],
    start: &[f32],
    w: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let mut y = start.to_vec();
    for (i, row) in y.chunks_exact_mut(n).enumerate().take(m) {
        for (j, y) in row.iter_mut().enumerate() {
            for p in 0..k {
                *y = x[i * k + p].mul_add(w(p, j), *y);
            }
        }
    }
    y
}

fn check_weight(weight: &HostWeight, m: usize) {
    let (n, k) = weight.shape();
    let w = weight.to_f32();
    let x = values(1, m * k);
    let y = same_everywhere(|cpu| forward(cpu, weight, &x, m));
    assert_same_bits(&y, &chains(m, n, k, &x, &vec![0.0; m * n], |p, j| w[j * k + p]));
    let dy = values(2, m * n);
    let dx = same_everywhere(|cpu| backward(cpu, weight, &dy, m));
    assert_same_bits(&dx, &chains(m, k, n, &dy, &values(9, m * k), |p, j| w[p * k + j]));
}

#[test]
fn products_are_chains_in_every_odd_size() {
    for m in ODD_SIZES {
        for (n, k) in [(1, 1), (31, 33), (33, 31), (64, 257)] {
            check_weight(&HostWeight::from_f32(n, k, &values(5, n * k)).unwrap(), m.min(40));
            check_weight(&nf4(n, k), m.min(40));
        }
    }
    check_weight(&nf4(5, 64), 257);
    check_weight(&nf4(257, 320), 13);
    // more than the longest part of K, forward and backward, with a shorter last one
    check_weight(&nf4(33, 832), 13);
    check_weight(&nf4(800, 96), 13);
}

#[test]
fn products_are_chains_in_every_format() {
    let quantized = [
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Iq4Nl,
    ];
    for format in quantized {
        check_weight(&blocks(format, 33, 96), 3);
        check_weight(&blocks(format, 70, 320), 14);
    }
    for format in [Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K] {
        check_weight(&blocks(format, 33, 512), 3);
    }
    for format in [Format::F16, Format::Bf16, Format::F32] {
        check_weight(&blocks(format, 33, 31), 3);
    }
}

#[test]
fn a_row_is_the_same_among_any_number_of_rows() {
    let weight = nf4(100, 576);
    let cpu = cpu();
    let x = values(1, 1000 * 576);
    let (all, dy) = (forward(&cpu, &weight, &x, 1000), values(2, 1000 * 100));
    let dx = values(9, 1000 * 576);
    let weight_here = cpu.load_weight(weight.clone()).unwrap();
    let mut all_back = dx.clone();
    cpu.matmul_backward(&mut all_back, &dy, &weight_here, 1000)
        .unwrap();
    for m in [1, 2, 11, 12, 13, 32, 257] {
        assert_same_bits(&forward(&cpu, &weight, &x, m), &all[..m * 100]);
        let mut back = dx[..m * 576].to_vec();
        cpu.matmul_backward(&mut back, &dy, &weight_here, m).unwrap();
        assert_same_bits(&back, &all_back[..m * 576]);
    }
}

/// So many rows that a task of the forward product takes several tiles, with K in parts.
#[test]
fn rows_of_a_large_product_are_those_of_a_small_one() {
    const M: usize = 1100;
    const N: usize = 300;
    const K: usize = 1024;
    let weight = nf4(N, K);
    let (x, dy) = (values(1, M * K), values(2, M * N));
    for compute in [Compute::F32, Compute::Bf16, Compute::Int16] {
        for n_threads in [1, 2] {
            let cpu = Cpu::new(Some(n_threads)).unwrap().with_compute(compute);
            let (y, dx) = (forward(&cpu, &weight, &x, M), backward(&cpu, &weight, &dy, M));
            for row in [0, 1, 547, M - 1] {
                let alone = forward(&cpu, &weight, &x[row * K..][..K], 1);
                assert_same_bits(&y[row * N..][..N], &alone);
            }
            let rows = &dy[..13 * N];
            assert_same_bits(&dx[..13 * K], &backward(&cpu, &weight, rows, 13));
        }
    }
}

#[test]
fn few_rows_of_q8_0_are_those_of_many() {
    let weight = blocks(Format::Q8_0, 70, 160);
    for isa in Isa::all() {
        let cpu = Cpu::with_isa(Some(2), isa).unwrap();
        let x = values(1, 40 * 160);
        let all = forward(&cpu, &weight, &x, 40);
        for m in 1..=5 {
            assert_same_bits(&forward(&cpu, &weight, &x, m), &all[..m * 70]);
        }
    }
}

#[test]
fn a_product_over_nothing_is_zero() {
    let cpu = cpu();
    let weight = HostWeight::from_f32(3, 0, &[]).unwrap();
    assert_eq!(forward(&cpu, &weight, &[], 2), vec![0.0; 6]);
    assert_eq!(forward(&cpu, &nf4(3, 64), &[], 0), Vec::<f32>::new());
}

#[test]
fn embedding_picks_rows() {
    for weight in [
        nf4(10, 33),
        nf4(10, 64),
        blocks(Format::Q8_0, 10, 96),
        blocks(Format::F16, 10, 31),
    ] {
        let k = weight.shape().1;
        let w = weight.to_f32();
        let got = same_everywhere(|cpu| {
            let mut out = vec![0.0; 3 * k];
            let table = cpu.load_weight(weight.clone()).unwrap();
            cpu.embed(&mut out, &vec![7, 0, 9], &table, 2.0, 3).unwrap();
            out
        });
        let expected: Vec<f32> = [7, 0, 9]
            .iter()
            .flat_map(|&id| w[id * k..(id + 1) * k].iter().map(|x| x * 2.0))
            .collect();
        assert_same_bits(&got, &expected);
    }
    let cpu = cpu();
    let table = cpu.load_weight(nf4(10, 64)).unwrap();
    assert!(cpu.embed(&mut vec![0.0; 64], &vec![10], &table, 1.0, 1).is_err());
}

// ---- LoRA ----

const M: usize = 33;

fn slot() -> LoraSlot {
    LoraSlot {
        a_offset: 5,
        b_offset: 7 + 8 * 65,
        rank: 8,
        n_in: 65,
        n_out: 40,
        scale: 2.0,
    }
}

struct LoraCase {
    x: Vec<f32>,
    params: Vec<f32>,
    dy: Vec<f32>,
}

fn lora_case() -> LoraCase {
    let slot = slot();
    LoraCase {
        x: values(1, M * slot.n_in),
        params: values(2, slot.b_offset + slot.n_out * slot.rank + 3),
        dy: values(3, M * slot.n_out),
    }
}

fn lora_forward(cpu: &Cpu, x: &[f32], params: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
    let slot = slot();
    let (mut y, mut h) = (vec![0.0; M * slot.n_out], vec![0.0; M * slot.rank]);
    let zero = HostWeight::from_f32(slot.n_out, slot.n_in, &vec![0.0; slot.n_out * slot.n_in]).unwrap();
    let pair = LoraForward {
        h: &mut h,
        params: &params.to_vec(),
        slot,
        dropout,
    };
    let linear = LinearForward {
        y: &mut y,
        weight: &cpu.load_weight(zero).unwrap(),
        lora: Some(Lora::One(pair)),
    };
    cpu.linears(&x.to_vec(), &mut [linear], M).unwrap();
    (y, h)
}

/// `dx` and the gradients of the flat parameters, each added to what was there.
fn lora_backward(cpu: &Cpu, case: &LoraCase, dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
    let slot = slot();
    let (_, h) = lora_forward(cpu, &case.x, &case.params, dropout);
    let (mut dx, mut grads) = (vec![0.0; M * slot.n_in], vec![0.0; case.params.len()]);
    cpu.lora_backward(
        Some(&mut dx),
        &mut grads,
        &case.dy,
        &case.x,
        &h,
        &case.params,
        slot,
        dropout,
        M,
    )
    .unwrap();
    (dx, grads)
}

const DROPOUTS: [Option<Dropout>; 2] = [None, Some(Dropout { rate: 0.3, key: 77 })];

#[test]
fn lora_adds_two_products() {
    let (case, slot) = (lora_case(), slot());
    let y = same_everywhere(|cpu| lora_forward(cpu, &case.x, &case.params, None).0);
    let mut expected = vec![0.0; M * slot.n_out];
    for i in 0..M {
        for j in 0..slot.n_out {
            for r in 0..slot.rank {
                let h: f64 = (0..slot.n_in)
                    .map(|p| {
                        f64::from(case.x[i * slot.n_in + p])
                            * f64::from(case.params[slot.a_offset + r * slot.n_in + p])
                    })
                    .sum();
                expected[i * slot.n_out + j] +=
                    2.0 * h * f64::from(case.params[slot.b_offset + j * slot.rank + r]);
            }
        }
    }
    assert_close(&y, &expected, 1e-5);
}

#[test]
fn linears_of_one_input_are_chains_through_the_weight_and_then_the_pair() {
    let (case, slot) = (lora_case(), slot());
    let (x, n) = (&case.x, slot.n_out);
    let weights = [nf4(n, slot.n_in), nf4(70, slot.n_in)];
    let y = same_everywhere(|cpu| {
        let mut ys = [vec![1.0; M * n], vec![1.0; M * 70]];
        let mut h = vec![0.0; M * slot.rank];
        let on_device = weights.clone().map(|weight| cpu.load_weight(weight).unwrap());
        let [first, second] = &mut ys;
        let pair = LoraForward {
            h: &mut h,
            params: &case.params,
            slot,
            dropout: None,
        };
        let with_pair = LinearForward {
            y: first,
            weight: &on_device[0],
            lora: Some(Lora::One(pair)),
        };
        let without = LinearForward {
            y: second,
            weight: &on_device[1],
            lora: None,
        };
        cpu.linears(x, &mut [with_pair, without], M).unwrap();
        ys.concat()
    });
    let (a, b) = (&case.params[slot.a_offset..], &case.params[slot.b_offset..]);
    let product = |n: usize, weight: &HostWeight| {
        let w = weight.to_f32();
        chains(M, n, slot.n_in, x, &vec![0.0; M * n], |p, j| w[j * slot.n_in + p])
    };
    let h = chains(M, slot.rank, slot.n_in, x, &vec![0.0; M * slot.rank], |p, r| {
        a[r * slot.n_in + p]
    });
    let scaled: Vec<f32> = h.iter().map(|value| slot.scale * value).collect();
    let first = chains(M, n, slot.rank, &scaled, &product(n, &weights[0]), |r, j| {
        b[j * slot.rank + r]
    });
    assert_same_bits(&y, &[first, product(70, &weights[1])].concat());
}

#[test]
fn lora_gradients_are_finite_differences() {
    let (case, cpu) = (lora_case(), cpu());
    for dropout in DROPOUTS {
        let (dx, grads) = lora_backward(&cpu, &case, dropout);
        assert_gradient(&case.x, &dx, |x| {
            weighted_sum(&lora_forward(&cpu, x, &case.params, dropout).0, &case.dy)
        });
        assert_gradient(&case.params, &grads, |params| {
            weighted_sum(&lora_forward(&cpu, &case.x, params, dropout).0, &case.dy)
        });
    }
}

#[test]
fn lora_is_the_same_everywhere() {
    let case = lora_case();
    for dropout in DROPOUTS {
        same_everywhere(|cpu| {
            let (dx, grads) = lora_backward(cpu, &case, dropout);
            [lora_forward(cpu, &case.x, &case.params, dropout).0, dx, grads].concat()
        });
    }
}

#[test]
fn dropout_keeps_the_share_it_should_and_scales_it() {
    let cpu = cpu();
    let (m, k) = (1000, 64);
    // A is the identity, so h is the dropped input
    let mut params = vec![0.0; k * k + k];
    (0..k).for_each(|i| params[i * k + i] = 1.0);
    let slot = LoraSlot {
        a_offset: 0,
        b_offset: k * k,
        rank: k,
        n_in: k,
        n_out: 1,
        scale: 1.0,
    };
    let mut h = vec![0.0; m * k];
    let weight = cpu
        .load_weight(HostWeight::from_f32(1, k, &vec![0.0; k]).unwrap())
        .unwrap();
    let mut run = |rate: f32| {
        let pair = LoraForward {
            h: &mut h,
            params: &params,
            slot,
            dropout: Some(Dropout { rate, key: 5 }),
        };
        let linear = LinearForward {
            y: &mut vec![0.0; m],
            weight: &weight,
            lora: Some(Lora::One(pair)),
        };
        cpu.linears(&vec![1.0; m * k], &mut [linear], m)
    };
    assert!(run(1.0).is_err());
    run(0.25).unwrap();
    let kept = h.iter().filter(|&&value| value != 0.0).count();
    // six standard deviations of a binomial of 64 000 with p = 0.75 are 657
    assert!(kept.abs_diff(48_000) < 657, "{kept}");
    assert!(h.iter().all(|&value| value == 0.0 || value == 1.0 / 0.75));
}
