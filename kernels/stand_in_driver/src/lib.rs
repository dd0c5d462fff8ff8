//! A stand-in for `libcuda.so`: the driver calls that cudarc makes, over the PTX interpreter.
//!
//! Invariant: nothing links it; a test loads it by name, and the code under test cannot tell it from a driver except
//! by the device's name. A launch that the interpreter reports on fails with error 719, whose text is the report.
//!
//! One device, one context; a stream's work is done when it is given. Streams may be captured into graphs and replayed.
//! The environment says what card it plays, once, when `cuInit` is first called; a thread may ask for another compute
//! capability by `stand_in_play`:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `STAND_IN_CAPABILITY` | compute capability, `major.minor` | `8.9` |
//! | `STAND_IN_CUDA` | newest CUDA version the driver knows, as `cuDriverGetVersion` has it | `12040` |
//! | `STAND_IN_MEMORY_MIB` | memory of the card | `1024` |
//! | `STAND_IN_FAULTS` | calls that fail: `launch:40=719,open:2=46` fails the 40th launch and the second opening | none |
#![expect(unsafe_code, reason = "the C interface of the driver is pointers")]

mod call;
mod calls;
mod device;
mod driver;
mod event_calls;
mod faults;
mod graph_calls;
mod launch_calls;
mod load;
mod memory_calls;
mod usage;
mod work;

pub use load::{fail_here, fail_in_process, forget_faults, load, n_calls, play, usage};
pub use usage::Usage;
