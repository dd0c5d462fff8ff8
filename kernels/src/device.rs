//! Which device a model is to run on.
//!
//! Invariant: a device that cannot do it is refused with what is missing; nothing falls back in silence to another one
//! that was not asked for.

use std::fmt;
use std::str::FromStr;

use crate::cuda::{DeviceError, device};

/// A choice of the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU, until a card has shown how fast CUDA is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no device; it is auto, cpu, or cuda:N with the number of a card, counted from 0")]
pub struct NoSuchDevice(String);

impl FromStr for Device {
    type Err = NoSuchDevice;

    fn from_str(text: &str) -> Result<Self, NoSuchDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            text => text
                .strip_prefix("cuda:")
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| NoSuchDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// Fails unless a model can run on it, with what is wrong with the device.
    pub fn check(self) -> Result<(), DeviceError> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(ordinal) => device::find(ordinal).map(|_| ()),
        }
    }

    /// Opens the device, without kernels, and lets go of it. Fails with what is wrong with it.
    pub fn try_open(self) -> Result<(), DeviceError> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(ordinal) => device::open(ordinal)?
                .synchronize()
                .map_err(|error| DeviceError::driver("waiting for it", error)),
        }
    }

    /// All memory of a device that has its own; `None` for the CPU, which uses the machine's.
    pub fn memory_bytes(self) -> Result<Option<u64>, DeviceError> {
        match self {
            Self::Auto | Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => device::find(ordinal).map(|info| Some(info.memory_bytes as u64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_printed() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(17)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in [
            "",
            "gpu",
            "cuda",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:99999999999999999999",
            "CPU",
        ] {
            let said = text.parse::<Device>().unwrap_err().to_string();
            assert!(said.starts_with(&format!("`{text}` names no device")), "{said}");
        }
    }

    #[test]
    fn only_the_cpu_runs_a_model() {
        Device::Auto.check().unwrap();
        Device::Cpu.check().unwrap();
        Device::Cuda(0).check().unwrap_err();
    }
}
