//! Linears of whole documents and their backward, for which Hopper has kernels of its own.
//!
//! Invariant: see the table; the rows are the same on every card.

use half::bf16;
use llamaduo_kernels::cuda::Kernel;
use llamaduo_kernels::{Backend, Cpu, Cuda, HostWeight, LinearForward, Lora, LoraForward, LoraSlot};

use super::products::{backward, backward_bits, code_and_scale, product_of_scaled, weight};
use crate::case::{Case, EXACT, Output, Outputs, activations, numbers};

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    // rows, columns and steps of less than a tile and of more; a ring that goes round; more rows of blocks than a band has
    for (m, n, k) in [
        (1, 1, 64),
        (33, 31, 128),
        (256, 128, 192),
        (257, 257, 320),
        (70, 40, 704),
        (4200, 130, 64),
    ] {
        linear(cases, [m, n, k], None);
    }
    // a pair of ranks that are no whole step, of more than a stage holds, one that begins anywhere, and one of rows that
    // are not aligned, whose last piece is not whole
    for (m, n, k, rank, a_offset) in [
        (1, 33, 64, 5, 0),
        (257, 40, 320, 32, 1),
        (70, 64, 64, 80, 0),
        (40, 136, 128, 64, 2),
        (40, 72, 64, 63, 0),
        (35, 40, 64, 33, 0),
    ] {
        linear(cases, [m, n, k], Some((rank, a_offset)));
    }
    for (n, k) in [(33, 64), (40, 64), (200, 320), (257, 192)] {
        bits(cases, n, k);
    }
    // of the contraction parts of a step and more than the ring holds, rows that are aligned and not
    for (m, n, k) in [
        (1, 1, 64),
        (33, 40, 192),
        (257, 136, 128),
        (70, 700, 64),
        (40, 703, 192),
        (4200, 24, 192),
    ] {
        backward(cases, m, n, k);
    }
    // the last two have scales of either kind in each step that makes them
    for (n, k) in [(33, 192), (40, 128), (264, 64), (257, 64)] {
        backward_bits(cases, n, k);
    }
}

/// With a pair of that rank beside it, whose A begins there in the flat buffer.
fn linear(cases: &mut Vec<Case>, [m, n, k]: [usize; 3], pair: Option<(usize, usize)>) {
    let with_pair = pair.map_or(String::new(), |(rank, _)| format!(", R {rank}"));
    let name = format!("linears_of_documents: M {m}, N {n}, K {k}{with_pair}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (rank, a_offset) = pair.unwrap_or_default();
        let slot = LoraSlot {
            a_offset,
            b_offset: a_offset + rank * k,
            rank,
            n_in: k,
            n_out: n,
            scale: 0.5,
        };
        let params: Vec<f32> = numbers(52, a_offset + rank * (n + k) + 3);
        // so large that each element of a pair shows beside what W's rounding allows
        let params: Vec<f32> = params.iter().map(|value| value * 4.0).collect();
        let (x, host) = (activations(50, m * k), weight(n, k)?);
        let (x, params) = (&x[..], &params[..]);
        let [expected, got] = [
            on_cpu(cpu, x, params, slot, HostWeight::Nf4(host.clone()), m)?,
            on_cuda(cuda, x, params, slot, HostWeight::Nf4(host), m)?,
        ];
        Ok(vec![Output {
            what: "y",
            expected,
            got,
            bound: product_of_scaled(k),
        }])
    }));
}

/// The pair is one where it has a rank.
fn on_cpu(
    cpu: &Cpu,
    x: &[f32],
    params: &[f32],
    slot: LoraSlot,
    weight: HostWeight,
    m: usize,
) -> Result<Vec<f32>, llamaduo_kernels::Error> {
    let (mut y, mut h, params) = (
        vec![0.0; m * slot.n_out],
        vec![0.0; m * slot.rank],
        params.to_vec(),
    );
    let linear = LinearForward {
        y: &mut y,
        weight: &cpu.load_weight(weight)?,
        lora: (slot.rank > 0).then_some(Lora::One(LoraForward {
            h: &mut h,
            params: &params,
            slot,
            dropout: None,
        })),
    };
    cpu.linears_of_documents(&x.to_vec(), &mut [linear], m)?;
    Ok(y)
}

fn on_cuda(
    cuda: &Cuda,
    x: &[f32],
    params: &[f32],
    slot: LoraSlot,
    weight: HostWeight,
    m: usize,
) -> Result<Vec<f32>, llamaduo_kernels::Error> {
    let (mut y, mut h) = (cuda.alloc_act(m * slot.n_out)?, cuda.alloc_f32(m * slot.rank)?);
    let params = cuda.upload_f32(params)?;
    let linear = LinearForward {
        y: &mut y,
        weight: &cuda.load_weight(weight)?,
        lora: (slot.rank > 0).then_some(Lora::One(LoraForward {
            h: &mut h,
            params: &params,
            slot,
            dropout: None,
        })),
    };
    cuda.linears_of_documents(&cuda.upload_act(x)?, &mut [linear], m)?;
    let mut got = vec![0.0; m * slot.n_out];
    cuda.read_act(&y, 0, &mut got)?;
    Ok(got)
}

/// Each row of `x` is 1 once: `y` is W, whose bits are known. Every kernel but Hopper's multiplies codes and scales the sum.
fn bits(cases: &mut Vec<Case>, n: usize, k: usize) {
    let name = format!("linears_of_documents, bits: M {k}, N {n}, K {k}");
    cases.push(Case::new(name, move |_, cuda| -> Outputs {
        let host = weight(n, k)?;
        let scales = host.block_scales();
        let is_hopper = cuda.refusal(Kernel::MatmulNf4Hopper).is_none();
        let value = |row: usize, column: usize| {
            let (code, scale) = code_and_scale(&host, &scales, row, column);
            let value = match is_hopper {
                true => scaled(code, scale),
                false => bf16::from_f32(code * scale),
            };
            value.to_f32() + 0.0 // no -0 is left in a sum
        };
        let expected = (0..k * n).map(|i| value(i % n, i / n)).collect();
        let unit: Vec<f32> = (0..k * k).map(|i| f32::from(u8::from(i / k == i % k))).collect();
        let no_pair = LoraSlot {
            a_offset: 0,
            b_offset: 0,
            rank: 0,
            n_in: k,
            n_out: n,
            scale: 0.0,
        };
        let got = on_cuda(cuda, &unit, &[], no_pair, HostWeight::Nf4(host.clone()), k)?;
        Ok(vec![Output {
            what: "y",
            expected,
            got,
            bound: EXACT,
        }])
    }));
}

/// A code times its scale as two bf16.
pub(super) fn scaled(code: f32, scale: f32) -> bf16 {
    let high = bf16::from_f32(scale).to_f32();
    let low = bf16::from_f32(scale - high).to_f32();
    let small = bf16::from_f64(f64::from(code) * f64::from(low));
    bf16::from_f64(f64::from(code) * f64::from(high) + small.to_f64())
}
