//! Embedding, RMSNorm, rotary embedding.
//!
//! Invariant: see the table.

use llamaduo_kernels::{Backend, HostWeight, RmsNormSpec};

use crate::case::{BF16, Case, F32, Output, activations, numbers};

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
            rms_norm_backward(cases, m, spec);
        }
    }
    for head_dim in [2, 64, 96, 128, 256] {
        for n_heads in [1, 3, 5] {
            rope(cases, head_dim, n_heads, true);
            rope(cases, head_dim, n_heads, false);
        }
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
        // the last one is near the end of the longest contexts
        let positions = vec![0u32, 1, 7, 4095, 131_071];
        let m = positions.len();
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| 10_000f32.powf(-2.0 * i as f32 / head_dim as f32))
            .collect();
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
