//! A frozen weight in either form, and what a model does with it: linears with LoRA beside them, logits, the gradient of
//! the input.
//!
//! Invariant: a linear's result is rounded to bf16 once, its LoRA pair's part included.

use cudarc::driver::CudaView;

use super::launch::Launch;
use super::lora::check_pair;
use super::lora_by_row::check_by_row;
use super::{Cuda, CudaAct, CudaBf16, CudaF32, CudaIndices, CudaNf4, Kernel, check};
use crate::backend::{LinearForward, Lora};
use crate::error::Result;
use crate::weight::HostWeight;

/// A frozen matrix `[N, K]` on the device.
#[derive(Debug)]
pub enum CudaWeight {
    /// Quantized to NF4.
    Nf4(CudaNf4),
    /// Any other format's values, rounded to bf16.
    Bf16(CudaBf16),
}

impl CudaWeight {
    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Nf4(weight) => weight.shape(),
            Self::Bf16(weight) => weight.shape(),
        }
    }
}

/// What a product adds at its end: `scale * h [M, R] · B [N, R]ᵀ`.
#[derive(Debug)]
pub(super) struct PairEnd<'a> {
    pub(super) h: &'a CudaF32,
    /// Of several pairs the whole buffer that they are in.
    pub(super) b: CudaView<'a, f32>,
    /// Of one pair.
    pub(super) scale: f32,
    /// Of several pairs the largest.
    pub(super) rank: i32,
    /// Of several pairs where they are, and which of them each row has.
    pub(super) by_row: Option<[&'a CudaIndices; 2]>,
}

impl<'a> Launch<'a> {
    /// One pair as four parameters; null pointers for none.
    pub(super) fn with_one_pair(self, pair: Option<&'a PairEnd<'_>>) -> Self {
        match pair {
            Some(pair) => self.with(pair.h).with(&pair.b).with(&pair.scale).with(&pair.rank),
            None => self.with(&0u64).with(&0u64).with(&0f32).with(&0i32),
        }
    }

    /// What is beside the weight as a product's last six parameters; null pointers for nothing.
    pub(super) fn with_pair(self, pair: Option<&'a PairEnd<'_>>) -> Self {
        let launch = self.with_one_pair(pair);
        match pair.and_then(|pair| pair.by_row) {
            Some([several, of_row]) => launch.with(several).with(of_row),
            None => launch.with(&0u64).with(&0u64),
        }
    }
}

/// `y [M, N] = x [M, K] · Wᵀ`, and what a pair adds.
type ForwardNf4 = fn(&Cuda, &mut CudaAct, &CudaAct, &CudaNf4, Option<&PairEnd<'_>>, usize) -> Result<()>;

impl Cuda {
    /// See [`Backend::load_weight`](crate::Backend::load_weight). NF4 stays NF4, all else becomes bf16.
    pub fn load_weight(&self, weight: HostWeight) -> Result<CudaWeight> {
        match weight {
            HostWeight::Nf4(matrix) => self.load_nf4(&matrix).map(CudaWeight::Nf4),
            HostWeight::Blocks(matrix) => {
                let loaded = self.load_bf16(&matrix)?;
                matrix.release();
                Ok(CudaWeight::Bf16(loaded))
            }
        }
    }

    /// See [`Backend::linears`](crate::Backend::linears).
    pub fn linears(&self, x: &CudaAct, linears: &mut [LinearForward<'_, Self>], m: usize) -> Result<()> {
        self.linears_by(x, linears, m, Self::forward_nf4)
    }

    /// See [`Backend::linears_of_documents`](crate::Backend::linears_of_documents): with NF4 weights Hopper has a kernel of
    /// its own, but for linears whose pairs differ from row to row.
    pub fn linears_of_documents(
        &self,
        x: &CudaAct,
        linears: &mut [LinearForward<'_, Self>],
        m: usize,
    ) -> Result<()> {
        match self.refusal(Kernel::MatmulNf4Hopper) {
            None => self.linears_by(x, linears, m, Self::forward_nf4_hopper),
            Some(_) => self.linears(x, linears, m),
        }
    }

    /// With `forward_nf4` for NF4 weights.
    fn linears_by(
        &self,
        x: &CudaAct,
        linears: &mut [LinearForward<'_, Self>],
        m: usize,
        forward_nf4: ForwardNf4,
    ) -> Result<()> {
        for linear in linears.iter() {
            check_linear(x, linear, m)?;
        }
        for LinearForward { y, weight, lora } in linears {
            let end = match lora {
                Some(Lora::One(pair)) => Some(self.lora_h(pair, x, m)?),
                Some(Lora::ByRow(pairs)) => self.lora_h_by_row(pairs, x, [m, weight.shape().1])?,
                None => None,
            };
            match weight {
                CudaWeight::Nf4(weight) => forward_nf4(self, y, x, weight, end.as_ref(), m)?,
                CudaWeight::Bf16(weight) => self.forward_bf16(y, x, weight, end.as_ref(), m)?,
            }
        }
        Ok(())
    }

    /// See [`Backend::matmul_backward`](crate::Backend::matmul_backward).
    pub fn matmul_backward(
        &self,
        dx: &mut CudaAct,
        dy: &CudaAct,
        weight: &CudaWeight,
        m: usize,
    ) -> Result<()> {
        match weight {
            CudaWeight::Nf4(weight) => self.matmul_nf4_backward(dx, dy, weight, m),
            CudaWeight::Bf16(weight) => self.matmul_bf16_backward(dx, dy, weight, m),
        }
    }

    /// See [`Backend::logits`](crate::Backend::logits).
    pub fn logits(&self, logits: &mut CudaF32, x: &CudaAct, head: &CudaWeight, m: usize) -> Result<()> {
        match head {
            CudaWeight::Nf4(head) => self.logits_nf4(logits, x, head, m),
            CudaWeight::Bf16(head) => self.logits_bf16(logits, x, head, m),
        }
    }

    /// The logits that the loss is taken of. There are many rows of them, and none is generated from: with a bf16 head
    /// they are summed in an order of their own, which does not depend on `m` either.
    pub fn loss_logits(&self, logits: &mut CudaF32, x: &CudaAct, head: &CudaWeight, m: usize) -> Result<()> {
        match head {
            CudaWeight::Nf4(head) => self.logits_nf4(logits, x, head, m),
            CudaWeight::Bf16(head) => self.loss_logits_bf16(logits, x, head, m),
        }
    }
}

fn check_linear(x: &CudaAct, linear: &LinearForward<'_, Cuda>, m: usize) -> Result<()> {
    const OP: &str = "linears";
    let (n, k) = linear.weight.shape();
    check::holds(OP, "y", linear.y, &[m, n])?;
    check::holds(OP, "x", x, &[m, k])?;
    match &linear.lora {
        Some(Lora::One(pair)) => check_pair(OP, pair, [m, n, k]),
        Some(Lora::ByRow(pairs)) => check_by_row(pairs, [m, n, k]),
        None => Ok(()),
    }
}
