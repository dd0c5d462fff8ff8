//! Adapters in the backend's memory: none, one for all rows, or several of which each row has its own.
//!
//! Invariant: a row's result is the same whether its adapter is held alone or among others.

use llamaduo_kernels::{Backend, LoraSlot};

use super::Model;
use crate::error::{Error, Result};
use crate::lora::{Adapter, LinearName, LoraLayout};

/// An adapter in the backend's memory.
#[derive(Debug)]
pub(crate) struct AdapterOnDevice<B: Backend> {
    pub(crate) params: B::F32,
    pub(crate) layout: LoraLayout,
}

/// Several, one after another in one flat buffer.
#[derive(Debug)]
pub(crate) struct AdapterSet<B: Backend> {
    pub(crate) params: B::F32,
    /// Of each layer's linears; `None` where no adapter has a pair.
    pairs: Vec<[Option<B::LoraPairs>; 7]>,
    /// The largest.
    rank: usize,
}

/// What generation holds.
#[derive(Debug)]
pub(crate) enum LoadedAdapters<B: Backend> {
    Nothing,
    One(AdapterOnDevice<B>),
    Several(AdapterSet<B>),
}

/// What is beside the base in a pass.
#[derive(Debug)]
pub(crate) enum PassAdapters<'a, B: Backend> {
    Nothing,
    One(&'a AdapterOnDevice<B>),
    /// And which of them each row has, `[M]`.
    ByRow(&'a AdapterSet<B>, &'a B::U32),
}

impl<'a, B: Backend> From<Option<&'a AdapterOnDevice<B>>> for PassAdapters<'a, B> {
    fn from(adapter: Option<&'a AdapterOnDevice<B>>) -> Self {
        adapter.map_or(Self::Nothing, Self::One)
    }
}

/// Where an adapter's pairs are. Fails when it was made for a model of other sizes.
fn layout_on<B: Backend>(model: &Model<B>, adapter: &Adapter) -> Result<LoraLayout> {
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
    Ok(expected)
}

impl<B: Backend> AdapterOnDevice<B> {
    /// Takes an adapter into the model's backend. Fails when it was made for a model of other sizes.
    pub(crate) fn upload(model: &Model<B>, adapter: &Adapter) -> Result<Self> {
        let layout = layout_on(model, adapter)?;
        Ok(Self {
            params: model.backend.upload_f32(adapter.params())?,
            layout,
        })
    }
}

impl<B: Backend> AdapterSet<B> {
    /// Takes adapters into the model's backend; a row names one by its place. Fails when one was made for a model of other
    /// sizes.
    pub(crate) fn upload(model: &Model<B>, adapters: &[Adapter]) -> Result<Self> {
        let backend = &model.backend;
        let (mut layouts, mut len) = (Vec::new(), 0);
        for adapter in adapters {
            layouts.push((layout_on(model, adapter)?, len));
            len += adapter.params().len();
        }
        let mut params = backend.alloc_f32(len)?;
        for (adapter, (_, start)) in adapters.iter().zip(&layouts) {
            backend.write_f32(&mut params, *start, adapter.params())?;
        }
        let pairs = (0..model.config.n_layers).map(|layer| {
            let mut pairs = [const { None }; 7];
            for name in LinearName::ALL {
                let slots = layouts
                    .iter()
                    .map(|(layout, start)| layout.slot(layer, name).map(|slot| moved(slot, *start)));
                let slots: Vec<Option<LoraSlot>> = slots.collect();
                if slots.iter().any(Option::is_some) {
                    pairs[name.index()] = Some(backend.upload_pairs(&slots)?);
                }
            }
            Ok(pairs)
        });
        Ok(Self {
            pairs: pairs.collect::<Result<_>>()?,
            params,
            rank: layouts.iter().map(|(layout, _)| layout.rank()).max().unwrap_or(0),
        })
    }

    /// The pairs beside a linear, where there are any.
    pub(crate) fn pairs(&self, layer: usize, name: LinearName) -> Option<&B::LoraPairs> {
        self.pairs.get(layer)?[name.index()].as_ref()
    }
}

/// The place of a pair whose adapter begins at `start`.
fn moved(slot: LoraSlot, start: usize) -> LoraSlot {
    LoraSlot {
        a_offset: start + slot.a_offset,
        b_offset: start + slot.b_offset,
        ..slot
    }
}

impl<B: Backend> LoadedAdapters<B> {
    /// One for all rows, or none.
    pub(crate) fn one(model: &Model<B>, adapter: Option<&Adapter>) -> Result<Self> {
        match adapter {
            Some(adapter) => AdapterOnDevice::upload(model, adapter).map(Self::One),
            None => Ok(Self::Nothing),
        }
    }

    /// The largest rank; 0 without an adapter.
    pub(crate) fn rank(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(adapter) => adapter.layout.rank(),
            Self::Several(set) => set.rank,
        }
    }

    /// For a pass whose rows have the adapters `of_row`, where there are several.
    pub(crate) fn pass<'a>(&'a self, of_row: &'a B::U32) -> PassAdapters<'a, B> {
        match self {
            Self::Nothing => PassAdapters::Nothing,
            Self::One(adapter) => PassAdapters::One(adapter),
            Self::Several(set) => PassAdapters::ByRow(set, of_row),
        }
    }
}
