//! Vector instructions: which set runs, and the code that is written for one set in particular.
//!
//! Invariant: whatever the set, the same bits come out.

mod isa;

pub use isa::Isa;
pub(crate) use isa::{Set, versions};
