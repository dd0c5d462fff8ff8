//! The state that training changes, in the backend's memory, and one optimizer step on it.
//!
//! Invariant: a step's result depends on the parameters, both moments, the step's micro-batches and its settings, on
//! nothing else.

use llamaduo_kernels::{AdamwSpec, Backend};

use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::lora::LoraLayout;
use crate::model::{ActivationPlan, Activations, AdapterOnDevice, DropoutStream, Keep, MicroBatch, Model};

/// Adapter, gradients and moments of a run.
#[derive(Debug)]
pub(crate) struct Trainer<'a, B: Backend> {
    model: &'a Model<B>,
    adapter: AdapterOnDevice<B>,
    grads: B::F32,
    first_moment: B::F32,
    second_moment: B::F32,
    activations: Activations<B>,
}

/// Parameters and moments in host memory, each as long as the layout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OptimizerState {
    pub(crate) params: Vec<f32>,
    pub(crate) first_moment: Vec<f32>,
    pub(crate) second_moment: Vec<f32>,
}

impl OptimizerState {
    /// Before the first step.
    pub(crate) fn start(params: Vec<f32>) -> Self {
        let zeros = vec![0.0; params.len()];
        Self {
            params,
            first_moment: zeros.clone(),
            second_moment: zeros,
        }
    }
}

/// What a step adds to the settings of its run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSettings {
    /// From 1.
    pub(crate) number: u32,
    pub(crate) learning_rate: f64,
    pub(crate) dropout: Option<DropoutStream>,
}

/// What a step tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepResult {
    /// Mean over the predicted tokens of the whole step, before its update.
    pub(crate) loss: f64,
    /// Before clipping.
    pub(crate) grad_norm: f64,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Takes a state into the backend. Micro-batches may have up to `m_max` rows.
    pub(crate) fn new(
        model: &'a Model<B>,
        layout: LoraLayout,
        state: &OptimizerState,
        m_max: usize,
        keep: Keep,
    ) -> Result<Self> {
        let backend = &model.backend;
        let plan = ActivationPlan {
            m_max,
            lora_rank: layout.rank(),
            keep,
        };
        Ok(Self {
            grads: backend.alloc_f32(layout.len())?,
            first_moment: backend.upload_f32(&state.first_moment)?,
            second_moment: backend.upload_f32(&state.second_moment)?,
            activations: Activations::new(backend, &model.config, plan)?,
            adapter: AdapterOnDevice {
                params: backend.upload_f32(&state.params)?,
                layout,
            },
            model,
        })
    }

    /// Leaves the gradients of the mean loss over all predicted tokens of `batches` and gives that loss.
    pub(crate) fn gradients(
        &mut self,
        batches: &[MicroBatch],
        dropout: Option<DropoutStream>,
    ) -> Result<f64> {
        let n_labels: usize = batches.iter().map(MicroBatch::n_labels).sum();
        let loss_scale = 1.0 / n_labels.max(1) as f32;
        self.model.backend.zero_f32(&mut self.grads)?;
        let mut sum = 0.0;
        for (index, batch) in batches.iter().enumerate() {
            let dropout = dropout.map(|stream| stream.nested(index as u64));
            let grads = Some((&mut self.grads, loss_scale));
            let model = self.model;
            let (activations, adapter) = (&mut self.activations, &self.adapter);
            sum += model
                .backend
                .step(|| model.loss(batch, activations, Some(adapter), dropout, grads))?;
        }
        Ok(sum / n_labels.max(1) as f64)
    }

    /// The first half of a step: loss and gradients. Fails when they are not finite; the state is as before.
    pub(crate) fn measure(&mut self, batches: &[MicroBatch], settings: StepSettings) -> Result<StepResult> {
        let loss = self.gradients(batches, settings.dropout)?;
        let len = self.adapter.layout.len();
        let grad_norm = self.model.backend.sum_squares(&self.grads, len)?.sqrt();
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(Error::Diverged {
                step: settings.number,
                loss,
                grad_norm,
            });
        }
        Ok(StepResult { loss, grad_norm })
    }

    /// The second half of a step: AdamW with the gradients that [`Self::measure`] left.
    pub(crate) fn update(
        &mut self,
        config: &TrainConfig,
        settings: StepSettings,
        measured: StepResult,
    ) -> Result<()> {
        let backend = &self.model.backend;
        let len = self.adapter.layout.len();
        let gradient_scale = match config.max_grad_norm {
            // The small number and the order are torch's `clip_grad_norm_`.
            Some(max) => (f64::from(max) / (measured.grad_norm + 1e-6)).min(1.0) as f32,
            None => 1.0,
        };
        let spec = AdamwSpec {
            learning_rate: settings.learning_rate,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay.into(),
            step: settings.number,
            gradient_scale,
        };
        let (first, second) = (&mut self.first_moment, &mut self.second_moment);
        Ok(backend.adamw(&mut self.adapter.params, &self.grads, first, second, spec, len)?)
    }

    /// Whether every parameter and every moment is a finite number.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        let len = self.adapter.layout.len();
        for part in [&self.adapter.params, &self.first_moment, &self.second_moment] {
            // The sum is in double precision: squares of finite singles cannot overflow it.
            if !self.model.backend.sum_squares(part, len)?.is_finite() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A copy of the state.
    pub(crate) fn state(&self) -> Result<OptimizerState> {
        Ok(OptimizerState {
            params: self.read(&self.adapter.params)?,
            first_moment: self.read(&self.first_moment)?,
            second_moment: self.read(&self.second_moment)?,
        })
    }

    /// A copy of the parameters.
    pub(crate) fn params(&self) -> Result<Vec<f32>> {
        self.read(&self.adapter.params)
    }

    fn read(&self, source: &B::F32) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.adapter.layout.len()];
        self.model.backend.read_f32(source, 0, &mut values)?;
        Ok(values)
    }
}

#[cfg(test)]
impl<B: Backend> Trainer<'_, B> {
    /// A copy of the gradients.
    pub(crate) fn read_gradients(&self) -> Result<Vec<f32>> {
        self.read(&self.grads)
    }
}
