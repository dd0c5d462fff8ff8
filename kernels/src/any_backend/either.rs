//! A value of one device or the other.
//!
//! Invariant: asked for as the other device's it is an error that names the operation.

use crate::error::{Error, Result};

/// What one of the two holds.
#[derive(Debug)]
pub enum Either<C, D> {
    /// In the machine's memory.
    Cpu(C),
    /// In a device's memory.
    Cuda(D),
}

/// The error of an operation `op` that was given a value of the other device.
pub(super) fn mixed(op: &'static str) -> Error {
    Error::Setting {
        op,
        what: "all operands",
        expected: "on the device that computes",
    }
}

impl<C, D> Either<C, D> {
    pub(super) fn cpu(&self, op: &'static str) -> Result<&C> {
        match self {
            Self::Cpu(value) => Ok(value),
            Self::Cuda(_) => Err(mixed(op)),
        }
    }

    pub(super) fn cpu_mut(&mut self, op: &'static str) -> Result<&mut C> {
        match self {
            Self::Cpu(value) => Ok(value),
            Self::Cuda(_) => Err(mixed(op)),
        }
    }

    pub(super) fn cuda(&self, op: &'static str) -> Result<&D> {
        match self {
            Self::Cuda(value) => Ok(value),
            Self::Cpu(_) => Err(mixed(op)),
        }
    }

    pub(super) fn cuda_mut(&mut self, op: &'static str) -> Result<&mut D> {
        match self {
            Self::Cuda(value) => Ok(value),
            Self::Cpu(_) => Err(mixed(op)),
        }
    }
}
