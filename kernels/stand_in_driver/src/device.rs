//! The card that is played.
//!
//! Invariant: it is the same for the whole life of the process.

use std::sync::OnceLock;

/// What a program may ask about the card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) major: i32,
    pub(crate) minor: i32,
    pub(crate) cuda_version: i32,
    pub(crate) memory_bytes: usize,
}

/// Shared memory of a block without asking for more.
pub(crate) const SHARED_BYTES_PLAIN: usize = 48 << 10;
/// Shared memory of a block that has asked: an L4's.
pub(crate) const SHARED_BYTES_MAX: usize = 99 << 10;
/// Multiprocessors of an L4.
const N_MULTIPROCESSORS: i32 = 58;

/// Of a number of MiB, which may be a fraction; 1 GiB where there is none.
fn memory_bytes(mib: Option<String>) -> usize {
    let mib: Option<f64> = mib.and_then(|mib| mib.parse().ok());
    (mib.unwrap_or(1024.0) * f64::from(1 << 20)).max(1.0) as usize
}

impl Device {
    pub(crate) fn get() -> &'static Self {
        static DEVICE: OnceLock<Device> = OnceLock::new();
        DEVICE.get_or_init(|| {
            let text = |name: &str| std::env::var(name).ok();
            let number = |name: &str| text(name).and_then(|value| value.parse().ok());
            let capability = text("STAND_IN_CAPABILITY").and_then(|value| {
                let (major, minor) = value.split_once('.')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
            let (major, minor) = capability.unwrap_or((8, 9));
            Self {
                major,
                minor,
                cuda_version: number("STAND_IN_CUDA").unwrap_or(12040),
                memory_bytes: memory_bytes(text("STAND_IN_MEMORY_MIB")),
            }
        })
    }

    /// By the numbers of `CUdevice_attribute`; what is not listed is 0.
    pub(crate) fn attribute(self, number: i32) -> i32 {
        match number {
            1 => 1024,                      // threads of a block
            8 => SHARED_BYTES_PLAIN as i32, // shared memory of a block
            10 => 32,                       // lanes of a warp
            16 => N_MULTIPROCESSORS,
            75 => self.major,
            76 => self.minor,
            97 => SHARED_BYTES_MAX as i32, // shared memory of a block that asks
            115 => 1,                      // memory pools
            _ => 0,
        }
    }
}
