//! The CUDA backend: hand-written kernels through the driver, which is loaded when it is first asked for.
//!
//! Invariant: without a driver, a card or a kernel this is an error with a sentence, never a panic; the program needs
//! nothing of CUDA to be built or to start.
//!
//! `docs/kernels.md` lists what there is, and what a card has yet to show.
//!
//! Activations are bf16, everything else f32, sums f32 (f64 for [`Cuda::sum_squares`]). Work is enqueued on one stream
//! and waited for only by `read_*` and `sum_squares`.

mod adamw;
mod attention;
mod attention_backward;
mod attention_paged;
mod backend;
mod buffers;
mod check;
mod choose;
mod cross_entropy;
pub(crate) mod device;
mod elementwise;
mod embed;
mod gated;
mod hopper_check;
mod launch;
mod linear;
mod lora;
mod lora_by_row;
mod matmul_bf16;
mod matmul_nf4;
pub mod memory;
mod product;
mod ptx;
mod quantize_nf4;
mod replay;
mod rms_norm;
mod rope;
mod scratch;
#[cfg(test)]
mod tests;
mod timing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream};
use half::bf16;

use crate::error::Error;

pub use attention_paged::{CudaKvCache, CudaSequences};
pub use buffers::CudaU32;
pub use choose::CudaChoices;
pub use cross_entropy::LossInputs;
pub use device::{DeviceError, DeviceInfo, devices};
pub use linear::CudaWeight;
pub use lora_by_row::CudaPairs;
pub use matmul_bf16::CudaBf16;
pub use matmul_nf4::CudaNf4;
pub use ptx::{Architecture, Kernel, Source};
pub use replay::CudaRecordings;
use replay::Recorder;
use scratch::Kept;
pub use timing::Recorded;

/// Activations on the device.
pub type CudaAct = CudaSlice<bf16>;
/// 32-bit floats on the device.
pub type CudaF32 = CudaSlice<f32>;
/// Integers that kernels index with.
type CudaIndices = CudaSlice<u32>;

/// A device with its kernels loaded.
#[derive(Debug)]
pub struct Cuda {
    /// See [`Cuda::stream`].
    stream: Arc<CudaStream>,
    /// By [`Kernel`]'s number; `None` for what this card does not run.
    functions: Arc<[Option<CudaFunction>]>,
    info: DeviceInfo,
    /// Why Hopper's own kernels are left out on a card that could run them; `None` where they are not.
    left_out: Option<Arc<str>>,
    load_time: Duration,
    /// What operations leave for one another.
    kept: Arc<Kept>,
    /// Takes down what is launched, instead of the device, while a step is recorded.
    recorder: Option<Arc<Recorder>>,
}

impl Cuda {
    /// Opens device `ordinal` and lets the driver compile the kernels for it. Fails with a sentence where there is no
    /// driver, no such device, or one that is too old.
    ///
    /// Hopper's own kernels are compared with those for every card first, by a few launches; where they do not load or
    /// differ they are left out, and [`Cuda::left_out`] says why.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        let begin = Instant::now();
        let opened = Self::open_unchecked(ordinal)?;
        let cuda = match opened.architectures().contains(&Architecture::Hopper) {
            true => hopper_check::checked(opened)?,
            false => opened,
        };
        Ok(Self {
            load_time: begin.elapsed(),
            ..cuda
        })
    }

    /// The same without comparing: for tests of kernels that are wrong on purpose.
    pub fn open_unchecked(ordinal: usize) -> Result<Self, DeviceError> {
        let info = device::find(ordinal)?;
        let begin = Instant::now();
        let context = device::open(ordinal)?;
        let stream = context
            .new_stream()
            .map_err(|error| DeviceError::driver("making a stream", error))?;
        let (functions, left_out) = ptx::load(&context, info.capability)?;
        let kept = Arc::new(Kept::new(&stream, false));
        Ok(Self {
            stream,
            functions: functions.into(),
            info,
            left_out: left_out.map(Arc::from),
            load_time: begin.elapsed(),
            kept,
            recorder: None,
        })
    }

    /// The same, where an operation may also be given a buffer that is larger than it asks for: for steps of ever another
    /// number of rows. Without it an access just beyond a buffer is one beyond an allocation, which tests see.
    pub fn sharing_buffers(self) -> Self {
        Self {
            kept: Arc::new(Kept::new(&self.stream, true)),
            ..self
        }
    }

    /// The same without Hopper's own kernels, and why.
    fn without_hopper(self, reason: &str) -> Self {
        Self {
            left_out: Some(Arc::from(reason)),
            ..self
        }
    }

    /// The same device, and the same recorder if there is one.
    pub(crate) fn share(&self) -> Self {
        Self {
            stream: Arc::clone(&self.stream),
            functions: Arc::clone(&self.functions),
            info: self.info.clone(),
            left_out: self.left_out.clone(),
            load_time: self.load_time,
            kept: Arc::clone(&self.kept),
            recorder: self.recorder.clone(),
        }
    }

    /// The stream, for anything but a launch. Fails in a step that is recorded, which is then run without a graph.
    fn stream(&self, op: &'static str) -> Result<&Arc<CudaStream>, Error> {
        match &self.recorder {
            Some(recorder) => Err(recorder.refuse(op)),
            None => Ok(&self.stream),
        }
    }

    /// What this runs on.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// How long opening the device took, the driver's compilation of the kernels and their check included; the driver caches
    /// what it has compiled.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Whose kernels it runs, the best for it last.
    pub fn architectures(&self) -> Vec<Architecture> {
        let mut architectures = self.info.architectures();
        architectures.retain(|architecture| self.left_out.is_none() || *architecture != Architecture::Hopper);
        architectures
    }

    /// Why Hopper's own kernels are left out on a card that could run them, if they are: those for every card are used in
    /// their place.
    pub fn left_out(&self) -> Option<&str> {
        self.left_out.as_deref()
    }

    /// Why this card does not run `kernel`, if it does not.
    pub fn refusal(&self, kernel: Kernel) -> Option<DeviceError> {
        self.function(kernel).err()
    }

    /// Fails with [`DeviceError::NoKernel`] where the card does not run it, with [`DeviceError::LeftOut`] where it might.
    fn function(&self, kernel: Kernel) -> Result<&CudaFunction, DeviceError> {
        if let (Some(reason), Architecture::Hopper) = (&self.left_out, kernel.source().architecture()) {
            return Err(DeviceError::LeftOut {
                kernel: kernel.name(),
                reason: Arc::clone(reason),
            });
        }
        let function = self.functions[kernel as usize].as_ref();
        function.ok_or(DeviceError::NoKernel {
            kernel: kernel.name(),
            architecture: kernel.source().architecture().name(),
            capability: self.info.capability,
        })
    }
}
