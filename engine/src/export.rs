//! A trained model in the formats of other programs: PEFT, llama.cpp, transformers, Ollama.
//!
//! Invariant: what is exported answers as the trained model did, up to the rounding of the stored type, which is measured
//! on the written file and reported; a target gets its name only once it is whole.
//!
//! What is merged is the base as it was held in training plus the pairs' products: an adapter that was trained on NF4 has
//! learnt to correct NF4's rounding too, so on the base's own values it would answer differently.

mod checkpoint;
mod compare;
mod encode;
mod gguf;
mod lora;
mod merge;
mod ollama;
mod place;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::path::Path;

use llamaduo_kernels::{Compute, Device};
use serde::Serialize;

pub use compare::Difference;
pub use encode::StoredType;

use compare::{Logits, Probes};
use merge::Merge;
use place::{Kind, Partial, Sink};

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::local_model::{BaseQuant, LoadOptions, LocalModel};
use crate::lora::Adapter;
use crate::peft;
use crate::train::Conversation;

/// Names within a directory for Ollama.
const MODEL_FILE: &str = "model.gguf";
const BASE_FILE: &str = "base.gguf";
const ADAPTER_FILE: &str = "adapter.gguf";
const MODELFILE: &str = "Modelfile";

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The adapter alone, as PEFT has it: a directory.
    Peft,
    /// The adapter alone, for llama.cpp: a file.
    GgufLora,
    /// The merged model for llama.cpp: a file.
    Gguf(StoredType),
    /// The merged model for transformers: a directory.
    Safetensors(StoredType),
    /// A Modelfile and what it names: a directory.
    Ollama {
        /// How the matrices are stored.
        stored: StoredType,
        /// Whether base and adapter are two files, so that several adapters can share the base.
        separate_adapter: bool,
    },
}

/// A model to be exported.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where the base is.
    pub model: &'a Path,
    /// How it is called in what is written.
    pub base_name: &'a str,
    /// How it was held when the adapter was trained.
    pub quant: BaseQuant,
    /// How products are computed when answers are compared.
    pub compute: Compute,
    /// What was trained on it.
    pub adapter: Option<&'a Adapter>,
    /// What is to be written.
    pub target: Target,
    /// Where; what is there is replaced.
    pub out: &'a Path,
    /// On which the exported model is compared; on a few of our own when there are none.
    pub conversations: &'a [Conversation],
}

/// How far an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Computing what the trained model answers.
    Reference,
    /// Writing the model's tensors.
    Writing {
        /// Tensors written.
        n_done: usize,
        /// Of how many.
        n_tensors: usize,
    },
    /// Reading back what was written, and comparing.
    Comparing,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// Bytes of the weights.
    pub bytes: u64,
    /// How far the exported model's answers are from the trained one's; nothing where the numbers are the same by
    /// construction. For an adapter alone: with the base's own values instead of NF4 under it.
    pub difference: Option<Difference>,
}

/// Writes `request.target`. `observe` hears how far it is.
///
/// Fails when base and adapter do not fit together, when the target's format cannot say what the model is, and when a
/// file cannot be written; then nothing is left behind.
pub fn export(request: &Request<'_>, observe: &mut dyn FnMut(Progress)) -> Result<Exported> {
    let files = ModelFiles::open(request.model)?;
    let work = Work {
        merge: Merge::new(&files, request.quant, request.adapter)?,
        request,
    };
    match request.target {
        Target::Peft => work.peft(),
        Target::GgufLora => work.gguf_lora(observe),
        Target::Gguf(stored) => work.gguf(stored, observe),
        Target::Safetensors(stored) => work.safetensors(stored, observe),
        Target::Ollama {
            stored,
            separate_adapter,
        } => work.ollama(stored, separate_adapter, observe),
    }
}

struct Work<'a> {
    request: &'a Request<'a>,
    merge: Merge<'a>,
}

impl Work<'_> {
    fn peft(&self) -> Result<Exported> {
        let adapter = self.adapter()?;
        let partial = Partial::new(self.request.out, Kind::Directory)?;
        peft::save(adapter, partial.path(), self.request.base_name)?;
        partial.commit()?;
        Ok(Exported {
            bytes: size_of_val(adapter.params()) as u64,
            difference: None,
        })
    }

    fn gguf_lora(&self, observe: &mut dyn FnMut(Progress)) -> Result<Exported> {
        let (adapter, config) = (self.adapter()?, self.merge.config());
        let partial = Partial::new(self.request.out, Kind::File)?;
        let bytes = lora::write(config, adapter, self.request.base_name, partial.path())?;
        // llama.cpp has no NF4: the base that it puts the adapter on has other values.
        let difference = match self.request.quant {
            BaseQuant::None => None,
            BaseQuant::Nf4 { .. } => {
                let probes = self.probes()?;
                let reference = self.reference(&probes, observe)?;
                observe(Progress::Comparing);
                let plain = self.open_plain(self.request.model)?;
                Some(reference.difference(&probes.logits(&plain, Some(adapter))?))
            }
        };
        partial.commit()?;
        Ok(Exported { bytes, difference })
    }

    fn gguf(&self, stored: StoredType, observe: &mut dyn FnMut(Progress)) -> Result<Exported> {
        let partial = Partial::new(self.request.out, Kind::File)?;
        let exported = self.merged_gguf(stored, partial.path(), None, observe)?;
        partial.commit()?;
        Ok(exported)
    }

    fn safetensors(&self, stored: StoredType, observe: &mut dyn FnMut(Progress)) -> Result<Exported> {
        let partial = Partial::new(self.request.out, Kind::Directory)?;
        let probes = self.probes()?;
        let reference = self.reference(&probes, observe)?;
        let bytes = checkpoint::write(&self.merge, stored, partial.path(), &mut |n_done, n_tensors| {
            observe(Progress::Writing { n_done, n_tensors });
        })?;
        let difference = self.compare(partial.path(), &probes, &reference, None, observe)?;
        partial.commit()?;
        Ok(Exported {
            bytes,
            difference: Some(difference),
        })
    }

    fn ollama(
        &self,
        stored: StoredType,
        separate_adapter: bool,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Exported> {
        let partial = Partial::new(self.request.out, Kind::Directory)?;
        let (from, adapter_file) = match separate_adapter {
            true => (BASE_FILE, Some(ADAPTER_FILE)),
            false => (MODEL_FILE, None),
        };
        // First: a template that cannot be said is found before gigabytes are written.
        let modelfile = ollama::modelfile(self.merge.files, from, adapter_file)?;
        let adapter = match separate_adapter {
            true => Some(self.adapter()?),
            false => None,
        };
        let mut exported = self.merged_gguf(stored, &partial.path().join(from), adapter, observe)?;
        if let (Some(adapter), Some(name)) = (adapter, adapter_file) {
            let path = partial.path().join(name);
            exported.bytes += lora::write(self.merge.config(), adapter, self.request.base_name, &path)?;
        }
        let mut sink = Sink::create(&partial.path().join(MODELFILE))?;
        sink.write(modelfile.as_bytes())?;
        sink.finish()?;
        partial.commit()?;
        Ok(exported)
    }

    /// Writes the model with its adapter merged in, or without it where it is `beside`.
    fn merged_gguf(
        &self,
        stored: StoredType,
        path: &Path,
        beside: Option<&Adapter>,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Exported> {
        let probes = self.probes()?;
        let reference = self.reference(&probes, observe)?;
        let merge = match beside {
            Some(_) => Merge {
                adapter: None,
                ..self.merge
            },
            None => self.merge,
        };
        let name = self.request.base_name;
        let bytes = gguf::write(&merge, stored, name, path, &mut |n_done, n_tensors| {
            observe(Progress::Writing { n_done, n_tensors });
        })?;
        let difference = self.compare(path, &probes, &reference, beside, observe)?;
        Ok(Exported {
            bytes,
            difference: Some(difference),
        })
    }

    fn adapter(&self) -> Result<&Adapter> {
        self.request.adapter.ok_or_else(|| Error::Export {
            what: "an adapter alone".to_owned(),
            reason: "none is given; name its directory with --adapter".to_owned(),
        })
    }

    fn probes(&self) -> Result<Probes> {
        Probes::new(self.merge.files, self.request.conversations)
    }

    /// What the trained model says: the base as it was held in training, with the adapter beside it.
    fn reference(&self, probes: &Probes, observe: &mut dyn FnMut(Progress)) -> Result<Logits> {
        observe(Progress::Reference);
        let options = LoadOptions {
            quant: self.request.quant,
            threads: None,
            compute: self.request.compute,
            device: Device::Cpu,
        };
        let model = LocalModel::open(ModelFiles::open(self.request.model)?, &options)?;
        probes.logits(&model, self.request.adapter)
    }

    /// How far what was written is from `reference`; fails where it would read texts as other tokens.
    fn compare(
        &self,
        path: &Path,
        probes: &Probes,
        reference: &Logits,
        beside: Option<&Adapter>,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Difference> {
        observe(Progress::Comparing);
        let model = self.open_plain(path)?;
        if let Some(tokenizer) = &self.merge.files.tokenizer {
            let written = model.tokenizer()?;
            for text in probes.texts() {
                let (ours, theirs) = (tokenizer.encode(text)?, written.encode(text)?);
                if ours != theirs {
                    return Err(Error::Export {
                        what: "the tokenizer".to_owned(),
                        reason: format!(
                            "read back, {} tokens of a text of {} bytes differ; export the model to safetensors",
                            ours.iter().zip(&theirs).filter(|(a, b)| a != b).count().max(1),
                            text.len()
                        ),
                    });
                }
            }
        }
        Ok(reference.difference(&probes.logits(&model, beside)?))
    }

    /// A model with its file's own values.
    fn open_plain(&self, path: &Path) -> Result<LocalModel> {
        let options = LoadOptions {
            quant: BaseQuant::None,
            threads: None,
            compute: self.request.compute,
            device: Device::Cpu,
        };
        LocalModel::open(ModelFiles::open(path)?, &options)
    }
}
