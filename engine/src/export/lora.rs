//! A LoRA adapter as one GGUF file.
//!
//! Invariant: the file is what llama.cpp's `convert_lora_to_gguf.py` makes of the same adapter: 32-bit floats, and rows of
//! `B` in the order that the base's rows have there.

use std::path::Path;

use llamaduo_kernels::Format;

use super::encode::encode;
use super::gguf::architecture;
use super::merge::HeadOrder;
use super::place::Sink;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::gguf::write::{Header, padding};
use crate::lora::Adapter;
use crate::weights::TensorName;

/// Writes the adapter of a model to `path`. Gives the file's size.
pub(crate) fn write(config: &ModelConfig, adapter: &Adapter, name: &str, path: &Path) -> Result<u64> {
    let mut header = Header::default();
    header.string("general.architecture", architecture(config.family));
    header.string("general.type", "adapter");
    header.string("general.name", name);
    header.u32("general.file_type", super::StoredType::F32.gguf_file_type());
    header.string("adapter.type", "lora");
    header.f32("adapter.lora.alpha", adapter.config().alpha);
    let slots: Vec<_> = adapter.layout().slots().collect();
    for (layer, linear, slot) in &slots {
        let base = TensorName::Layer(*layer, linear.tensor()).gguf();
        let shapes = [[slot.rank, slot.n_in], [slot.n_out, slot.rank]];
        for (side, shape) in ["a", "b"].into_iter().zip(shapes) {
            header.tensor(&format!("{base}.lora_{side}"), &shape, Format::F32);
        }
    }

    let order = HeadOrder::of_gguf(config.family);
    let mut sink = Sink::create(path)?;
    sink.write(&header.to_bytes())?;
    for (_, linear, slot) in &slots {
        let params = adapter.params();
        let b_end = slot.b_offset + slot.n_out * slot.rank;
        let a = params[slot.a_offset..slot.b_offset].to_vec();
        let b = params[slot.b_offset..b_end].to_vec();
        let b = order.arrange(linear.tensor(), config, b, slot.rank);
        for values in [a, b] {
            let mut bytes = Vec::new();
            encode(linear.module(), Format::F32, &values, &mut bytes)?;
            bytes.resize(bytes.len() + padding(bytes.len() as u64), 0);
            sink.write(&bytes)?;
        }
    }
    sink.finish()
}
