//! Softmax cross-entropy of rows of logits. The kernel is `kernels/cuda/cross_entropy.cu`.
//!
//! Invariant: a label outside the vocabulary is an error, unless it is [`NO_LABEL`].
#![expect(unsafe_code, reason = "launching a kernel")]

use super::{Cuda, CudaAct, CudaF32, Kernel, check};
use crate::backend::NO_LABEL;
use crate::error::{Error, Result};

const OP: &str = "cross_entropy";

impl Cuda {
    /// `losses [M] = -log softmax(logits [M, V])[labels]`, 0 where the label is [`NO_LABEL`]; with `dlogits [M, V]` also
    /// `= loss_scale * (softmax - onehot)`. The labels come from the host, where they are made.
    pub fn softmax_cross_entropy(
        &self,
        losses: &mut CudaF32,
        dlogits: Option<&mut CudaAct>,
        logits: &CudaF32,
        labels: &[u32],
        loss_scale: f32,
        n_vocab: usize,
    ) -> Result<()> {
        let m = labels.len();
        let wrong = |label: u32| label != NO_LABEL && label as usize >= n_vocab;
        if let Some(index) = labels.iter().position(|&label| wrong(label)) {
            return Err(Error::OutOfRange {
                op: OP,
                what: "label",
                index,
                value: labels[index] as usize,
                limit: n_vocab,
            });
        }
        check::holds(OP, "losses", losses, &[m])?;
        check::holds(OP, "logits", logits, &[m, n_vocab])?;
        if let Some(dlogits) = dlogits.as_deref() {
            check::holds(OP, "dlogits", dlogits, &[m, n_vocab])?;
        }
        let vocab_int = check::int(OP, "vocabulary", n_vocab)?;
        let n_threads = n_vocab.next_multiple_of(32).clamp(32, 512) as u32;
        let shape = (check::blocks(OP, "rows", m)?, n_threads);
        let labels = self.upload_u32(labels)?;
        let launch = self.launch(OP, Kernel::CrossEntropy, shape);
        let no_gradient = 0u64; // a null pointer
        let launch = match dlogits {
            Some(dlogits) => launch.with(losses).with(dlogits),
            None => launch.with(losses).with(&no_gradient),
        };
        let launch = launch.with(logits).with(&labels);
        let launch = launch.with(&loss_scale).with(&vocab_int);
        // SAFETY: m rows of n_vocab in both, m losses and labels, each below n_vocab or NO_LABEL.
        unsafe { launch.run() }
    }
}
