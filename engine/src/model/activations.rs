//! The memory of a step, planned once from the model's sizes and the most tokens a step may hold.
//!
//! Invariant: no step allocates an activation; every such buffer is reused, and its size is known before the first step.
//!
//! What a block can cheaply make again (norm outputs, the gated product) is not kept but made again in the backward. The
//! gradients of `gate` and `up`, the widest of all, take the place of these.

use llamaduo_kernels::Backend;

use crate::config::ModelConfig;
use crate::error::Result;

/// What a pass leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: evaluation and generation.
    Nothing,
    /// Each layer's input; the backward runs a layer's forward again before its gradient.
    Inputs,
    /// Everything the backward needs.
    All,
}

/// Sizes of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ActivationPlan {
    /// Most rows of a step.
    pub(crate) m_max: usize,
    /// `R`, 0 without an adapter.
    pub(crate) lora_rank: usize,
    pub(crate) keep: Keep,
}

/// All buffers of a step.
#[derive(Debug)]
pub(crate) struct Activations<B: Backend> {
    pub(crate) keep: Keep,
    /// The residual stream before each layer and after the last, `[M, C]`; two that take turns when nothing is kept.
    pub(crate) streams: Vec<B::Act>,
    /// One for each layer, or one that all share.
    pub(crate) layers: Vec<LayerActivations<B>>,
    pub(crate) scratch: Scratch<B>,
    pub(crate) gradients: Option<Gradients<B>>,
    /// Final norm's output, `[M, C]`.
    pub(crate) hidden: B::Act,
    /// `[M]`.
    pub(crate) losses: B::F32,
}

/// What one layer keeps.
#[derive(Debug)]
pub(crate) struct LayerActivations<B: Backend> {
    pub(crate) attention: AttentionActivations<B>,
    /// The residual stream between the blocks, `[M, C]`.
    pub(crate) middle: B::Act,
    pub(crate) feed_forward: FeedForwardActivations<B>,
}

/// What the attention block keeps.
#[derive(Debug)]
pub(crate) struct AttentionActivations<B: Backend> {
    /// Queries and keys before their norms; only where the family has those norms.
    pub(crate) unnormed: Option<UnnormedHeads<B>>,
    /// `[M, H, D]`, rotated.
    pub(crate) q: B::Act,
    /// `[M, KV, D]`, rotated.
    pub(crate) k: B::Act,
    /// `[M, KV, D]`.
    pub(crate) v: B::Act,
    /// `[M, H, D]`: what the heads read.
    pub(crate) mixed: B::Act,
    /// `[M, H]`.
    pub(crate) lse: B::F32,
    /// `[M, R]` of query, key, value and output.
    pub(crate) h: [B::F32; 4],
    /// Only where the family norms what the block adds.
    pub(crate) unnormed_out: Option<UnnormedOut<B>>,
}

/// What a block adds to the residual stream, `[M, C]`, before its norm, and the norm's row statistics.
#[derive(Debug)]
pub(crate) struct UnnormedOut<B: Backend> {
    pub(crate) x: B::Act,
    /// `[M]`.
    pub(crate) rstd: B::F32,
}

/// Queries `[M, H, D]` and keys `[M, KV, D]` before their norms, and the norms' row statistics.
#[derive(Debug)]
pub(crate) struct UnnormedHeads<B: Backend> {
    pub(crate) q: B::Act,
    pub(crate) k: B::Act,
    /// `[M, H]`.
    pub(crate) q_rstd: B::F32,
    /// `[M, KV]`.
    pub(crate) k_rstd: B::F32,
}

/// What the feed-forward block keeps.
#[derive(Debug)]
pub(crate) struct FeedForwardActivations<B: Backend> {
    /// `[M, F]`.
    pub(crate) gate: B::Act,
    /// `[M, F]`.
    pub(crate) up: B::Act,
    /// `[M, R]` of gate, up and down.
    pub(crate) h: [B::F32; 3],
    /// Only where the family norms what the block adds.
    pub(crate) unnormed_out: Option<UnnormedOut<B>>,
}

/// What lives only within a block.
#[derive(Debug)]
pub(crate) struct Scratch<B: Backend> {
    /// A block's normed input, `[M, C]`.
    pub(crate) normed: B::Act,
    /// `[M]`.
    pub(crate) rstd: B::F32,
    /// `[M, F]`.
    pub(crate) gated: B::Act,
}

/// What lives only in the backward.
#[derive(Debug)]
pub(crate) struct Gradients<B: Backend> {
    /// Of the residual stream, `[M, C]`.
    pub(crate) stream: B::Act,
    /// Of a block's normed input, `[M, C]`.
    pub(crate) normed: B::Act,
    /// `[M, H, D]`.
    pub(crate) q: B::Act,
    /// `[M, KV, D]`.
    pub(crate) k: B::Act,
    /// `[M, KV, D]`.
    pub(crate) v: B::Act,
    /// `[M, H, D]`.
    pub(crate) mixed: B::Act,
    /// `[M, F]`.
    pub(crate) gated: B::Act,
}

impl<B: Backend> Activations<B> {
    pub(crate) fn new(backend: &B, config: &ModelConfig, plan: ActivationPlan) -> Result<Self> {
        let (n_streams, n_layers) = match plan.keep {
            Keep::Nothing => (2, 1),
            Keep::Inputs => (config.n_layers + 1, 1),
            Keep::All => (config.n_layers + 1, config.n_layers),
        };
        let m = plan.m_max;
        let gradients = match plan.keep {
            Keep::Nothing => None,
            Keep::Inputs | Keep::All => Some(Gradients::new(backend, config, m)?),
        };
        Ok(Self {
            keep: plan.keep,
            streams: (0..n_streams)
                .map(|_| Ok(backend.alloc_act(m * config.hidden)?))
                .collect::<Result<_>>()?,
            layers: (0..n_layers)
                .map(|_| LayerActivations::new(backend, config, plan))
                .collect::<Result<_>>()?,
            scratch: Scratch {
                normed: backend.alloc_act(m * config.hidden)?,
                rstd: backend.alloc_f32(m)?,
                gated: backend.alloc_act(m * config.ffn)?,
            },
            gradients,
            hidden: backend.alloc_act(m * config.hidden)?,
            losses: backend.alloc_f32(m)?,
        })
    }
}

impl<B: Backend> LayerActivations<B> {
    fn new(backend: &B, config: &ModelConfig, plan: ActivationPlan) -> Result<Self> {
        let m = plan.m_max;
        let (queries, keys) = head_widths(config);
        let low_rank = || backend.alloc_f32(m * plan.lora_rank);
        let unnormed = if config.qk_norm {
            Some(UnnormedHeads {
                q: backend.alloc_act(m * queries)?,
                k: backend.alloc_act(m * keys)?,
                q_rstd: backend.alloc_f32(m * config.heads.n_heads)?,
                k_rstd: backend.alloc_f32(m * config.heads.n_kv_heads)?,
            })
        } else {
            None
        };
        Ok(Self {
            attention: AttentionActivations {
                unnormed,
                q: backend.alloc_act(m * queries)?,
                k: backend.alloc_act(m * keys)?,
                v: backend.alloc_act(m * keys)?,
                mixed: backend.alloc_act(m * queries)?,
                lse: backend.alloc_f32(m * config.heads.n_heads)?,
                h: [low_rank()?, low_rank()?, low_rank()?, low_rank()?],
                unnormed_out: UnnormedOut::new(backend, config, m)?,
            },
            middle: backend.alloc_act(m * config.hidden)?,
            feed_forward: FeedForwardActivations {
                gate: backend.alloc_act(m * config.ffn)?,
                up: backend.alloc_act(m * config.ffn)?,
                h: [low_rank()?, low_rank()?, low_rank()?],
                unnormed_out: UnnormedOut::new(backend, config, m)?,
            },
        })
    }
}

impl<B: Backend> UnnormedOut<B> {
    fn new(backend: &B, config: &ModelConfig, m: usize) -> Result<Option<Self>> {
        if !config.post_norms {
            return Ok(None);
        }
        Ok(Some(Self {
            x: backend.alloc_act(m * config.hidden)?,
            rstd: backend.alloc_f32(m)?,
        }))
    }
}

impl<B: Backend> Gradients<B> {
    fn new(backend: &B, config: &ModelConfig, m: usize) -> Result<Self> {
        let (queries, keys) = head_widths(config);
        Ok(Self {
            stream: backend.alloc_act(m * config.hidden)?,
            normed: backend.alloc_act(m * config.hidden)?,
            q: backend.alloc_act(m * queries)?,
            k: backend.alloc_act(m * keys)?,
            v: backend.alloc_act(m * keys)?,
            mixed: backend.alloc_act(m * queries)?,
            gated: backend.alloc_act(m * config.ffn)?,
        })
    }
}

/// Features of all query heads and of all key heads together.
fn head_widths(config: &ModelConfig) -> (usize, usize) {
    (
        config.heads.n_heads * config.heads.head_dim,
        config.heads.n_kv_heads * config.heads.head_dim,
    )
}
