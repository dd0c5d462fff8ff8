//! A frozen linear layer with, beside it, an optional bias and an optional LoRA pair.
//!
//! Invariant: `backward` is the exact gradient of `forward`; the weight and the bias get none.

use llamaduo_kernels::{Backend, Dropout, LinearForward, Lora, LoraByRow, LoraForward, LoraSlot, random};

use super::Pass;
use super::adapters::PassAdapters;
use crate::error::Result;
use crate::lora::LinearName;

/// Dropout of one micro-batch: each linear draws from its own stream under this key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutStream {
    pub(crate) rate: f32,
    pub(crate) key: u64,
}

impl DropoutStream {
    /// The stream of a part.
    pub(crate) fn nested(self, part: u64) -> Self {
        Self {
            rate: self.rate,
            key: random::key(&[self.key, part]),
        }
    }
}

impl<'a, B: Backend> Pass<'a, B> {
    /// The pair that all rows have beside a linear, with its buffer.
    fn pair(&self, layer: usize, name: LinearName) -> Option<(&'a B::F32, LoraSlot, Option<Dropout>)> {
        let PassAdapters::One(adapter) = self.adapters else {
            return None;
        };
        let slot = adapter.layout.slot(layer, name)?;
        let dropout = self.dropout.map(|stream| Dropout {
            rate: stream.rate,
            key: random::key(&[stream.key, layer as u64, name.index() as u64]),
        });
        Some((&adapter.params, slot, dropout))
    }

    /// What is beside a linear; `h [M, R]` is for it.
    fn lora(&self, layer: usize, name: LinearName, h: &'a mut B::F32) -> Option<Lora<'a, B>> {
        if let PassAdapters::ByRow(set, of_row) = self.adapters {
            return Some(Lora::ByRow(LoraByRow {
                h,
                params: &set.params,
                pairs: set.pairs(layer, name)?,
                of_row,
            }));
        }
        let (params, slot, dropout) = self.pair(layer, name)?;
        Some(Lora::One(LoraForward {
            h,
            params,
            slot,
            dropout,
        }))
    }
}

/// One linear of one layer.
#[derive(Debug)]
pub(crate) struct Linear<B: Backend> {
    pub(crate) layer: usize,
    pub(crate) name: LinearName,
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<B::F32>,
    /// `N`.
    pub(crate) n_out: usize,
}

/// A linear and where its results go: `y [M, N]`, and `h [M, R]`, which is kept for the backward.
pub(crate) type LinearOut<'a, B> = (
    &'a Linear<B>,
    &'a mut <B as Backend>::Act,
    &'a mut <B as Backend>::F32,
);

/// `y = x·Wᵀ + scale·(h = drop(x)·Aᵀ)·Bᵀ + bias` of all linears that read `x [M, K]`.
pub(crate) fn forward<B: Backend, const N: usize>(
    pass: &Pass<'_, B>,
    x: &B::Act,
    linears: [LinearOut<'_, B>; N],
) -> Result<()> {
    let biases = linears
        .each_ref()
        .map(|(linear, ..)| (linear.bias.as_ref(), linear.n_out));
    let mut calls = linears.map(|(linear, y, h)| LinearForward {
        y,
        weight: &linear.weight,
        lora: pass.lora(linear.layer, linear.name, h),
    });
    match pass.is_of_documents {
        true => pass.backend.linears_of_documents(x, &mut calls, pass.m)?,
        false => pass.backend.linears(x, &mut calls, pass.m)?,
    }
    for (call, (bias, n_out)) in calls.iter_mut().zip(biases) {
        if let Some(bias) = bias {
            pass.backend.add_bias(call.y, bias, n_out, pass.m)?;
        }
    }
    Ok(())
}

impl<B: Backend> Linear<B> {
    /// `dx [M, K] +=` the gradient unless nobody asks for it; the pair's gradients `+=` in `grads`.
    pub(crate) fn backward(
        &self,
        pass: &Pass<'_, B>,
        mut dx: Option<&mut B::Act>,
        grads: &mut B::F32,
        dy: &B::Act,
        x: &B::Act,
        h: &B::F32,
    ) -> Result<()> {
        if let Some(dx) = dx.as_deref_mut() {
            pass.backend.matmul_backward(dx, dy, &self.weight, pass.m)?;
        }
        if let Some((params, slot, dropout)) = pass.pair(self.layer, self.name) {
            pass.backend
                .lora_backward(dx, grads, dy, x, h, params, slot, dropout, pass.m)?;
        }
        Ok(())
    }
}
