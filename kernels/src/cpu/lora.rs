//! The gradients of LoRA (Hu et al. 2021), `y += scale * (drop(x) · Aᵀ) · Bᵀ`, and its dropout; the forward is in
//! [`linear`](super::linear).
//!
//! Invariant: whether element `i` of the input is dropped is a function of (key, i) alone, so the backward and a
//! recomputed forward draw the same mask.

use super::gemm::{Product, Right, Start, View};
use super::scratch::Scratch;
use super::simd::{draw_kept, versions};
use super::{Cpu, check};
use crate::backend::{Dropout, LoraSlot};
use crate::error::Result;

const OP: &str = "lora_backward";

/// Elements whose draws lie on the stack until they are used: a multiple of 32, as [`draw_kept`] wants its first one.
const RUN_LEN: usize = 1024;

/// What the gradients are computed from.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub dy: &'a [f32],
    pub x: &'a [f32],
    pub h: &'a [f32],
    pub params: &'a [f32],
}

pub(super) fn backward(
    cpu: &Cpu,
    dx: Option<&mut [f32]>,
    grads: &mut [f32],
    inputs: Inputs<'_>,
    slot: LoraSlot,
    dropout: Option<Dropout>,
    m: usize,
) -> Result<()> {
    let (rank, n_in, n_out, scale) = (slot.rank, slot.n_in, slot.n_out, slot.scale);
    let (a, b) = factors(OP, inputs.params, slot)?;
    factors(OP, grads, slot)?;
    let dy = check::part(OP, "dy", inputs.dy, &[m, n_out])?;
    let x = check::part(OP, "x", inputs.x, &[m, n_in])?;
    let h = check::part(OP, "h", inputs.h, &[m, rank])?;
    let dx = dx
        .map(|dx| check::part_mut(OP, "dx", dx, &[m, n_in]))
        .transpose()?;
    check_rate(OP, dropout)?;

    add_b_gradient(cpu, &mut grads[slot.b_offset..][..n_out * rank], dy, h, slot, m);

    // dh [M, R] = scale dy · B
    let mut dh = cpu.scratch(m * rank);
    let b = Right::Floats(View::rows(b, rank));
    cpu.multiply(
        &mut dh,
        Product {
            m,
            n: rank,
            k: n_out,
            a: View::rows(dy, n_out),
            b,
        },
        Start::Zero,
    );
    multiply(cpu.isa, &mut dh, scale);

    let mut drawn = dropout.map(|dropout| (draw(cpu, dropout, x.len()), factor_of(dropout)));
    let kept = drawn
        .as_mut()
        .map(|(drawn, factor)| (&*kept_bytes(drawn, x.len()), *factor));
    let da = &mut grads[slot.a_offset..][..rank * n_in];
    add_a_gradient(cpu, da, &dh, x, kept, slot, m);

    let Some(dx) = dx else { return Ok(()) };
    let a = Right::Floats(View::rows(a, n_in));
    let product = Product {
        m,
        n: n_in,
        k: rank,
        a: View::rows(&dh, rank),
        b: a,
    };
    add_input_gradient(cpu, dx, product, kept);
    Ok(())
}

/// `dB [N, R] += scale dyᵀ · h`, computed as its transpose, whose rows are as wide as tiles.
fn add_b_gradient(cpu: &Cpu, db: &mut [f32], dy: &[f32], h: &[f32], slot: LoraSlot, m: usize) {
    let LoraSlot {
        rank, n_out, scale, ..
    } = slot;
    let h = scaled(cpu, h, scale);
    let mut across = cpu.scratch(rank * n_out);
    let a = View::rows(&h, rank).transposed();
    let b = Right::Floats(View::rows(dy, n_out));
    cpu.multiply(
        &mut across,
        Product {
            m: rank,
            n: n_out,
            k: m,
            a,
            b,
        },
        Start::Zero,
    );
    add_transposed(db, &across, rank, n_out);
}

/// `dA [R, K] += dhᵀ · drop(x)`.
fn add_a_gradient(
    cpu: &Cpu,
    da: &mut [f32],
    dh: &[f32],
    x: &[f32],
    kept: Option<(&[u8], f32)>,
    slot: LoraSlot,
    m: usize,
) {
    let LoraSlot { rank, n_in, .. } = slot;
    let dropped = kept.map(|(kept, factor)| {
        let mut dropped = cpu.scratch(x.len());
        in_parts(cpu, &mut dropped, x, kept, |out, x, kept| {
            keep(cpu.isa, out, x, kept, factor);
        });
        dropped
    });
    let a = View::rows(dh, rank).transposed();
    let b = Right::Floats(View::rows(dropped.as_deref().unwrap_or(x), n_in));
    cpu.multiply(
        da,
        Product {
            m: rank,
            n: n_in,
            k: m,
            a,
            b,
        },
        Start::Current,
    );
}

/// `dx += drop'(dh · A)`.
fn add_input_gradient(cpu: &Cpu, dx: &mut [f32], product: Product<'_>, kept: Option<(&[u8], f32)>) {
    let Some((kept, factor)) = kept else {
        return cpu.multiply(dx, product, Start::Current);
    };
    let mut through = cpu.scratch(dx.len());
    cpu.multiply(&mut through, product, Start::Zero);
    in_parts(cpu, dx, &through, kept, |dx, through, kept| {
        add_kept(cpu.isa, dx, through, kept, factor);
    });
}

/// `A [R, K]` and `B [N, R]` inside the flat buffer.
pub(super) fn factors<'a>(
    op: &'static str,
    params: &'a [f32],
    slot: LoraSlot,
) -> Result<(&'a [f32], &'a [f32])> {
    let LoraSlot {
        a_offset,
        b_offset,
        rank,
        n_in,
        n_out,
        ..
    } = slot;
    check::setting(op, "rank", "at least 1", rank > 0)?;
    let a = check::window(
        op,
        "params for A",
        params,
        a_offset,
        check::size(op, "A", &[rank, n_in])?,
    )?;
    let b = check::window(
        op,
        "params for B",
        params,
        b_offset,
        check::size(op, "B", &[n_out, rank])?,
    )?;
    Ok((a, b))
}

pub(super) fn check_rate(op: &'static str, dropout: Option<Dropout>) -> Result<()> {
    let valid = dropout.is_none_or(|dropout| (0.0..1.0).contains(&dropout.rate));
    check::setting(op, "dropout rate", "in [0, 1)", valid)
}

/// `drop(x)`, or `None` when nothing is dropped.
pub(super) fn dropped<'c>(cpu: &'c Cpu, x: &[f32], dropout: Option<Dropout>) -> Option<Scratch<'c>> {
    let dropout = dropout?;
    let mut out = cpu.scratch(x.len());
    let len = cpu.rows_per_task(x.len(), 8).next_multiple_of(RUN_LEN);
    let parts = out.chunks_mut(len).zip(x.chunks(len)).enumerate().collect();
    cpu.each(parts, 8 * x.len(), |(part, (out, x))| {
        let mut kept = [0; RUN_LEN];
        for (run, (out, x)) in out.chunks_mut(RUN_LEN).zip(x.chunks(RUN_LEN)).enumerate() {
            let kept = &mut kept[..x.len()];
            draw_kept(cpu.isa, dropout, (part * len + run * RUN_LEN) as u64, kept);
            keep(cpu.isa, out, x, kept, factor_of(dropout));
        }
    });
    Some(out)
}

fn scaled<'c>(cpu: &'c Cpu, h: &[f32], scale: f32) -> Scratch<'c> {
    let mut scaled = cpu.scratch(h.len());
    scaled.copy_from_slice(h);
    multiply(cpu.isa, &mut scaled, scale);
    scaled
}

/// Calls `run(out, values, kept)` for parts of them.
fn in_parts(
    cpu: &Cpu,
    out: &mut [f32],
    values: &[f32],
    kept: &[u8],
    run: impl Fn(&mut [f32], &[f32], &[u8]) + Send + Sync,
) {
    let len = cpu.rows_per_task(values.len(), 2);
    let parts = out.chunks_mut(len).zip(values.chunks(len)).zip(kept.chunks(len));
    cpu.each(parts.collect(), 2 * values.len(), |((out, values), kept)| {
        run(out, values, kept);
    });
}

/// `sums[i, j] += values[j, i]` with sums `[N, R]`.
fn add_transposed(sums: &mut [f32], values: &[f32], rank: usize, n: usize) {
    for (i, row) in sums.chunks_exact_mut(rank).enumerate() {
        for (sum, column) in row.iter_mut().zip(values.chunks_exact(n)) {
            *sum += column[i];
        }
    }
}

versions! {
    fn multiply(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

/// Which of `len` elements are kept, a byte each.
fn draw(cpu: &Cpu, dropout: Dropout, len: usize) -> Scratch<'_> {
    let mut kept = cpu.scratch(len.div_ceil(size_of::<f32>()));
    let part_len = cpu.rows_per_task(len, 8).next_multiple_of(RUN_LEN);
    let parts = kept_bytes(&mut kept, len)
        .chunks_mut(part_len)
        .enumerate()
        .collect();
    cpu.each(parts, 8 * len, |(part, kept)| {
        draw_kept(cpu.isa, dropout, (part * part_len) as u64, kept);
    });
    kept
}

/// `len` bytes of a buffer of floats.
fn kept_bytes(kept: &mut [f32], len: usize) -> &mut [u8] {
    &mut bytemuck::cast_slice_mut(kept)[..len]
}

/// What a kept element is multiplied with.
fn factor_of(dropout: Dropout) -> f32 {
    1.0 / (1.0 - dropout.rate)
}

versions! {
    /// `sums[i] += factor * values[i]` where `kept[i]` is 1, and 0 where it is 0.
    fn add_kept(sums: &mut [f32], values: &[f32], kept: &[u8], factor: f32) {
        for ((sum, value), kept) in sums.iter_mut().zip(values).zip(kept) {
            *sum += value * (factor * f32::from(*kept));
        }
    }
}

versions! {
    /// `out[i] = factor * values[i]` where `kept[i]` is 1, and 0 where it is 0.
    fn keep(out: &mut [f32], values: &[f32], kept: &[u8], factor: f32) {
        for ((out, value), kept) in out.iter_mut().zip(values).zip(kept) {
            // a sum with 0, as everywhere else: there is no -0
            *out = 0.0 + value * (factor * f32::from(*kept));
        }
    }
}
