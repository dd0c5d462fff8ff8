//! A frozen linear layer with, beside it, an optional bias and an optional LoRA pair.
//!
//! Invariant: `backward` is the exact gradient of `forward`; the weight and the bias get none.

use llamaduo_kernels::{Backend, Dropout, LinearForward, LoraForward, LoraSlot, random};

use super::{Model, Pass};
use crate::error::{Error, Result};
use crate::lora::{Adapter, LinearName, LoraLayout};

/// An adapter in the backend's memory.
#[derive(Debug)]
pub(crate) struct AdapterOnDevice<B: Backend> {
    pub(crate) params: B::F32,
    pub(crate) layout: LoraLayout,
}

impl<B: Backend> AdapterOnDevice<B> {
    /// Takes an adapter into the model's backend. Fails when it was made for a model of other sizes.
    pub(crate) fn upload(model: &Model<B>, adapter: &Adapter) -> Result<Self> {
        let expected = LoraLayout::new(&model.config, adapter.config());
        if *adapter.layout() != expected {
            return Err(Error::AdapterMismatch {
                expected: format!(
                    "{} parameters in {} layers",
                    expected.len(),
                    model.config.n_layers
                ),
                found: format!("{} parameters of a model of other sizes", adapter.params().len()),
            });
        }
        Ok(Self {
            params: model.backend.upload_f32(adapter.params())?,
            layout: expected,
        })
    }
}

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
    fn lora(&self, layer: usize, name: LinearName) -> Option<(&'a B::F32, LoraSlot, Option<Dropout>)> {
        let adapter = self.adapter?;
        let slot = adapter.layout.slot(layer, name)?;
        let dropout = self.dropout.map(|stream| Dropout {
            rate: stream.rate,
            key: random::key(&[stream.key, layer as u64, name.index() as u64]),
        });
        Some((&adapter.params, slot, dropout))
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
    let mut calls = linears.map(|(linear, y, h)| {
        let pair = pass.lora(linear.layer, linear.name);
        LinearForward {
            y,
            weight: &linear.weight,
            lora: pair.map(|(params, slot, dropout)| LoraForward {
                h,
                params,
                slot,
                dropout,
            }),
        }
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
        if let Some((params, slot, dropout)) = pass.lora(self.layer, self.name) {
            pass.backend
                .lora_backward(dx, grads, dy, x, h, params, slot, dropout, pass.m)?;
        }
        Ok(())
    }
}
