//! The gradients of LoRA (Hu et al. 2021), `y += scale * (drop(x) · Aᵀ) · Bᵀ`, and its dropout; the forward is in
//! [`linear`](super::linear).
//!
//! Invariant: whether element `i` of the input is dropped is a function of (key, i) alone, so the backward and a
//! recomputed forward draw the same mask.

use super::gemm::{Product, Right, Start, View};
use super::scratch::Scratch;
use super::simd::versions;
use super::{Cpu, check};
use crate::backend::{Dropout, LoraSlot};
use crate::error::Result;
use crate::random;

const OP: &str = "lora_backward";

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

    // dA [R, K] += dhᵀ · drop(x)
    let dropped = dropped(cpu, x, dropout);
    let kept = Right::Floats(View::rows(dropped.as_deref().unwrap_or(x), n_in));
    let dh_across = View::rows(&dh, rank).transposed();
    let da = &mut grads[slot.a_offset..][..rank * n_in];
    cpu.multiply(
        da,
        Product {
            m: rank,
            n: n_in,
            k: m,
            a: dh_across,
            b: kept,
        },
        Start::Current,
    );

    let Some(dx) = dx else { return Ok(()) };
    let a = Right::Floats(View::rows(a, n_in));
    let product = Product {
        m,
        n: n_in,
        k: rank,
        a: View::rows(&dh, rank),
        b: a,
    };
    add_input_gradient(cpu, dx, product, dropout);
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

/// `dx += drop'(dh · A)`.
fn add_input_gradient(cpu: &Cpu, dx: &mut [f32], product: Product<'_>, dropout: Option<Dropout>) {
    let Some(dropout) = dropout else {
        return cpu.multiply(dx, product, Start::Current);
    };
    let mut through = cpu.scratch(dx.len());
    cpu.multiply(&mut through, product, Start::Zero);
    in_parts(cpu, dx, &through, |dx, through, first| {
        add_kept(cpu.isa, dx, through, dropout, first)
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
    let mut kept = cpu.scratch(x.len());
    in_parts(cpu, &mut kept, x, |kept, x, first| {
        kept.fill(0.0);
        add_kept(cpu.isa, kept, x, dropout, first);
    });
    Some(kept)
}

fn scaled<'c>(cpu: &'c Cpu, h: &[f32], scale: f32) -> Scratch<'c> {
    let mut scaled = cpu.scratch(h.len());
    scaled.copy_from_slice(h);
    multiply(cpu.isa, &mut scaled, scale);
    scaled
}

/// Calls `run(out, values, first element)` for parts that begin at a multiple of 64.
fn in_parts(cpu: &Cpu, out: &mut [f32], values: &[f32], run: impl Fn(&mut [f32], &[f32], u64) + Send + Sync) {
    let len = cpu.rows_per_task(values.len(), 8).next_multiple_of(64);
    let parts = out.chunks_mut(len).zip(values.chunks(len)).enumerate().collect();
    cpu.each(parts, 8 * values.len(), |(part, (out, values))| {
        run(out, values, (part * len) as u64)
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

versions! {
    /// `sums[i] += values[i] / (1 - rate)` where element `first + i` is kept; `first` is a multiple of 64.
    fn add_kept(sums: &mut [f32], values: &[f32], dropout: Dropout, first: u64) {
        // 16 counters at a time, each giving 4 numbers, so that the rounds run in vectors
        const STEP: usize = 64;
        let factor = 1.0 / (1.0 - dropout.rate);
        for (step, (sums, values)) in sums.chunks_mut(STEP).zip(values.chunks(STEP)).enumerate() {
            let counter = first / 4 + (step * STEP / 4) as u64;
            let mut words = [[0u32; 4]; STEP / 4];
            for (i, words) in words.iter_mut().enumerate() {
                *words = random::block(dropout.key, counter + i as u64);
            }
            for ((sum, value), &word) in sums.iter_mut().zip(values).zip(words.as_flattened()) {
                let kept = if random::uniform_of(word) >= dropout.rate { factor } else { 0.0 };
                *sum += value * kept;
            }
        }
    }
}
