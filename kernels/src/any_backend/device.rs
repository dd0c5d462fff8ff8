//! Which device it is: opening it, and what is told of it.
//!
//! Invariant: a card that does not open is an error, never a CPU in its place.

use std::fmt;
use std::time::Duration;

use super::AnyBackend;
use crate::cpu::{Compute, Cpu};
use crate::cuda::Cuda;
use crate::device::Device;
use crate::error::{Error, Result};

impl AnyBackend {
    /// Opens a device. `threads` and `compute` are the CPU's.
    pub fn open(device: Device, threads: Option<usize>, compute: Compute) -> Result<Self> {
        match device {
            Device::Auto | Device::Cpu => Ok(Self::Cpu(Cpu::new(threads)?.with_compute(compute))),
            Device::Cuda(ordinal) => match Cuda::new(ordinal) {
                Ok(cuda) => Ok(Self::Cuda(Box::new(cuda.sharing_buffers()))),
                Err(source) => Err(Error::Device {
                    op: "opening",
                    source,
                }),
            },
        }
    }

    /// How long a CUDA device took to open with all kernels.
    pub fn load_time(&self) -> Option<Duration> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(backend) => Some(backend.load_time()),
        }
    }

    /// Why Hopper's own kernels are left out on a card that could run them, if they are.
    pub fn kernels_left_out(&self) -> Option<&str> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(backend) => backend.left_out(),
        }
    }

    /// Threads that compute: the CPU's, or the one that gives a CUDA device its work.
    pub fn n_threads(&self) -> usize {
        match self {
            Self::Cpu(backend) => backend.n_threads(),
            Self::Cuda(_) => 1,
        }
    }
}

impl fmt::Display for AnyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(backend) => write!(f, "cpu, {} threads", backend.n_threads()),
            Self::Cuda(backend) => write!(f, "cuda:{}, {}", backend.info().ordinal, backend.info().name),
        }
    }
}
