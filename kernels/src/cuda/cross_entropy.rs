//! The head's product and its softmax cross-entropy, some rows at a time. The kernels are `kernels/cuda/cross_entropy.cu`.
//!
//! Invariant: at most [`LOGITS_BYTES_MAX`] of logits exist at once (one row's, where a row has more), and rows without a
//! label cost nothing. A label outside the vocabulary is an error.
#![expect(unsafe_code, reason = "launching a kernel")]

use cudarc::driver::CudaView;
use half::bf16;

use super::launch::{VECTOR, row_threads};
use super::scratch::Scratch;
use super::{Cuda, CudaAct, CudaF32, CudaWeight, Kernel, check};
use crate::backend::NO_LABEL;
use crate::error::{Error, Result};

const OP: &str = "cross_entropy";

/// 128 rows of a vocabulary of 262,144: enough that the products, which read the head once for each such part, are not
/// bound by memory; with the gradient, half as much again.
pub(super) const LOGITS_BYTES_MAX: usize = 128 << 20;

/// What the losses are computed from.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a> {
    /// `[M, C]`.
    pub x: &'a CudaAct,
    /// `[V, C]`.
    pub head: &'a CudaWeight,
    /// `[M]`; they come from the host, where they are made: so they can be checked, and rows without one left out,
    /// without waiting for the device.
    pub labels: &'a [u32],
    /// Factor on the gradient.
    pub loss_scale: f32,
}

/// The rows that have a label, on the device.
struct Labelled {
    rows: Scratch<u32>,
    labels: Scratch<u32>,
    /// How many.
    len: usize,
}

/// What some rows at a time need.
struct Room {
    /// The rows of `x`, then of its gradient.
    gathered: Scratch<bf16>,
    logits: Scratch<f32>,
    dlogits: Option<Scratch<bf16>>,
}

impl Cuda {
    /// See [`Backend::cross_entropy`](crate::Backend::cross_entropy).
    pub fn cross_entropy(
        &self,
        losses: &mut CudaF32,
        dx: Option<&mut CudaAct>,
        inputs: LossInputs<'_>,
    ) -> Result<()> {
        let (n_vocab, _) = inputs.head.shape();
        let n_rows_max = LOGITS_BYTES_MAX / size_of::<f32>() / n_vocab.max(1);
        self.cross_entropy_by(losses, dx, inputs, n_rows_max)
    }

    /// The same with the logits of at most `n_rows_max` rows at once, and at least one.
    pub fn cross_entropy_by(
        &self,
        losses: &mut CudaF32,
        mut dx: Option<&mut CudaAct>,
        inputs: LossInputs<'_>,
        n_rows_max: usize,
    ) -> Result<()> {
        let (n_vocab, width) = inputs.head.shape();
        let m = inputs.labels.len();
        check::holds(OP, "losses", losses, &[m])?;
        check::holds(OP, "x", inputs.x, &[m, width])?;
        if let Some(dx) = dx.as_deref() {
            check::holds(OP, "dx", dx, &[m, width])?;
        }
        check::int(OP, "rows", m)?;
        let labelled = self.labelled(inputs.labels, n_vocab)?;
        self.zero_part(losses, m)?;
        if let Some(dx) = dx.as_deref_mut() {
            self.zero_part(dx, m * width)?;
        }
        if labelled.len == 0 {
            return Ok(());
        }
        let n_rows_max = n_rows_max.clamp(1, labelled.len);
        let n_logits = check::size(OP, "logits", &[n_rows_max, n_vocab])?;
        let mut room = Room {
            gathered: self.scratch(n_rows_max * width)?,
            logits: self.scratch(n_logits)?,
            dlogits: match dx {
                Some(_) => Some(self.scratch(n_logits)?),
                None => None,
            },
        };
        for first in (0..labelled.len).step_by(n_rows_max) {
            let part = first..labelled.len.min(first + n_rows_max);
            let n_rows = part.len();
            let rows = labelled.rows.slice(part.clone());
            let labels = labelled.labels.slice(part);
            self.gather(OP, &mut room.gathered, &rows, inputs.x, (n_rows, width), 1.0)?;
            self.loss_logits(&mut room.logits, &room.gathered, inputs.head, n_rows)?;
            self.losses(
                losses,
                &mut room,
                [&rows, &labels],
                inputs.loss_scale,
                (n_rows, n_vocab),
            )?;
            let (Some(dx), Some(dlogits)) = (dx.as_deref_mut(), &room.dlogits) else {
                continue;
            };
            self.zero_part(&mut room.gathered, n_rows * width)?;
            self.matmul_backward(&mut room.gathered, dlogits, inputs.head, n_rows)?;
            self.put_rows(dx, &room.gathered, &rows, (n_rows, width))?;
        }
        Ok(())
    }

    fn labelled(&self, labels: &[u32], n_vocab: usize) -> Result<Labelled> {
        let (mut rows, mut kept) = (Vec::new(), Vec::new());
        for (index, &label) in labels.iter().enumerate() {
            if label == NO_LABEL {
                continue;
            }
            if label as usize >= n_vocab {
                return Err(Error::OutOfRange {
                    op: OP,
                    what: "label",
                    index,
                    value: label as usize,
                    limit: n_vocab,
                });
            }
            rows.push(index as u32);
            kept.push(label);
        }
        Ok(Labelled {
            len: rows.len(),
            rows: self.scratch_of(OP, &rows)?,
            labels: self.scratch_of(OP, &kept)?,
        })
    }

    /// The losses of the room's logits; with room for them also the gradients of the logits.
    fn losses(
        &self,
        losses: &mut CudaF32,
        room: &mut Room,
        [rows, labels]: [&CudaView<'_, u32>; 2],
        loss_scale: f32,
        (n_rows, n_vocab): (usize, usize),
    ) -> Result<()> {
        let vocab_int = check::int(OP, "vocabulary", n_vocab)?;
        let n_threads = n_vocab.next_multiple_of(32).clamp(32, 512) as u32;
        let shape = (check::blocks(OP, "rows", n_rows)?, n_threads);
        let launch = self.launch(OP, Kernel::CrossEntropy, shape);
        let no_gradient = 0u64; // a null pointer
        let launch = match &mut room.dlogits {
            Some(dlogits) => launch.with(losses).with(&mut **dlogits),
            None => launch.with(losses).with(&no_gradient),
        };
        let launch = launch.with(&*room.logits).with(rows).with(labels);
        let launch = launch.with(&loss_scale).with(&vocab_int);
        // SAFETY: the room holds n_rows rows of n_vocab; each row is one of the losses', each label below n_vocab.
        unsafe { launch.run() }
    }

    /// `to[rows] = from`.
    fn put_rows(
        &self,
        to: &mut CudaAct,
        from: &CudaAct,
        rows: &CudaView<'_, u32>,
        (n_rows, width): (usize, usize),
    ) -> Result<()> {
        let shape = (check::blocks(OP, "rows", n_rows)?, row_threads(width, 256));
        let width_int = check::int(OP, "width", width)?;
        let kernel = match width.is_multiple_of(VECTOR) {
            true => Kernel::PutRows,
            false => Kernel::PutRowsNarrow,
        };
        let launch = self.launch(OP, kernel, shape);
        let launch = launch.with(to).with(from).with(rows).with(&width_int);
        // SAFETY: `from` holds n_rows rows, and each of `rows`, all different, is one of `to`.
        unsafe { launch.run() }
    }
}
