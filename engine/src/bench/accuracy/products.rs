//! Products with frozen weights, the pairs beside them, and the head.
//!
//! Invariant: a file holds all that its operation read.

use llamaduo_kernels::cuda::CudaWeight;
use llamaduo_kernels::{
    Backend, Cuda, DoubleQuant, HostWeight, LinearForward, Lora, LoraForward, LoraSlot, Nf4Matrix,
};

use super::Saver;
use crate::error::Result;
use crate::lora::LinearName;

impl Saver<'_> {
    /// A random NF4 weight: its values, and on the card.
    fn nf4(&mut self, n: usize, k: usize) -> Result<(Vec<f32>, CudaWeight)> {
        // a standard deviation of 0.02, with which these families are initialized
        let values: Vec<f32> = self.numbers(n * k).iter().map(|value| 0.025 * value).collect();
        let matrix = Nf4Matrix::quantize(n, k, &values, DoubleQuant::Yes)?;
        let held = matrix.dequantize();
        Ok((held, self.cuda.load_weight(HostWeight::Nf4(matrix))?))
    }

    /// Each direction where its sums are longest.
    pub(super) fn products(&mut self) -> Result<()> {
        let m = self.sizes.rows;
        let (k, n) = LinearName::Down.shape(self.config);
        let (w, weight) = self.nf4(n, k)?;
        let (x, x_card) = self.acts(m * k)?;
        let mut y = self.cuda.alloc_act(m * n)?;
        let linear = LinearForward::<Cuda> {
            y: &mut y,
            weight: &weight,
            lora: None,
        };
        self.cuda.linears(&x_card, &mut [linear], m)?;
        let y = self.read_act(&y, m * n)?;
        let tensors = [
            ("x", vec![m, k], &x[..]),
            ("w", vec![n, k], &w),
            ("out.y", vec![m, n], &y),
        ];
        self.save("linears", &[], &tensors)?;

        let (k, n) = LinearName::Gate.shape(self.config);
        let (w, weight) = self.nf4(n, k)?;
        let (dy, dy_card) = self.acts(m * n)?;
        let mut dx = self.cuda.alloc_act(m * k)?;
        self.cuda.matmul_backward(&mut dx, &dy_card, &weight, m)?;
        let dx = self.read_act(&dx, m * k)?;
        let tensors = [
            ("dy", vec![m, n], &dy[..]),
            ("w", vec![n, k], &w),
            ("out.dx", vec![m, k], &dx),
        ];
        self.save("matmul_backward", &[], &tensors)
    }

    /// A linear with a pair beside it, and the pair's gradients.
    pub(super) fn pairs(&mut self) -> Result<()> {
        let (m, r) = (self.sizes.rows, self.sizes.rank);
        let (k, n) = LinearName::Query.shape(self.config);
        let slot = LoraSlot {
            a_offset: 0,
            b_offset: r * k,
            rank: r,
            n_in: k,
            n_out: n,
            scale: 2.0,
        };
        let params: Vec<f32> = self
            .numbers(r * (k + n))
            .iter()
            .map(|value| 0.025 * value)
            .collect();
        let params_card = self.cuda.upload_f32(&params)?;
        let (w, weight) = self.nf4(n, k)?;
        let (x, x_card) = self.acts(m * k)?;
        let (mut y, mut h) = (self.cuda.alloc_act(m * n)?, self.cuda.alloc_f32(m * r)?);
        let linear = LinearForward::<Cuda> {
            y: &mut y,
            weight: &weight,
            lora: Some(Lora::One(LoraForward {
                h: &mut h,
                params: &params_card,
                slot,
                dropout: None,
            })),
        };
        self.cuda.linears_of_documents(&x_card, &mut [linear], m)?;
        let (y, h_values) = (self.read_act(&y, m * n)?, self.read_f32(&h, m * r)?);
        let (a, b) = params.split_at(r * k);
        let settings = [("scale", slot.scale.to_string())];
        let tensors = [
            ("x", vec![m, k], &x[..]),
            ("w", vec![n, k], &w),
            ("a", vec![r, k], a),
            ("b", vec![n, r], b),
            ("out.y", vec![m, n], &y),
        ];
        self.save("linears_lora", &settings, &tensors)?;

        let (dy, dy_card) = self.acts(m * n)?;
        let mut dx = self.cuda.alloc_act(m * k)?;
        let mut grads = self.cuda.alloc_f32(params.len())?;
        let target = Some(&mut dx);
        self.cuda.lora_backward(
            target,
            &mut grads,
            &dy_card,
            &x_card,
            &h,
            &params_card,
            slot,
            None,
            m,
        )?;
        let (dx, grads) = (self.read_act(&dx, m * k)?, self.read_f32(&grads, params.len())?);
        let (da, db) = grads.split_at(r * k);
        let tensors = [
            ("x", vec![m, k], &x[..]),
            ("dy", vec![m, n], &dy),
            ("h", vec![m, r], &h_values),
            ("a", vec![r, k], a),
            ("b", vec![n, r], b),
            ("out.dx", vec![m, k], &dx),
            ("out.da", vec![r, k], da),
            ("out.db", vec![n, r], db),
        ];
        self.save("lora_backward", &settings, &tensors)
    }

    /// Logits, and the loss with its gradient.
    pub(super) fn head(&mut self) -> Result<()> {
        let (m, c) = (self.sizes.rows, self.config.hidden);
        let v = self.config.vocab_size.min(self.sizes.vocab_max);
        // bf16 holds these exactly, and logits of a size at which losses differ
        let (head, _) = self.acts(v * c)?;
        let head: Vec<f32> = head.iter().map(|value| value / 64.0).collect();
        let head_card = self.cuda.load_weight(HostWeight::from_f32(v, c, &head)?)?;
        let (x, x_card) = self.acts(m * c)?;
        let mut logits = self.cuda.alloc_f32(m * v)?;
        self.cuda.logits(&mut logits, &x_card, &head_card, m)?;
        let logits = self.read_f32(&logits, m * v)?;
        let tensors = [
            ("x", vec![m, c], &x[..]),
            ("w", vec![v, c], &head),
            ("out.logits", vec![m, v], &logits),
        ];
        self.save("logits", &[], &tensors)?;

        let labels: Vec<u32> = (0..m).map(|row| (row * 7919 % v) as u32).collect();
        let labels_card = self.cuda.upload_u32(&labels)?;
        let (mut losses, mut dx) = (self.cuda.alloc_f32(m)?, self.cuda.alloc_act(m * c)?);
        let target = Some(&mut dx);
        Backend::cross_entropy(
            self.cuda,
            &mut losses,
            target,
            &x_card,
            &head_card,
            &labels_card,
            1.0,
            m,
        )?;
        let (losses, dx) = (self.read_f32(&losses, m)?, self.read_act(&dx, m * c)?);
        // below 2^24, so exact
        let labels: Vec<f32> = labels.iter().map(|&label| label as f32).collect();
        let tensors = [
            ("x", vec![m, c], &x[..]),
            ("w", vec![v, c], &head),
            ("labels", vec![m], &labels),
            ("out.losses", vec![m], &losses),
            ("out.dx", vec![m, c], &dx),
        ];
        self.save("cross_entropy", &[], &tensors)
    }
}
