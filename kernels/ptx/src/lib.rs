//! A PTX interpreter for tests: runs the kernels' real PTX on a machine without a GPU, and reports what hardware would
//! let pass.
//!
//! Invariant: a launch that returns `Ok` has read only memory that was written, in bounds and aligned, and no two of
//! its threads have touched the same byte of shared memory without a barrier between them.
//!
//! A module is parsed once into typed instructions ([`Module`]). A launch runs its blocks one after another, each warp
//! on 32 lanes at once. Lanes that part run lowest instruction first and join again where they meet.
//!
//! | reported with its PTX line | how |
//! |---|---|
//! | access outside an allocation, or misaligned | allocations have gaps between them |
//! | read of global, shared or local memory that nothing wrote | each byte knows its writer |
//! | race in shared memory, between warps or between lanes of one | each barrier begins an epoch, each access is noted |
//! | use of what an asynchronous copy has not yet brought | the bytes are pending until `cp.async.wait_group` |
//! | a byte of global memory that two blocks of a launch write, or one writes and another reads | as above |
//! | a product of a warpgroup (`wgmma`) without the fences before it, or whose registers or bytes are touched before it was waited for | they are held from issue to wait |
//! | a barrier or collective that some lanes of the warp do not reach | the mask is compared |
//!
//! The warps of a warpgroup run one after another too: what they issue is compared at each barrier. A product is computed
//! when it is issued.
//!
//! What it does not model: weak ordering of global memory, several blocks at once (nor atomics), denormal flushing
//! except where an instruction names it; `ex2`, `lg2`, `rcp` and the like in their approximate forms are rounded from
//! f64, so they are more exact than hardware. An instruction it does not know is an error when the module is parsed.

mod access;
mod convert;
mod decode;
mod descriptor;
mod execute;
mod float;
mod instruction;
mod integer;
mod lanes;
mod launch;
mod matrix;
mod memory;
mod mnemonic;
mod module;
mod products;
mod registers;
mod report;
mod shared;
mod statements;
#[cfg(test)]
mod tests;
mod types;
mod warp;
mod warpgroup;

pub use launch::{Launch, Stats};
pub use memory::Memory;
pub use module::{Kernel, Module, Parameter};
pub use report::{Fault, ParseError, Problem};
