//! The one transformer all families share, on any backend.
//!
//! Invariant: base weights never change; what changes is in the adapter's flat buffer or in activations.
//!
//! There is no tape: each block's forward and backward stand side by side in its own file, and a step's memory is
//! planned once ([`Activations`]) and reused.

mod activations;
mod adapters;
mod attention_block;
mod cached;
mod decoder;
mod feed_forward;
mod linear;
mod post_norm;

pub(crate) use activations::{ActivationPlan, Activations, Keep};
pub(crate) use adapters::{AdapterOnDevice, AdapterSet, LoadedAdapters, PassAdapters};
pub(crate) use cached::{CachePlan, CachedDecoder, PassInput};
pub(crate) use decoder::{MicroBatch, Model};
pub(crate) use linear::DropoutStream;

use llamaduo_kernels::{Backend, Documents};

use crate::config::ModelConfig;

/// What the blocks of one pass share.
#[derive(Debug)]
pub(crate) struct Pass<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) config: &'a ModelConfig,
    /// Of each row within its own sequence, `[M]`.
    pub(crate) positions: &'a B::U32,
    pub(crate) adapters: PassAdapters<'a, B>,
    pub(crate) dropout: Option<DropoutStream>,
    /// Rows, `M`.
    pub(crate) m: usize,
    /// Whether the rows are those of whole documents, from which no token is chosen.
    pub(crate) is_of_documents: bool,
}

/// Where the keys and values of a pass are.
#[derive(Debug)]
pub(crate) enum Context<'a, B: Backend> {
    /// Whole documents, all in this pass.
    Packed(&'a Documents),
    /// Pages that outlive the pass.
    Paged {
        cache: &'a mut B::KvCache,
        sequences: &'a B::Sequences,
    },
}
