//! What goes over rows and elements once: norms, rotation, the gate, the residual stream, the optimizer.
//!
//! Invariant: all of these are bound by memory, so their bytes are what counts.

use llamaduo_kernels::{AdamwSpec, RmsNormSpec};

use super::clock::Clock;
use super::{Bench, Work, count, dims, values};
use crate::error::Result;
use crate::lora::{LoraConfig, LoraLayout};

impl Bench<'_> {
    /// The norm over a row of the residual stream, forward and backward.
    pub(super) fn norms(&self, clock: &mut Clock<'_>) -> Result<()> {
        if !["rms_norm", "add_rms_norm", "rms_norm_backward"]
            .iter()
            .any(|op| clock.wants(op))
        {
            return Ok(());
        }
        let (m, width) = (self.m(), self.config.hidden);
        let spec = RmsNormSpec {
            width,
            epsilon: self.config.rms_norm_epsilon,
            weight_offset: self.config.norm_weight_offset,
        };
        let n_sets = clock.n_sets(4 * m * width);
        let (x, dy) = (self.acts(n_sets, m * width)?, self.acts(n_sets, m * width)?);
        let (mut out, mut y) = (self.outs(n_sets, m * width)?, self.outs(n_sets, m * width)?);
        let mut rstd = self.cuda.alloc_f32(m)?;
        let weight = self.cuda.upload_f32(&values(width))?;
        let work = |op, n_passes: f64| Work {
            op,
            dims: dims([("m", m), ("n", width)]),
            flops: 0.0,
            bytes: 2.0 * n_passes * count([m, width]),
        };
        clock.measure(work("rms_norm", 2.0), true, n_sets, &mut |set| {
            self.cuda
                .rms_norm(&mut out[set], &mut rstd, &x[set], &weight, spec, m)
        });
        clock.measure(work("add_rms_norm", 4.0), true, n_sets, &mut |set| {
            let (y, out) = (&mut y[set], &mut out[set]);
            self.cuda
                .add_rms_norm(y, out, &mut rstd, &x[set], &weight, spec, m)
        });
        // reads dx, dy and x, writes dx
        clock.measure(work("rms_norm_backward", 4.0), true, n_sets, &mut |set| {
            let dx = &mut out[set];
            self.cuda
                .rms_norm_backward(dx, &dy[set], &x[set], &rstd, &weight, spec, m)
        });
        Ok(())
    }

    /// Rotation of queries and keys, the gate and its gradient, the residual stream.
    pub(super) fn pointwise(&self, clock: &mut Clock<'_>) -> Result<()> {
        let m = self.m();
        if clock.wants("rope_both") {
            self.rotation(clock, m)?;
        }
        if !["gated", "gated_backward", "add"]
            .iter()
            .any(|op| clock.wants(op))
        {
            return Ok(());
        }
        let (len, activation) = (m * self.config.ffn, self.config.activation);
        let n_sets = clock.n_sets(6 * len);
        let (mut gate, mut up) = (self.acts(n_sets, len)?, self.acts(n_sets, len)?);
        let mut out = self.outs(n_sets, len)?;
        let work = |op, n_passes: f64| Work {
            op,
            dims: dims([("len", len)]),
            flops: 0.0,
            bytes: 2.0 * n_passes * count([len]),
        };
        clock.measure(work("gated", 3.0), true, n_sets, &mut |set| {
            self.cuda
                .gated(&mut out[set], &gate[set], &up[set], activation, len)
        });
        clock.measure(work("gated_backward", 5.0), true, n_sets, &mut |set| {
            let (gate, up) = (&mut gate[set], &mut up[set]);
            self.cuda.gated_backward(gate, up, &out[set], activation, len)
        });
        clock.measure(work("add", 3.0), true, n_sets, &mut |set| {
            self.cuda.add(&mut out[set], &gate[set], len)
        });
        Ok(())
    }

    fn rotation(&self, clock: &mut Clock<'_>, m: usize) -> Result<()> {
        let heads = self.config.heads;
        let (queries, keys) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let positions: Vec<u32> = (0..m).map(|row| (row % self.sizes.tokens) as u32).collect();
        let positions = self.cuda.upload_u32(&positions)?;
        let frequencies = self.cuda.upload_f32(&self.config.rope_frequencies(0))?;
        let n_sets = clock.n_sets(4 * m * (queries + keys));
        let (mut q, mut k) = (self.acts(n_sets, m * queries)?, self.acts(n_sets, m * keys)?);
        let work = Work {
            op: "rope_both",
            dims: dims([
                ("m", m),
                ("h", heads.n_heads),
                ("kv", heads.n_kv_heads),
                ("d", heads.head_dim),
            ]),
            flops: 0.0,
            bytes: 4.0 * count([m, queries + keys]),
        };
        clock.measure(work, true, n_sets, &mut |set| {
            let (q, k) = (&mut q[set], &mut k[set]);
            self.cuda.rope_both(q, k, &positions, &frequencies, heads, m)
        });
        Ok(())
    }

    /// AdamW over the adapter of all linears.
    pub(super) fn optimizer(&self, clock: &mut Clock<'_>) -> Result<()> {
        let lora = LoraConfig {
            rank: self.sizes.rank,
            ..LoraConfig::default()
        };
        let len = LoraLayout::new(self.config, &lora).len();
        if !clock.wants("adamw") {
            return Ok(());
        }
        let values = values(len);
        let grads = self.cuda.upload_f32(&values)?;
        let [mut params, mut first, mut second] = [
            self.cuda.upload_f32(&values)?,
            self.cuda.alloc_f32(len)?,
            self.cuda.alloc_f32(len)?,
        ];
        let spec = AdamwSpec {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step: 1,
            gradient_scale: 1.0,
        };
        let work = Work {
            op: "adamw",
            dims: dims([("len", len)]),
            flops: 0.0,
            // reads four, writes three
            bytes: 28.0 * len as f64,
        };
        // an adapter and its moments are larger than any cache
        clock.measure(work, true, 1, &mut |_| {
            self.cuda
                .adamw(&mut params, &grads, &mut first, &mut second, spec, len)
        });
        Ok(())
    }
}
