//! Passes over the paged cache: what generation runs.
//!
//! Invariant: a row's result depends only on its own sequence, so a response's text does not depend on its batch.

use llamaduo_kernels::{Backend, NO_PAIR, SampleRow, SequenceSpan};

use super::activations::{ActivationPlan, Activations, Keep};
use super::decoder::Model;
use super::{Context, LoadedAdapters, Pass};
use crate::error::{Error, Result};

/// A model with one cache for each layer and the memory of a step.
#[derive(Debug)]
pub(crate) struct CachedDecoder<'a, B: Backend> {
    model: &'a Model<B>,
    caches: Vec<B::KvCache>,
    step: Step<'a, B>,
    recordings: B::Recordings,
}

/// What a step reads and writes beside the caches. Its sizes do not change, nor where it is: what changes from step to
/// step is written into it before.
#[derive(Debug)]
struct Step<'a, B: Backend> {
    adapters: &'a LoadedAdapters<B>,
    /// Which of several adapters each row has, `[M]`.
    of_row: B::U32,
    /// Rows, `M`.
    m: usize,
    ids: B::U32,
    positions: B::U32,
    sequences: B::Sequences,
    activations: Activations<B>,
    /// `[M, V]`.
    logits: B::F32,
    choices: B::Choices,
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
    /// Most rows of a step that chooses tokens.
    pub(crate) decode_rows_max: usize,
}

/// What a pass runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassInput<'a> {
    /// `[M]`.
    pub(crate) ids: &'a [u32],
    /// Whose rows they are, one after another.
    pub(crate) sequences: &'a [SequenceSpan],
    /// The adapter of each sequence; not looked at unless there are several.
    pub(crate) adapters: &'a [Option<usize>],
}

impl<'a, B: Backend> CachedDecoder<'a, B> {
    pub(crate) fn new(model: &'a Model<B>, adapters: &'a LoadedAdapters<B>, plan: CachePlan) -> Result<Self> {
        let (backend, config) = (&model.backend, &model.config);
        let activation_plan = ActivationPlan {
            m_max: plan.prefill_rows_max.max(plan.decode_rows_max),
            lora_rank: adapters.rank(),
            keep: Keep::Nothing,
        };
        let caches = (0..config.n_layers)
            .map(|_| Ok(backend.alloc_kv_cache(config.heads, plan.n_pages, plan.page_len)?))
            .collect::<Result<_>>()?;
        let step = Step {
            adapters,
            of_row: backend.upload_u32(&vec![0; activation_plan.m_max])?,
            m: 0,
            ids: backend.upload_u32(&vec![0; activation_plan.m_max])?,
            positions: backend.upload_u32(&vec![0; activation_plan.m_max])?,
            sequences: backend.alloc_sequences(plan.n_pages, plan.page_len, &model.attention_specs())?,
            activations: Activations::new(backend, config, activation_plan)?,
            logits: backend.alloc_f32(plan.decode_rows_max * config.vocab_size)?,
            choices: backend.alloc_choices(plan.decode_rows_max)?,
        };
        Ok(Self {
            model,
            caches,
            step,
            recordings: B::Recordings::default(),
        })
    }

    /// Writes the keys and values of all rows into the cache.
    pub(crate) fn prefill(&mut self, input: PassInput<'_>) -> Result<()> {
        let Self {
            model, caches, step, ..
        } = self;
        step.write(&model.backend, input)?;
        model.backend.step(|| step.forward(&model.backend, model, caches))
    }

    /// As [`Self::prefill`], and leaves the logits of every row in `logits [M, V]`.
    pub(crate) fn logits(&mut self, input: PassInput<'_>, logits: &mut Vec<f32>) -> Result<()> {
        let Self {
            model, caches, step, ..
        } = self;
        let backend = &model.backend;
        step.write(backend, input)?;
        backend.step(|| {
            step.forward(backend, model, caches)?;
            step.logits(backend, model)
        })?;
        logits.resize(input.ids.len() * model.config.vocab_size, 0.0);
        Ok(backend.read_f32(&step.logits, 0, logits)?)
    }

    /// As [`Self::prefill`], and gives the next token of every row, chosen as its row of `choices` says.
    pub(crate) fn decode(&mut self, input: PassInput<'_>, choices: &[SampleRow<'_>]) -> Result<Vec<u32>> {
        let Self {
            model,
            caches,
            step,
            recordings,
        } = self;
        let backend = &model.backend;
        step.write(backend, input)?;
        backend.write_choices(&mut step.choices, choices, model.config.vocab_size)?;
        backend.step(|| {
            backend.replay(recordings, |backend| {
                step.forward(backend, model, caches)?;
                step.logits(backend, model)?;
                Ok::<_, Error>(backend.choose(&mut step.choices, &mut step.logits)?)
            })
        })?;
        let mut chosen = vec![0; choices.len()];
        backend.read_choices(&step.choices, &mut chosen)?;
        Ok(chosen)
    }

    /// The logits `[V]` from which a row's token was last chosen.
    pub(crate) fn read_logits(&self, row: usize) -> Result<Vec<f32>> {
        let n_vocab = self.model.config.vocab_size;
        let mut logits = vec![0.0; n_vocab];
        let backend = &self.model.backend;
        backend.read_f32(&self.step.logits, row * n_vocab, &mut logits)?;
        Ok(logits)
    }
}

impl<B: Backend> Step<'_, B> {
    /// Takes in what the next pass runs.
    fn write(&mut self, backend: &B, input: PassInput<'_>) -> Result<()> {
        let PassInput {
            ids,
            sequences,
            adapters,
        } = input;
        let positions: Vec<u32> = sequences
            .iter()
            .flat_map(|span| span.n_context - span.n_rows..span.n_context)
            .map(|position| position as u32)
            .collect();
        self.m = ids.len();
        backend.write_u32(&mut self.ids, ids)?;
        backend.write_u32(&mut self.positions, &positions)?;
        if let LoadedAdapters::Several(_) = self.adapters {
            let of_sequence = sequences.iter().zip(adapters);
            let of_row: Vec<u32> = of_sequence
                .flat_map(|(span, adapter)| {
                    let pair = adapter.map_or(NO_PAIR, |adapter| adapter as u32);
                    std::iter::repeat_n(pair, span.n_rows)
                })
                .collect();
            backend.write_u32(&mut self.of_row, &of_row)?;
        }
        Ok(backend.write_sequences(&mut self.sequences, sequences)?)
    }

    fn forward(&mut self, backend: &B, model: &Model<B>, caches: &mut [B::KvCache]) -> Result<()> {
        let Self {
            adapters,
            of_row,
            ids,
            positions,
            sequences,
            activations,
            ..
        } = self;
        let pass = Pass {
            is_of_documents: false,
            ..model.pass(backend, positions, adapters.pass(of_row), None, self.m)
        };
        let mut caches = caches.iter_mut();
        model.forward(&pass, ids, activations, |_| Context::Paged {
            cache: caches.next().expect("one cache was allocated for each layer"),
            sequences,
        })
    }

    /// Of every row of the pass.
    fn logits(&mut self, backend: &B, model: &Model<B>) -> Result<()> {
        let hidden = &self.activations.hidden;
        Ok(backend.logits(&mut self.logits, hidden, model.head(), self.m)?)
    }
}

#[cfg(test)]
mod tests;
