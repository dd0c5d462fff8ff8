//! Products with frozen weights, and the pairs beside them.
//!
//! Invariant: each shape that occurs in the model's blocks is measured once.

use llamaduo_kernels::cuda::{CudaWeight, Kernel};
use llamaduo_kernels::{
    Backend, Cuda, DoubleQuant, HostWeight, LinearForward, Lora, LoraForward, LoraSlot, NO_LABEL,
};

use super::clock::Clock;
use super::{Bench, Work, count, dims, values};
use crate::error::Result;
use crate::lora::LinearName;

/// Bytes of an NF4 weight on the card: half a byte an element, a 32-bit scale for each 64.
fn nf4_bytes(n: usize, k: usize) -> f64 {
    count([n, k]) * (0.5 + 4.0 / 64.0)
}

impl Bench<'_> {
    /// `(N, K)` of the linears of a block, each once.
    fn shapes(&self) -> Vec<(usize, usize)> {
        let mut shapes: Vec<(usize, usize)> = LinearName::ALL
            .into_iter()
            .map(|name| name.shape(self.config))
            .map(|(k, n)| (n, k))
            .collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes
    }

    /// `n_sets` copies of a random NF4 weight, each in memory of its own.
    fn nf4(&self, n: usize, k: usize, n_sets: usize) -> Result<Vec<CudaWeight>> {
        let host = HostWeight::from_f32(n, k, &values(n * k))?;
        (0..n_sets)
            .map(|_| Ok(self.cuda.load_weight_nf4(host.clone(), DoubleQuant::No)?))
            .collect()
    }

    /// NF4 products in both directions, at each number of rows.
    pub(super) fn products(&self, clock: &mut Clock<'_>) -> Result<()> {
        let ops = ["linears", "linears_of_documents", "matmul_backward"];
        if !ops.iter().any(|op| clock.wants(op)) {
            return Ok(());
        }
        let m_max = self.sizes.rows.iter().copied().max().unwrap_or(0);
        let shapes = self.shapes();
        let widest = shapes.iter().map(|&(n, k)| n.max(k)).max().unwrap_or(0);
        let (x, mut y) = (self.acts(2, m_max * widest)?, self.outs(2, m_max * widest)?);
        for (n, k) in shapes {
            let n_sets = clock.n_sets(nf4_bytes(n, k) as usize);
            let weights = self.nf4(n, k, n_sets)?;
            for &m in &self.sizes.rows {
                let work = |op, bytes| Work {
                    op,
                    dims: dims([("m", m), ("n", n), ("k", k)]),
                    flops: 2.0 * count([m, n, k]),
                    bytes: nf4_bytes(n, k) + bytes,
                };
                let forward = work("linears", 2.0 * count([m, n + k]));
                clock.measure(forward, true, n_sets, &mut |set| {
                    let linear = LinearForward::<Cuda> {
                        y: &mut y[set % 2],
                        weight: &weights[set],
                        lora: None,
                    };
                    self.cuda.linears(&x[set % 2], &mut [linear], m)
                });
                // elsewhere it is the same once more
                if self.cuda.refusal(Kernel::MatmulNf4Hopper).is_none() {
                    let documents = work("linears_of_documents", 2.0 * count([m, n + k]));
                    clock.measure(documents, true, n_sets, &mut |set| {
                        let linear = LinearForward::<Cuda> {
                            y: &mut y[set % 2],
                            weight: &weights[set],
                            lora: None,
                        };
                        self.cuda.linears_of_documents(&x[set % 2], &mut [linear], m)
                    });
                }
                // what was there is read too
                let backward = work("matmul_backward", 2.0 * count([m, n + 2 * k]));
                clock.measure(backward, true, n_sets, &mut |set| {
                    self.cuda
                        .matmul_backward(&mut y[set % 2], &x[set % 2], &weights[set], m)
                });
            }
        }
        Ok(())
    }

    /// The widest linear with a pair beside it, and the pair's gradients, in a step of training.
    pub(super) fn pairs(&self, clock: &mut Clock<'_>) -> Result<()> {
        if !clock.wants("linears_lora") && !clock.wants("lora_backward") {
            return Ok(());
        }
        let (m, rank) = (self.m(), self.sizes.rank);
        let (k, n) = LinearName::Gate.shape(self.config);
        let slot = LoraSlot {
            a_offset: 0,
            b_offset: rank * k,
            rank,
            n_in: k,
            n_out: n,
            scale: 2.0,
        };
        let n_params = rank * (n + k);
        let params = self.cuda.upload_f32(&values(n_params))?;
        let (x, dy) = (self.acts(2, m * k)?, self.acts(2, m * n)?);
        let (mut y, mut dx) = (self.outs(2, m * n)?, self.outs(2, m * k)?);
        let (mut h, mut grads) = (self.cuda.alloc_f32(m * rank)?, self.cuda.alloc_f32(n_params)?);
        let weights = self.nf4(n, k, 2)?;
        let dims = dims([("m", m), ("n", n), ("k", k), ("r", rank)]);
        let with_pair = Work {
            op: "linears_lora",
            dims: dims.clone(),
            flops: 2.0 * count([m, n, k]) + 2.0 * count([m, rank, n + k]),
            bytes: nf4_bytes(n, k) + 2.0 * count([m, n + k]) + 4.0 * count([rank, n + k]),
        };
        clock.measure(with_pair, true, 2, &mut |set| {
            let linear = LinearForward::<Cuda> {
                y: &mut y[set],
                weight: &weights[set],
                lora: Some(Lora::One(LoraForward {
                    h: &mut h,
                    params: &params,
                    slot,
                    dropout: None,
                })),
            };
            self.cuda.linears_of_documents(&x[set], &mut [linear], m)
        });
        // dh, dB, dA and dx
        let backward = Work {
            op: "lora_backward",
            dims,
            flops: 4.0 * count([m, rank, n + k]),
            bytes: 2.0 * count([m, n + 3 * k]) + 8.0 * count([rank, n + k]),
        };
        clock.measure(backward, false, 2, &mut |set| {
            let dx = Some(&mut dx[set]);
            self.cuda
                .lora_backward(dx, &mut grads, &dy[set], &x[set], &h, &params, slot, None, m)
        });
        Ok(())
    }

    /// The head: logits of a decoding step, and the loss of a step of training with its gradient.
    pub(super) fn head(&self, clock: &mut Clock<'_>) -> Result<()> {
        if !clock.wants("logits") && !clock.wants("cross_entropy") {
            return Ok(());
        }
        let (c, v) = (self.config.hidden, self.config.vocab_size);
        let head = self
            .cuda
            .load_weight(HostWeight::from_f32(v, c, &values(v * c))?)?;
        let head_bytes = 2.0 * count([v, c]);
        let b = self.sizes.sequences;
        let x = self.acts(2, b * c)?;
        let mut logits = self.cuda.alloc_f32(b * v)?;
        let work = Work {
            op: "logits",
            dims: dims([("m", b), ("n", v), ("k", c)]),
            flops: 2.0 * count([b, v, c]),
            bytes: head_bytes + 2.0 * count([b, c]) + 4.0 * count([b, v]),
        };
        // the head is larger than any cache
        clock.measure(work, true, 2, &mut |set| {
            self.cuda.logits(&mut logits, &x[set], &head, b)
        });

        let m = self.sizes.tokens;
        let (x, mut dx) = (self.acts(2, m * c)?, self.outs(2, m * c)?);
        let mut losses = self.cuda.alloc_f32(m)?;
        // the last token of a document has no label, as in training
        let labels = (0..m).map(|row| if row + 1 == m { NO_LABEL } else { (row % v) as u32 });
        let labels = self.cuda.upload_u32(&labels.collect::<Vec<_>>())?;
        let work = Work {
            op: "cross_entropy",
            dims: dims([("m", m), ("n", v), ("k", c)]),
            flops: 4.0 * count([m, v, c]),
            bytes: 2.0 * head_bytes + 4.0 * count([m, c]),
        };
        clock.measure(work, false, 2, &mut |set| {
            let dx = Some(&mut dx[set]);
            Backend::cross_entropy(self.cuda, &mut losses, dx, &x[set], &head, &labels, 1.0, m)
        });
        Ok(())
    }
}
