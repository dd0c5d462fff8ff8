//! The card that is played.
//!
//! Invariant: it is the same for the whole life of the process, but for the compute capability that a thread has asked for.

use std::cell::Cell;
use std::ffi::c_int;
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
/// Multiprocessors of an L4.
const N_MULTIPROCESSORS: i32 = 58;

/// Of a number of MiB, which may be a fraction; 1 GiB where there is none.
fn memory_bytes(mib: Option<String>) -> usize {
    let mib: Option<f64> = mib.and_then(|mib| mib.parse().ok());
    (mib.unwrap_or(1024.0) * f64::from(1 << 20)).max(1.0) as usize
}

thread_local! {
    /// The compute capability that this thread sees, if not the process's.
    static CAPABILITY: Cell<Option<(i32, i32)>> = const { Cell::new(None) };
}

/// Not of the driver: from now on this thread sees a card of that compute capability; 0.0 ends that. Modules that it has
/// loaded stay.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn stand_in_play(major: c_int, minor: c_int) {
    CAPABILITY.set((major > 0).then_some((major, minor)));
}

impl Device {
    /// As this thread sees it.
    pub(crate) fn get() -> Self {
        let of_process = *Self::of_process();
        let (major, minor) = CAPABILITY.get().unwrap_or((of_process.major, of_process.minor));
        Self {
            major,
            minor,
            ..of_process
        }
    }

    fn of_process() -> &'static Self {
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

    /// Shared memory of a block that has asked.
    pub(crate) fn shared_bytes_max(self) -> usize {
        match (self.major, self.minor) {
            (8, 0) | (8, 7) => 163 << 10,
            (9 | 10, _) => 227 << 10,
            _ => 99 << 10,
        }
    }

    /// Whether it runs PTX of a `.target`: one that is no newer, or, where an `a` ends it, that very one.
    pub(crate) fn runs(self, target: &str) -> bool {
        let capability = 10 * self.major + self.minor;
        match target
            .strip_prefix("sm_")
            .map(|number| number.strip_suffix('a').ok_or(number))
        {
            Some(Ok(exactly)) => exactly.parse() == Ok(capability),
            Some(Err(least)) => least.parse::<i32>().is_ok_and(|least| least <= capability),
            None => false,
        }
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
            97 => self.shared_bytes_max() as i32,
            115 => 1, // memory pools
            _ => 0,
        }
    }
}
