//! Math on buffers: every operation of a Llama-family transformer with a frozen base and LoRA adapters, forward and
//! backward.
//!
//! Invariant: the CPU backend is the specification. Each element of a result is one fixed chain of operations,
//! whatever the number of rows, threads or the instruction set, so results are equal bit for bit.

mod any_backend;
pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod dims;
mod error;
#[cfg(test)]
mod golden;
mod map_file;
pub mod nf4;
mod quant;
pub mod random;
pub mod sampling;
mod weight;

pub use any_backend::{AnyBackend, Either};
pub use backend::{
    AdamwSpec, AttentionSpec, Backend, Dropout, GateActivation, LinearForward, Lora, LoraByRow, LoraForward,
    LoraSlot, NO_LABEL, NO_PAIR, RmsNormSpec,
};
pub use cpu::{Compute, Cpu, CpuKvCache, CpuWeight, Isa};
pub use cuda::{Cuda, DeviceError};
pub use device::Device;
pub use dims::{Documents, HeadDims, SequenceSpan};
pub use error::{Error, Result};
pub use map_file::map_file;
pub use nf4::{DoubleQuant, Nf4Matrix, Nf4Scales};
pub use sampling::{SampleRow, SampleSpec};
pub use weight::{BlockMatrix, Bytes, Format, HostWeight, SharedBytes};
