//! Passes over the paged cache: what generation runs.
//!
//! Invariant: a row's result depends only on its own sequence, so a response's text does not depend on its batch.

use llamaduo_kernels::{Backend, SequenceSpan};

use super::Context;
use super::activations::{ActivationPlan, Activations, Keep};
use super::decoder::Model;
use super::linear::AdapterOnDevice;
use crate::error::{Error, Result};

/// A model with one cache for each layer and the memory of a step.
#[derive(Debug)]
pub(crate) struct CachedDecoder<'a, B: Backend> {
    model: &'a Model<B>,
    adapter: Option<&'a AdapterOnDevice<B>>,
    caches: Vec<B::KvCache>,
    activations: Activations<B>,
    logits: B::F32,
}

/// Sizes of the caches and of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachePlan {
    /// Pages of each layer's cache.
    pub(crate) n_pages: usize,
    /// Tokens of a page.
    pub(crate) page_len: usize,
    /// Most rows of a step that only fills the cache.
    pub(crate) prefill_rows_max: usize,
    /// Most rows of a step whose logits are read.
    pub(crate) decode_rows_max: usize,
}

impl<'a, B: Backend> CachedDecoder<'a, B> {
    pub(crate) fn new(
        model: &'a Model<B>,
        adapter: Option<&'a AdapterOnDevice<B>>,
        plan: CachePlan,
    ) -> Result<Self> {
        let (backend, config) = (&model.backend, &model.config);
        let activation_plan = ActivationPlan {
            m_max: plan.prefill_rows_max.max(plan.decode_rows_max),
            lora_rank: adapter.map_or(0, |adapter| adapter.layout.rank()),
            keep: Keep::Nothing,
        };
        let caches = (0..config.n_layers)
            .map(|_| Ok(backend.alloc_kv_cache(config.heads, plan.n_pages, plan.page_len)?))
            .collect::<Result<_>>()?;
        let activations = Activations::new(backend, config, activation_plan)?;
        let logits = backend.alloc_f32(plan.decode_rows_max * config.vocab_size)?;
        Ok(Self {
            model,
            adapter,
            caches,
            activations,
            logits,
        })
    }

    /// Writes the keys and values of `ids`, whose rows `sequences` describe, into the cache.
    pub(crate) fn prefill(&mut self, ids: &[u32], sequences: &[SequenceSpan]) -> Result<()> {
        let model = self.model;
        model.backend.step(|| self.forward(ids, sequences))
    }

    fn forward(&mut self, ids: &[u32], sequences: &[SequenceSpan]) -> Result<()> {
        let backend = &self.model.backend;
        let positions: Vec<u32> = sequences
            .iter()
            .flat_map(|span| span.n_context - span.n_rows..span.n_context)
            .map(|position| position as u32)
            .collect();
        let positions = backend.upload_u32(&positions)?;
        let device_ids = backend.upload_u32(ids)?;
        let pass = self.model.pass(&positions, self.adapter, None, ids.len());
        let mut caches = self.caches.iter_mut();
        self.model
            .forward(&pass, &device_ids, &mut self.activations, |_| Context::Paged {
                cache: caches.next().expect("one cache was allocated for each layer"),
                sequences,
            })
    }

    /// As [`Self::prefill`], and leaves the logits of every row in `logits [M, V]`.
    pub(crate) fn decode(
        &mut self,
        ids: &[u32],
        sequences: &[SequenceSpan],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let (model, len) = (self.model, ids.len() * self.model.config.vocab_size);
        model.backend.step(|| {
            self.forward(ids, sequences)?;
            let hidden = &self.activations.hidden;
            Ok::<_, Error>(
                model
                    .backend
                    .logits(&mut self.logits, hidden, model.head(), ids.len())?,
            )
        })?;
        logits.resize(len, 0.0);
        Ok(model.backend.read_f32(&self.logits, 0, logits)?)
    }
}
