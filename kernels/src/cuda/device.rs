//! Which devices there are, and why one cannot be used.
//!
//! Invariant: cudarc is called only after the driver's library was found, for it panics without one.
#![expect(unsafe_code, reason = "asking the loader and the driver directly")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::Architecture;

/// Oldest CUDA version whose driver reads the kernels' PTX (ISA 8.4).
const CUDA_VERSION_MIN: i32 = 12040;

/// Why no device can be used, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No driver is installed.
    #[error(
        "there is no NVIDIA driver (libcuda.so.1 was not found); use the CPU, or install driver 550 or newer"
    )]
    NoDriver,
    /// The driver is there but does not start.
    #[error("the NVIDIA driver does not start: {reason}; use the CPU, or see whether `nvidia-smi` works")]
    DriverFails {
        /// In the driver's words.
        reason: String,
    },
    /// The driver is too old for the kernels.
    #[error(
        "the NVIDIA driver knows CUDA {}.{}, the kernels need 12.4; install driver 550 or newer",
        version / 1000, version % 1000 / 10
    )]
    DriverTooOld {
        /// As the driver gives it: 12040 is 12.4.
        version: i32,
    },
    /// No device has that number.
    #[error("there is no CUDA device {ordinal}; there are {n_devices}, counted from 0")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        n_devices: usize,
    },
    /// The card is too old for the kernels.
    #[error(
        "CUDA device {ordinal} ({name}) has compute capability {}.{}, the kernels need 8.0 (Ampere) or newer; use the CPU",
        capability.0, capability.1
    )]
    DeviceTooOld {
        /// Its number.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Major and minor.
        capability: (i32, i32),
    },
    /// A kernel that is compiled for other cards.
    #[error(
        "kernel {kernel} is one of those for {architecture} cards; this one has compute capability {}.{}",
        capability.0, capability.1
    )]
    NoKernel {
        /// Its name.
        kernel: &'static str,
        /// What it is compiled for.
        architecture: &'static str,
        /// The device's, major and minor.
        capability: (i32, i32),
    },
    /// A kernel that the card could run but for what came out when it was opened.
    #[error("kernel {kernel} is left out on this card, with all that are Hopper's own: {reason}")]
    LeftOut {
        /// Its name.
        kernel: &'static str,
        /// What came out.
        reason: Arc<str>,
    },
    /// The device's memory is full.
    #[error(
        "the CUDA device has no room {}; take a smaller batch or shorter samples, or see with `nvidia-smi` who else uses it",
        match bytes { Some(bytes) => format!("for {bytes} more bytes"), None => "left".to_owned() }
    )]
    OutOfMemory {
        /// What was asked for, where the driver was asked for a buffer.
        bytes: Option<usize>,
    },
    /// The device failed in a way that leaves nothing of its context to work with.
    #[error(
        "the CUDA device failed while {doing}: {reason}; what it held is lost, and it must be opened anew. If that happens \
         again, see what `nvidia-smi` and the system's log (Xid) say of the card"
    )]
    Lost {
        /// What was being done.
        doing: &'static str,
        /// In the driver's words.
        reason: String,
    },
    /// The driver refused.
    #[error("{doing}: {reason}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// In the driver's words.
        reason: String,
    },
}

impl DeviceError {
    pub(crate) fn driver(doing: &'static str, error: DriverError) -> Self {
        let reason = error.to_string();
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory { bytes: None },
            code if loses_context(code) => Self::Lost { doing, reason },
            _ => Self::Driver { doing, reason },
        }
    }

    /// Whether another try may succeed: the device was there and failed at its work.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::OutOfMemory { .. } | Self::Lost { .. } | Self::Driver { .. }
        )
    }
}

/// Whether an error leaves a context of which every further call fails, or no device to have one on. Those of which the
/// driver's header says so, and the ones it gives when the card itself is gone; kernels that went wrong are found out by
/// the next call that waits, whatever it is.
fn loses_context(code: sys::CUresult) -> bool {
    use sys::CUresult::*;
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_NO_DEVICE
            | CUDA_ERROR_INVALID_CONTEXT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_UNKNOWN
    )
}

/// What is known of a device without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// All its memory.
    pub memory_bytes: usize,
    /// Multiprocessors.
    pub n_multiprocessors: usize,
    /// Newest CUDA version the driver knows: 12040 is 12.4.
    pub cuda_version: i32,
}

impl DeviceInfo {
    /// Whose kernels its compute capability runs, the best for it last.
    pub fn architectures(&self) -> Vec<Architecture> {
        let is_run = |architecture: &Architecture| architecture.runs_on(self.capability);
        Architecture::ALL.iter().copied().filter(is_run).collect()
    }

    /// Why the kernels cannot run on it, if they cannot.
    pub fn refusal(&self) -> Option<DeviceError> {
        if self.cuda_version < CUDA_VERSION_MIN {
            return Some(DeviceError::DriverTooOld {
                version: self.cuda_version,
            });
        }
        let is_too_old = !Architecture::Baseline.runs_on(self.capability);
        is_too_old.then(|| DeviceError::DeviceTooOld {
            ordinal: self.ordinal,
            name: self.name.clone(),
            capability: self.capability,
        })
    }
}

/// All devices. Fails where there is no driver or it does not start.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    // SAFETY: this opens and closes the driver's library, whose start has no conditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let fails = |error: DriverError| DeviceError::DriverFails {
        reason: error.to_string(),
    };
    result::init().map_err(fails)?;
    let cuda_version = driver_version().map_err(fails)?;
    let n_devices = result::device::get_count().map_err(fails)?;
    (0..n_devices)
        .map(|ordinal| describe(ordinal, cuda_version).map_err(fails))
        .collect()
}

/// Device `ordinal`, if the kernels run on it.
pub(crate) fn find(ordinal: usize) -> Result<DeviceInfo, DeviceError> {
    let devices = devices()?;
    let n_devices = devices.len();
    let device = devices
        .into_iter()
        .nth(ordinal)
        .ok_or(DeviceError::NoDevice { ordinal, n_devices })?;
    match device.refusal() {
        None => Ok(device),
        Some(refusal) => Err(refusal),
    }
}

/// The context of device `ordinal`, which the process has one of for as long as anybody holds it.
pub(crate) fn open(ordinal: usize) -> Result<Arc<CudaContext>, DeviceError> {
    let context =
        CudaContext::new(ordinal).map_err(|error| DeviceError::driver("opening the device", error))?;
    without_event_tracking(&context);
    Ok(context)
}

/// One stream orders all work, so the events that cudarc keeps for each buffer would only cost time; a capture into a
/// graph does not bear them.
fn without_event_tracking(context: &Arc<CudaContext>) {
    // SAFETY: nothing is allocated yet, and this backend never makes a second stream.
    unsafe { context.disable_event_tracking() };
}

fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the pointer is to a local integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

fn describe(ordinal: i32, cuda_version: i32) -> Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute as Attribute;

    let device = result::device::get(ordinal)?;
    let attribute = |attribute| {
        // SAFETY: `device` is one the driver gave.
        unsafe { result::device::get_attribute(device, attribute) }
    };
    // SAFETY: `device` is one the driver gave.
    let memory_bytes = unsafe { result::device::total_mem(device) }?;
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory_bytes,
        n_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(0) as usize,
        cuda_version,
    })
}
