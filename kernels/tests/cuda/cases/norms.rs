//! Embedding, RMSNorm, rotary embedding.
//!
//! Invariant: see the table.

use llamaduo_kernels::{Backend, HeadDims, HostWeight, RmsNormSpec};

use crate::case::{BF16, Case, EXACT, F32, Output, activations, numbers, rounded};

/// Widths of rows: odd ones, per-head norms, and a row that takes several turns of the block.
const WIDTHS: [usize; 9] = [1, 31, 33, 64, 96, 128, 256, 257, 2056];

pub(crate) fn add_to(cases: &mut Vec<Case>) {
    for width in WIDTHS {
        embed(cases, width);
        for (m, weight_offset) in [(1, 0.0), (3, 1.0)] {
            let spec = RmsNormSpec {
                width,
                epsilon: 1e-5,
                weight_offset,
            };
            rms_norm(cases, m, spec);
            add_rms_norm(cases, m, spec);
            rms_norm_backward(cases, m, spec);
        }
    }
    for head_dim in [2, 64, 96, 128, 256] {
        for n_heads in [1, 3, 5] {
            rope(cases, head_dim, n_heads, true);
            rope(cases, head_dim, n_heads, false);
        }
    }
    for (n_heads, n_kv_heads) in [(1, 1), (4, 2), (6, 3), (9, 3)] {
        let heads = HeadDims {
            n_heads,
            n_kv_heads,
            head_dim: 64,
        };
        rope_both(cases, heads, true);
        rope_both(cases, heads, false);
    }
}

fn embed(cases: &mut Vec<Case>, width: usize) {
    let name = format!("embed: V 33, C {width}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (n_rows, ids) = (33, [32u32, 0, 7, 7]);
        let (table, scale) = (activations(1, n_rows * width), 1.75);
        let host = HostWeight::from_f32(n_rows, width, &table)?;
        let weight = cpu.load_weight(host.clone())?;
        let mut expected = vec![0.0; ids.len() * width];
        cpu.embed(&mut expected, &ids.to_vec(), &weight, scale, ids.len())?;
        let mut out = cuda.alloc_act(expected.len())?;
        let on_device = cuda.load_weight(host)?;
        cuda.embed(&mut out, &cuda.upload_u32(&ids)?, &on_device, scale, ids.len())?;
        let mut got = vec![0.0; expected.len()];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "out",
            expected,
            got,
            bound: BF16,
        }])
    }));
}

fn rms_norm(cases: &mut Vec<Case>, m: usize, spec: RmsNormSpec) {
    let width = spec.width;
    let name = format!("rms_norm: M {m}, W {width}, offset {}", spec.weight_offset);
    cases.push(Case::new(name, move |cpu, cuda| {
        let (x, weight) = (activations(2, m * width), numbers(3, width));
        let (mut expected, mut expected_rstd) = (vec![0.0; m * width], vec![0.0; m]);
        cpu.rms_norm(&mut expected, &mut expected_rstd, &x, &weight, spec, m)?;
        let (mut out, mut rstd) = (cuda.alloc_act(m * width)?, cuda.alloc_f32(m)?);
        let (x, weight) = (cuda.upload_act(&x)?, cuda.upload_f32(&weight)?);
        cuda.rms_norm(&mut out, &mut rstd, &x, &weight, spec, m)?;
        let (mut got, mut got_rstd) = (vec![0.0; m * width], vec![0.0; m]);
        cuda.read_act(&out, 0, &mut got)?;
        cuda.read_f32(&rstd, 0, &mut got_rstd)?;
        Ok(vec![
            Output {
                what: "out",
                expected,
                got,
                bound: BF16,
            },
            Output {
                what: "rstd",
                expected: expected_rstd,
                got: got_rstd,
                bound: F32,
            },
        ])
    }));
}

fn add_rms_norm(cases: &mut Vec<Case>, m: usize, spec: RmsNormSpec) {
    let width = spec.width;
    let name = format!("add_rms_norm: M {m}, W {width}, offset {}", spec.weight_offset);
    cases.push(Case::new(name, move |cpu, cuda| {
        let [y, x] = [10, 11].map(|seed| activations(seed, m * width));
        let weight = numbers(12, width);
        let (mut expected_y, mut expected, mut expected_rstd) =
            (y.clone(), vec![0.0; m * width], vec![0.0; m]);
        cpu.add(&mut expected_y, &x, m * width)?;
        // the stream is held in bf16, and what is normed is what is held
        let expected_y = rounded(&expected_y);
        cpu.rms_norm(&mut expected, &mut expected_rstd, &expected_y, &weight, spec, m)?;
        let (mut out, mut rstd) = (cuda.alloc_act(m * width)?, cuda.alloc_f32(m)?);
        let (mut y, x) = (cuda.upload_act(&y)?, cuda.upload_act(&x)?);
        let weight = cuda.upload_f32(&weight)?;
        cuda.add_rms_norm(&mut y, &mut out, &mut rstd, &x, &weight, spec, m)?;
        let [mut got_y, mut got] = [(); 2].map(|()| vec![0.0; m * width]);
        let mut got_rstd = vec![0.0; m];
        cuda.read_act(&y, 0, &mut got_y)?;
        cuda.read_act(&out, 0, &mut got)?;
        cuda.read_f32(&rstd, 0, &mut got_rstd)?;
        Ok(vec![
            Output {
                what: "y",
                expected: expected_y,
                got: got_y,
                bound: EXACT,
            },
            Output {
                what: "out",
                expected,
                got,
                bound: BF16,
            },
            Output {
                what: "rstd",
                expected: expected_rstd,
                got: got_rstd,
                bound: F32,
            },
        ])
    }));
}

fn rms_norm_backward(cases: &mut Vec<Case>, m: usize, spec: RmsNormSpec) {
    let width = spec.width;
    let name = format!(
        "rms_norm_backward: M {m}, W {width}, offset {}",
        spec.weight_offset
    );
    cases.push(Case::new(name, move |cpu, cuda| {
        let [dx, dy, x] = [4, 5, 6].map(|seed| activations(seed, m * width));
        let (rstd, weight) = (numbers(7, m), numbers(8, width));
        let mut expected = dx.clone();
        cpu.rms_norm_backward(&mut expected, &dy, &x, &rstd, &weight, spec, m)?;
        let mut out = cuda.upload_act(&dx)?;
        let (dy, x) = (cuda.upload_act(&dy)?, cuda.upload_act(&x)?);
        let (rstd, weight) = (cuda.upload_f32(&rstd)?, cuda.upload_f32(&weight)?);
        cuda.rms_norm_backward(&mut out, &dy, &x, &rstd, &weight, spec, m)?;
        let mut got = vec![0.0; m * width];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "dx",
            expected,
            got,
            bound: BF16,
        }])
    }));
}

fn rope(cases: &mut Vec<Case>, head_dim: usize, n_heads: usize, forward: bool) {
    let op = if forward { "rope" } else { "rope_backward" };
    let name = format!("{op}: H {n_heads}, D {head_dim}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (positions, frequencies) = (POSITIONS.to_vec(), frequencies(head_dim));
        let m = positions.len();
        let x = activations(9, m * n_heads * head_dim);
        let mut expected = x.clone();
        let mut out = cuda.upload_act(&x)?;
        let (device_positions, device_frequencies) =
            (cuda.upload_u32(&positions)?, cuda.upload_f32(&frequencies)?);
        if forward {
            cpu.rope(&mut expected, &positions, &frequencies, n_heads, head_dim, m)?;
            cuda.rope(
                &mut out,
                &device_positions,
                &device_frequencies,
                n_heads,
                head_dim,
                m,
            )?;
        } else {
            cpu.rope_backward(&mut expected, &positions, &frequencies, n_heads, head_dim, m)?;
            cuda.rope_backward(
                &mut out,
                &device_positions,
                &device_frequencies,
                n_heads,
                head_dim,
                m,
            )?;
        }
        let mut got = vec![0.0; expected.len()];
        cuda.read_act(&out, 0, &mut got)?;
        Ok(vec![Output {
            what: "x",
            expected,
            got,
            bound: BF16,
        }])
    }));
}

/// Positions of the rotations: the last one is near the end of the longest contexts.
const POSITIONS: [u32; 5] = [0, 1, 7, 4095, 131_071];

fn frequencies(head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32))
        .collect()
}

fn rope_both(cases: &mut Vec<Case>, heads: HeadDims, forward: bool) {
    let op = if forward {
        "rope_both"
    } else {
        "rope_both_backward"
    };
    let HeadDims {
        n_heads,
        n_kv_heads,
        head_dim,
    } = heads;
    let name = format!("{op}: H {n_heads}, KV {n_kv_heads}, D {head_dim}");
    cases.push(Case::new(name, move |cpu, cuda| {
        let (positions, frequencies) = (POSITIONS.to_vec(), frequencies(head_dim));
        let m = positions.len();
        let q = activations(13, m * n_heads * head_dim);
        let k = activations(14, m * n_kv_heads * head_dim);
        let (mut expected_q, mut expected_k) = (q.clone(), k.clone());
        let (mut q, mut k) = (cuda.upload_act(&q)?, cuda.upload_act(&k)?);
        let (on_card, turns) = (cuda.upload_u32(&positions)?, cuda.upload_f32(&frequencies)?);
        if forward {
            cpu.rope_both(
                &mut expected_q,
                &mut expected_k,
                &positions,
                &frequencies,
                heads,
                m,
            )?;
            cuda.rope_both(&mut q, &mut k, &on_card, &turns, heads, m)?;
        } else {
            cpu.rope_both_backward(
                &mut expected_q,
                &mut expected_k,
                &positions,
                &frequencies,
                heads,
                m,
            )?;
            cuda.rope_both_backward(&mut q, &mut k, &on_card, &turns, heads, m)?;
        }
        let (mut got_q, mut got_k) = (vec![0.0; expected_q.len()], vec![0.0; expected_k.len()]);
        cuda.read_act(&q, 0, &mut got_q)?;
        cuda.read_act(&k, 0, &mut got_k)?;
        Ok(vec![
            Output {
                what: "q",
                expected: expected_q,
                got: got_q,
                bound: BF16,
            },
            Output {
                what: "k",
                expected: expected_k,
                got: got_k,
                bound: BF16,
            },
        ])
    }));
}
