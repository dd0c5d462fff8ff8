//! Products with weights.
//!
//! Invariant: see the table.

use std::sync::Arc;

use half::f16;
use llamaduo_kernels::cuda::{CudaAct, CudaWeight};
use llamaduo_kernels::nf4::{BLOCK_LEN, CODE_VALUES};
use llamaduo_kernels::{Backend, Cuda, DoubleQuant, Format, HostWeight, LinearForward, Nf4Matrix};

use super::documents::scaled;
use crate::case::{BF16, Bound, Case, EXACT, Output, activations, numbers, rounded};

/// Each value of W is rounded to bf16: an error of at most 2^-9 of it, evenly spread, so 2^-9 / sqrt(3) in the mean.
/// Inputs and weights have a root mean square of 0.8 here, and errors of either sign add up as the root of their
/// number; 6 standard deviations. The sum is rounded once more.
pub(super) fn product(n_terms: usize) -> Bound {
    Bound {
        absolute: 6.0 * 0.8 * 0.8 / 512.0 / 3f64.sqrt() * (n_terms as f64).sqrt(),
        relative: BF16.relative,
    }
}

/// The backward, and Hopper's own forward, round codes to bf16, as the other forward does, and once more when the scale is on
/// them: twice as much.
pub(super) fn product_of_scaled(n_terms: usize) -> Bound {
    let once = product(n_terms);
    Bound {
        absolute: 2.0 * once.absolute,
        ..once
    }
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for (n, k) in [(1, 64), (31, 64), (33, 128), (96, 320), (257, 256), (64, 640)] {
        dequantize(cases, n, k);
        for format in [Format::Bf16, Format::F32, Format::Q8_0] {
            quantize(cases, n, k, format);
        }
        for m in [1, 8, 16, 17, 31, 33] {
            forward(cases, m, n, k);
            backward(cases, m, n, k);
        }
    }
    // the last has work for all four warps in both directions, and a width of single elements
    for (n, k) in [(1, 1), (31, 33), (33, 31), (40, 264), (257, 136), (160, 257)] {
        for m in [1, 16, 17, 33, 130] {
            bf16_weight(cases, m, n, k);
        }
    }
    // many rows: stages of a ring in use again, tiles and pieces that are not there, scales of either kind, and more rows
    // of blocks than a band has
    for (m, n, k) in [
        (65, 31, 64),
        (66, 257, 128),
        (70, 33, 640),
        (129, 136, 320),
        (2100, 130, 64),
    ] {
        forward(cases, m, n, k);
    }
    for (m, n, k) in [(129, 257, 320), (129, 136, 640), (257, 40, 64), (2100, 8, 320)] {
        backward(cases, m, n, k);
    }
    // so many columns that each warp of the kernels for few rows has its ring filled again, and the last round three tiles
    for (n, k) in [(33, 2240), (40, 2240)] {
        for m in [1, 9, 17, 65] {
            forward_bits(cases, m, n, k);
        }
    }
    for (n, k) in [(33, 64), (40, 64), (200, 64), (257, 320)] {
        backward_bits(cases, n, k);
    }
}

/// Both sides have the same bf16 weights; products are exact, so only f32 sums differ.
pub(super) const SAME_WEIGHTS: Bound = Bound {
    absolute: 1e-4,
    relative: BF16.relative,
};

/// The same without a rounding to bf16.
const LOGITS: Bound = Bound {
    absolute: 3e-5,
    relative: 1e-5,
};

/// A linear without a pair.
fn plain<'a>(y: &'a mut CudaAct, weight: &'a CudaWeight) -> LinearForward<'a, Cuda> {
    LinearForward {
        y,
        weight,
        lora: None,
    }
}

/// Half of the shapes are doubly quantized.
pub(super) fn weight(n: usize, k: usize) -> Result<Nf4Matrix, llamaduo_kernels::Error> {
    let double = if n.is_multiple_of(2) {
        DoubleQuant::No
    } else {
        DoubleQuant::Yes
    };
    Nf4Matrix::quantize(n, k, &numbers(30, n * k), double)
}

fn dequantize(cases: &mut Vec<Case>, n: usize, k: usize) {
    cases.push(Case::new(
        format!("dequantize_nf4: N {n}, K {k}"),
        move |_, cuda| {
            let weight = weight(n, k)?;
            let mut w = cuda.alloc_act(n * k)?;
            let CudaWeight::Nf4(packed) = cuda.load_weight(HostWeight::Nf4(weight.clone()))? else {
                panic!("NF4 stays NF4");
            };
            cuda.dequantize_nf4(&mut w, &packed)?;
            let mut got = vec![0.0; n * k];
            cuda.read_act(&w, 0, &mut got)?;
            Ok(vec![Output {
                what: "w",
                expected: rounded(&weight.dequantize()),
                got,
                bound: EXACT,
            }])
        },
    ));
}

/// `n * k` values in a file's format. Some blocks hold what is hard: nothing, the tiniest numbers, exact ties between
/// codes; with `f32` also what is no number.
fn stored(n: usize, k: usize, format: Format) -> Result<HostWeight, llamaduo_kernels::Error> {
    let mut values = numbers(39, n * k);
    for (index, block) in values.chunks_mut(64).enumerate() {
        match index % 7 {
            1 => block.fill(0.0),
            2 => block.iter_mut().for_each(|value| *value *= 1e-38),
            // the largest is 1, so what is halfway between two codes stays there
            3 => block
                .iter_mut()
                .zip(CODE_VALUES.windows(2).cycle())
                .for_each(|(value, codes)| *value = (codes[0] + codes[1]) / 2.0),
            _ => {}
        }
        if index % 7 == 3 {
            block[0] = 1.0;
        }
        if index % 7 == 5 && format == Format::F32 {
            block[5] = if index % 2 == 0 { f32::INFINITY } else { f32::NAN };
        }
    }
    let bytes: Vec<u8> = match format {
        Format::Bf16 => values
            .iter()
            .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
            .collect(),
        Format::Q8_0 => values
            .chunks(32)
            .flat_map(|run| {
                let scale = f16::from_f32(1.0 / 64.0).to_le_bytes();
                let codes = run.iter().map(|&value| (value * 63.0) as i8 as u8);
                scale.into_iter().chain(codes).collect::<Vec<u8>>()
            })
            .collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    HostWeight::blocks(n, k, format, Arc::new(bytes), 0)
}

/// Codes and scales of the device are the CPU's, packed, in every bit; also when they come a few rows at a time.
fn quantize(cases: &mut Vec<Case>, n: usize, k: usize, format: Format) {
    let name = format!("quantize_nf4: N {n}, K {k}, {format:?}");
    cases.push(Case::new(name, move |_, cuda| {
        let host = stored(n, k, format)?;
        let double = match n.is_multiple_of(2) || format == Format::F32 {
            true => DoubleQuant::No,
            false => DoubleQuant::Yes,
        };
        let held = |weight: CudaWeight| -> Result<Vec<f32>, llamaduo_kernels::Error> {
            let CudaWeight::Nf4(packed) = weight else {
                panic!("NF4 stays NF4");
            };
            let (units, scales) = cuda.read_nf4(&packed)?;
            // words of codes as floats of the same bits
            Ok(units.into_iter().map(f32::from_bits).chain(scales).collect())
        };
        let expected = held(cuda.load_weight(HostWeight::Nf4(host.clone().into_nf4(double)?))?)?;
        let at_once = held(cuda.load_weight_nf4(host.clone(), double)?)?;
        let in_parts = held(cuda.load_weight_nf4_by(host, double, 1)?)?;
        Ok(vec![
            Output {
                what: "codes and scales",
                expected: expected.clone(),
                got: at_once,
                bound: EXACT,
            },
            Output {
                what: "codes and scales in parts",
                expected,
                got: in_parts,
                bound: EXACT,
            },
        ])
    }));
}

/// The value of a code in bf16, and the scale of its block.
pub(super) fn code_and_scale(weight: &Nf4Matrix, scales: &[f32], row: usize, column: usize) -> (f32, f32) {
    let index = row * weight.shape().1 + column;
    let code = weight.codes()[index / 2] >> (4 * (1 - index % 2)) & 15;
    let value = CODE_VALUES[usize::from(code)];
    (rounded(&[value])[0], scales[index / BLOCK_LEN])
}

/// Each row of `x` is 1 once in each block of columns, so that every step of the sum is known to the bit: what codes and
/// scales are, and the order in which blocks are added.
fn forward_bits(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
    let name = format!("matmul_nf4, bits: M {m}, N {n}, K {k}");
    cases.push(Case::new(name, move |_, cuda| {
        let weight = weight(n, k)?;
        let scales = weight.block_scales();
        let column = |row: usize, block: usize| block * BLOCK_LEN + (7 * row + 13 * block) % BLOCK_LEN;
        let mut x = vec![0.0; m * k];
        let mut expected = vec![0.0f32; m * n];
        for (row, (x, expected)) in x
            .chunks_exact_mut(k)
            .zip(expected.chunks_exact_mut(n))
            .enumerate()
        {
            for block in 0..k / BLOCK_LEN {
                x[column(row, block)] = 1.0;
                for (feature, sum) in expected.iter_mut().enumerate() {
                    let (code, scale) = code_and_scale(&weight, &scales, feature, column(row, block));
                    *sum = code.mul_add(scale, *sum);
                }
            }
        }
        let (mut y, mut logits) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * n)?);
        let (x, weight) = (cuda.upload_act(&x)?, cuda.load_weight(HostWeight::Nf4(weight))?);
        cuda.linears(&x, &mut [plain(&mut y, &weight)], m)?;
        cuda.logits(&mut logits, &x, &weight, m)?;
        let (mut got, mut got_logits) = (vec![0.0; m * n], vec![0.0; m * n]);
        cuda.read_act(&y, 0, &mut got)?;
        cuda.read_f32(&logits, 0, &mut got_logits)?;
        Ok(vec![
            Output {
                what: "y",
                expected: rounded(&expected),
                got,
                bound: EXACT,
            },
            Output {
                what: "logits",
                expected,
                got: got_logits,
                bound: EXACT,
            },
        ])
    }));
}

/// Each row of `dy` is 1 once: `dx` is W, with the scale put onto a code as two bf16.
pub(super) fn backward_bits(cases: &mut Vec<Case>, n: usize, k: usize) {
    let name = format!("matmul_nf4_backward, bits: M {n}, N {n}, K {k}");
    cases.push(Case::new(name, move |_, cuda| {
        let weight = weight(n, k)?;
        let scales = weight.block_scales();
        let value = |row: usize, column: usize| {
            let (code, scale) = code_and_scale(&weight, &scales, row, column);
            scaled(code, scale).to_f32() + 0.0 // no -0 is left in a sum
        };
        let unit: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();
        let (dy, mut dx) = (cuda.upload_act(&unit)?, cuda.alloc_act(n * k)?);
        let on_device = cuda.load_weight(HostWeight::Nf4(weight.clone()))?;
        cuda.matmul_backward(&mut dx, &dy, &on_device, n)?;
        let mut got = vec![0.0; n * k];
        cuda.read_act(&dx, 0, &mut got)?;
        Ok(vec![Output {
            what: "dx",
            expected: (0..n * k).map(|i| value(i / k, i % k)).collect(),
            got,
            bound: EXACT,
        }])
    }));
}

fn forward(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
    let name = format!("matmul_nf4: M {m}, N {n}, K {k}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (x, weight) = (activations(31, m * k), weight(n, k)?);
        let on_cpu = cpu.load_weight(HostWeight::Nf4(weight.clone()))?;
        let mut expected = vec![0.0; m * n];
        let mut linears = [LinearForward {
            y: &mut expected,
            weight: &on_cpu,
            lora: None,
        }];
        cpu.linears(&x, &mut linears, m)?;
        let (mut y, mut logits) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * n)?);
        let (x, weight) = (cuda.upload_act(&x)?, cuda.load_weight(HostWeight::Nf4(weight))?);
        cuda.linears(&x, &mut [plain(&mut y, &weight)], m)?;
        cuda.logits(&mut logits, &x, &weight, m)?;
        let (mut got, mut got_logits) = (vec![0.0; m * n], vec![0.0; m * n]);
        cuda.read_act(&y, 0, &mut got)?;
        cuda.read_f32(&logits, 0, &mut got_logits)?;
        Ok(vec![
            Output {
                what: "y",
                expected: expected.clone(),
                got,
                bound: product(k),
            },
            Output {
                what: "logits",
                expected,
                got: got_logits,
                bound: product(k),
            },
        ])
    }));
}

pub(super) fn backward(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
    let name = format!("matmul_nf4_backward: M {m}, N {n}, K {k}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (dx, dy, weight) = (activations(32, m * k), activations(33, m * n), weight(n, k)?);
        let on_cpu = cpu.load_weight(HostWeight::Nf4(weight.clone()))?;
        let mut expected = dx.clone();
        cpu.matmul_backward(&mut expected, &dy, &on_cpu, m)?;
        let mut out = cuda.upload_act(&dx)?;
        let weight = cuda.load_weight(HostWeight::Nf4(weight))?;
        cuda.matmul_backward(&mut out, &cuda.upload_act(&dy)?, &weight, m)?;
        let mut got = vec![0.0; m * k];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "dx",
            expected,
            got,
            bound: product_of_scaled(n),
        }])
    }));
}

fn bf16_weight(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
    let shape = format!("M {m}, N {n}, K {k}");
    cases.push(Case::new(format!("matmul_bf16: {shape}"), move |cpu, cuda| {
        let (x, host) = (
            activations(34, m * k),
            HostWeight::from_f32(n, k, &activations(35, n * k))?,
        );
        let mut expected = vec![0.0; m * n];
        let on_device = cuda.load_weight(host.clone())?;
        cpu.logits(&mut expected, &x, &cpu.load_weight(host)?, m)?;
        let (mut y, mut logits) = (cuda.alloc_act(m * n)?, cuda.alloc_f32(m * n)?);
        let x = cuda.upload_act(&x)?;
        cuda.linears(&x, &mut [plain(&mut y, &on_device)], m)?;
        cuda.logits(&mut logits, &x, &on_device, m)?;
        let (mut got, mut got_logits) = (vec![0.0; m * n], vec![0.0; m * n]);
        cuda.read_act(&y, 0, &mut got)?;
        cuda.read_f32(&logits, 0, &mut got_logits)?;
        let (mut logits, mut got_of_loss) = (cuda.alloc_f32(m * n)?, vec![0.0; m * n]);
        cuda.loss_logits(&mut logits, &x, &on_device, m)?;
        cuda.read_f32(&logits, 0, &mut got_of_loss)?;
        Ok(vec![
            Output {
                what: "y",
                expected: expected.clone(),
                got,
                bound: SAME_WEIGHTS,
            },
            Output {
                what: "logits",
                expected: expected.clone(),
                got: got_logits,
                bound: LOGITS,
            },
            Output {
                what: "logits of the loss",
                expected,
                got: got_of_loss,
                bound: LOGITS,
            },
        ])
    }));
    cases.push(Case::new(
        format!("matmul_bf16_backward: {shape}"),
        move |cpu, cuda| {
            let (dx, dy) = (activations(36, m * k), activations(37, m * n));
            let host = HostWeight::from_f32(n, k, &activations(38, n * k))?;
            let on_device = cuda.load_weight(host.clone())?;
            let mut expected = dx.clone();
            cpu.matmul_backward(&mut expected, &dy, &cpu.load_weight(host)?, m)?;
            let mut out = cuda.upload_act(&dx)?;
            cuda.matmul_backward(&mut out, &cuda.upload_act(&dy)?, &on_device, m)?;
            let mut got = vec![0.0; m * k];
            cuda.read_act(&out, 0, &mut got)?;
            Ok(vec![Output {
                what: "dx",
                expected,
                got,
                bound: SAME_WEIGHTS,
            }])
        },
    ));
}
