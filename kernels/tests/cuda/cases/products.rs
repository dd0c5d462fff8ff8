//! Products with weights.
//!
//! Invariant: see the table.

use std::sync::Arc;

use half::f16;
use llamaduo_kernels::cuda::{CudaAct, CudaWeight};
use llamaduo_kernels::nf4::CODE_VALUES;
use llamaduo_kernels::{Backend, Cuda, DoubleQuant, Format, HostWeight, LinearForward, Nf4Matrix};

use crate::case::{BF16, Bound, Case, EXACT, Output, activations, numbers};

/// Each value of W is rounded to bf16: an error of at most 2^-9 of it, evenly spread, so 2^-9 / sqrt(3) in the mean.
/// Inputs and weights have a root mean square of 0.8 here, and errors of either sign add up as the root of their
/// number; 6 standard deviations. The sum is rounded once more.
pub(super) fn product(n_terms: usize) -> Bound {
    Bound {
        absolute: 6.0 * 0.8 * 0.8 / 512.0 / 3f64.sqrt() * (n_terms as f64).sqrt(),
        relative: BF16.relative,
    }
}

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for (n, k) in [(1, 64), (31, 64), (33, 128), (96, 320), (257, 256), (64, 640)] {
        dequantize(cases, n, k);
        for format in [Format::Bf16, Format::F32, Format::Q8_0] {
            quantize(cases, n, k, format);
        }
        for m in [1, 16, 17, 31, 33] {
            forward(cases, m, n, k);
            backward(cases, m, n, k);
        }
    }
    // the last has work for all four warps in both directions, and a width of single elements
    for (n, k) in [(1, 1), (31, 33), (33, 31), (40, 264), (257, 136), (160, 257)] {
        for m in [1, 16, 17, 33] {
            bf16(cases, m, n, k);
        }
    }
    forward(cases, 257, 40, 64);
    backward(cases, 257, 40, 64);
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
                expected: weight.dequantize(),
                got,
                bound: BF16,
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

fn backward(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
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
            bound: product(n),
        }])
    }));
}

fn bf16(cases: &mut Vec<Case>, m: usize, n: usize, k: usize) {
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
        Ok(vec![
            Output {
                what: "y",
                expected: expected.clone(),
                got,
                bound: SAME_WEIGHTS,
            },
            Output {
                what: "logits",
                expected,
                got: got_logits,
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
