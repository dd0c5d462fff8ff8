//! What goes wrong, and where in the PTX.
//!
//! Invariant: every report names a line of the PTX as it was given.

use crate::types::Space;

/// A module that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {what}: `{text}`")]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// What is wrong.
    pub what: String,
    /// The statement.
    pub text: String,
}

/// A launch that did what no kernel may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: PTX line {line}: block {block:?} thread {thread}: {problem}")]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// Line, from 1; 0 where no instruction is to blame.
    pub line: u32,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// The thread's number in its block.
    pub thread: u32,
    /// What it did.
    pub problem: Problem,
}

/// What a thread did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Outside every allocation, or past the end of one.
    #[error("{n_bytes} bytes at {space} address {address:#x} are out of bounds")]
    OutOfBounds {
        /// Global, shared or local.
        space: &'static str,
        /// First byte.
        address: u64,
        /// Size of the access.
        n_bytes: usize,
    },
    /// Not a multiple of its size.
    #[error("an access of {n_bytes} bytes at {space} address {address:#x} is misaligned")]
    Misaligned {
        /// Global, shared or local.
        space: &'static str,
        /// First byte.
        address: u64,
        /// Size of the access.
        n_bytes: usize,
    },
    /// Nothing has written there.
    #[error("reads {space} address {address:#x}, which was never written")]
    Uninitialised {
        /// Global, shared or local.
        space: &'static str,
        /// First byte that was not.
        address: u64,
    },
    /// Two threads, one of them writing, and no barrier in between.
    #[error(
        "races at shared address {address:#x}: {now} after a {before} by thread {other} and no barrier in between"
    )]
    Race {
        /// First byte.
        address: u64,
        /// What this thread does.
        now: &'static str,
        /// What the other did.
        before: &'static str,
        /// The other thread.
        other: u32,
    },
    /// The bytes of an asynchronous copy before it was waited for.
    #[error(
        "touches shared address {address:#x} before the asynchronous copy of thread {other} to it was waited for"
    )]
    Pending {
        /// First byte.
        address: u64,
        /// Who began the copy.
        other: u32,
    },
    /// A product (`wgmma`) of what ordinary instructions have written, without a fence and a barrier in between.
    #[error(
        "a product reads shared address {address:#x}, which thread {other} has written, without its `fence.proxy.async` \
         and a barrier after that"
    )]
    NoProxyFence {
        /// First byte.
        address: u64,
        /// Who wrote it.
        other: u32,
    },
    /// A write to what a product that was not waited for reads.
    #[error("writes shared address {address:#x}, which a product reads that was not waited for")]
    ReadByProduct {
        /// First byte.
        address: u64,
    },
    /// A register of a product that was not waited for.
    #[error("touches a register of a product that was not waited for")]
    HeldRegister,
    /// A product whose registers something else has touched since the last `wgmma.fence`.
    #[error("a product takes a register that was touched after the last `wgmma.fence`")]
    NoRegisterFence,
    /// A descriptor of a matrix that does not hold together.
    #[error("matrix descriptor {raw:#018x}: {what}")]
    Descriptor {
        /// Its bits.
        raw: u64,
        /// What is wrong.
        what: String,
    },
    /// A collective of a warpgroup that its four warps do not reach alike.
    #[error("is not with all four warps of its warpgroup, or not with the same descriptor")]
    PartedWarpgroup,
    /// Two blocks of one launch at the same byte of global memory.
    #[error("{now} global address {address:#x}, which another block of the launch has written")]
    BlockRace {
        /// First byte.
        address: u64,
        /// What this thread does.
        now: &'static str,
    },
    /// A barrier or collective of the whole warp, reached by a part of it.
    #[error(
        "is not with all the lanes that this instruction needs (here are {active:#010x}, needed {needed:#010x})"
    )]
    Diverged {
        /// Lanes that are here.
        active: u32,
        /// Lanes that must be.
        needed: u32,
    },
    /// More instructions than the launch was allowed.
    #[error("has run {steps} instructions without end")]
    Endless {
        /// How many.
        steps: u64,
    },
    /// Threads, shared memory or parameters that no card takes.
    #[error("cannot be launched: {what}")]
    Shape {
        /// Which.
        what: String,
    },
}

impl Space {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "parameter",
        }
    }
}
