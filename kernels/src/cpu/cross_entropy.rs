//! Linear cross-entropy: the head's product, the softmax and the loss, for some rows at a time.
//!
//! Invariant: at most [`LOGITS_BYTES_MAX`] of logits exist at once (one row's, where a row has more), and rows without
//! a label cost nothing.

use super::gemm::{Product, Right, Start, View};
use super::simd::versions;
use super::{Cpu, CpuWeight, check, math};
use crate::backend::NO_LABEL;
use crate::error::{Error, Result};

const OP: &str = "cross_entropy";

/// 85 rows of a vocabulary of 49 152: enough rows to pay for unpacking the head, little enough beside a model.
const LOGITS_BYTES_MAX: usize = 16 << 20;

/// What the losses are computed from.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub x: &'a [f32],
    pub head: &'a CpuWeight,
    pub labels: &'a [u32],
    pub loss_scale: f32,
}

pub(super) fn forward_backward(
    cpu: &Cpu,
    losses: &mut [f32],
    dx: Option<&mut [f32]>,
    inputs: Inputs<'_>,
    m: usize,
) -> Result<()> {
    let (n_vocab, width) = inputs.head.shape();
    let losses = check::part_mut(OP, "losses", losses, &[m])?;
    let x = check::part(OP, "x", inputs.x, &[m, width])?;
    let labels = check::part(OP, "labels", inputs.labels, &[m])?;
    let mut dx = dx
        .map(|dx| check::part_mut(OP, "dx", dx, &[m, width]))
        .transpose()?;
    let wrong = |label: u32| label != NO_LABEL && label as usize >= n_vocab;
    if let Some(index) = labels.iter().position(|&label| wrong(label)) {
        let value = labels[index] as usize;
        return Err(Error::OutOfRange {
            op: OP,
            what: "label",
            index,
            value,
            limit: n_vocab,
        });
    }
    losses.fill(0.0);
    if let Some(dx) = dx.as_deref_mut() {
        dx.fill(0.0);
    }
    let labelled: Vec<usize> = (0..m).filter(|&row| labels[row] != NO_LABEL).collect();
    let rows_max = (LOGITS_BYTES_MAX / 4 / n_vocab.max(1)).max(1);
    for rows in labelled.chunks(rows_max) {
        chunk(
            cpu,
            losses,
            dx.as_deref_mut(),
            Inputs { x, labels, ..inputs },
            rows,
        );
    }
    Ok(())
}

/// The labelled rows `rows`.
fn chunk(cpu: &Cpu, losses: &mut [f32], dx: Option<&mut [f32]>, inputs: Inputs<'_>, rows: &[usize]) {
    let (n_vocab, width) = inputs.head.shape();
    let m = rows.len();
    let mut gathered = cpu.scratch(m * width);
    for (out, &row) in gathered.chunks_exact_mut(width.max(1)).zip(rows) {
        out.copy_from_slice(&inputs.x[row * width..][..width]);
    }
    let mut logits = cpu.scratch(m * n_vocab);
    let a = View::rows(&gathered, width);
    let product = Product {
        m,
        n: n_vocab,
        k: width,
        a,
        b: Right::Transposed(inputs.head),
    };
    cpu.multiply(&mut logits, product, Start::Zero);

    let mut chunk_losses = vec![0f32; m];
    let factor = dx.as_ref().map(|_| inputs.loss_scale);
    let tasks = logits
        .chunks_exact_mut(n_vocab)
        .zip(&mut chunk_losses)
        .zip(rows)
        .collect();
    cpu.each(tasks, 4 * m * n_vocab, |((logits, loss), &row)| {
        *loss = row_loss(cpu.isa, logits, inputs.labels[row] as usize, factor);
    });
    for (loss, &row) in chunk_losses.iter().zip(rows) {
        losses[row] = *loss;
    }
    let Some(dx) = dx else { return };
    let product = Product {
        m,
        n: width,
        k: n_vocab,
        a: View::rows(&logits, n_vocab),
        b: Right::Straight(inputs.head),
    };
    cpu.multiply(&mut gathered, product, Start::Zero);
    for (gradient, &row) in gathered.chunks_exact(width.max(1)).zip(rows) {
        dx[row * width..][..width].copy_from_slice(gradient);
    }
}

versions! {
    /// The loss of one row; with a factor, also turns its logits into `factor * (softmax - onehot)`.
    fn row_loss(logits: &mut [f32], label: usize, factor: Option<f32>) -> f32 {
        let shift = math::max(logits);
        let of_label = logits[label] - shift;
        let sum = math::exp_in_place(logits, 1.0, shift);
        if let Some(factor) = factor {
            let scale = factor / sum;
            for value in logits.iter_mut() {
                *value *= scale;
            }
            logits[label] -= factor;
        }
        (f64::from(sum).ln() - f64::from(of_label)) as f32
    }
}
