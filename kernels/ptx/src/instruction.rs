//! A kernel's code as the interpreter runs it.
//!
//! Invariant: every register, predicate and target named here exists in its kernel. Constants and special registers
//! (`%tid.x`) are registers too, filled when a warp begins, so that an input is always a register.

use crate::lanes::{Comparison, Function};
use crate::types::Space;

/// One statement of the PTX.
#[derive(Debug)]
pub(crate) struct Instruction {
    /// Where it stands in the PTX, from 1.
    pub(crate) line: u32,
    /// Lanes where this does not hold pass it by.
    pub(crate) guard: Option<Predicate>,
    pub(crate) operation: Operation,
    /// Registers of the kernel's asynchronous products that it reads or writes, where it is none itself.
    pub(crate) touches: Vec<u32>,
}

/// A predicate register, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Predicate {
    pub(crate) index: u32,
    pub(crate) negated: bool,
}

/// `[register + offset]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: u32,
    pub(crate) offset: i64,
}

/// How two predicates become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "and" => Self::And,
            "or" => Self::Or,
            "xor" => Self::Xor,
            _ => return None,
        })
    }

    pub(crate) fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Ballot,
}

/// Operands of a tensor core's product, by name `m16n8kK` and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixType {
    /// `k16`, bf16.
    Bf16,
    /// `k16`, f16.
    F16,
    /// `k8`, tf32.
    Tf32,
}

#[derive(Debug)]
pub(crate) enum Operation {
    /// A function of up to four registers.
    Compute {
        function: Function,
        to: u32,
        inputs: [u32; 4],
    },
    /// A comparison, combined with a predicate where one is named; the second target gets the opposite comparison.
    Compare {
        comparison: Comparison,
        to: u32,
        opposite: Option<u32>,
        inputs: [u32; 2],
        with: Option<(Logic, Predicate)>,
    },
    /// A function of predicates alone.
    Combine {
        logic: Logic,
        to: u32,
        a: Predicate,
        b: Predicate,
    },
    /// `by ? a : b`.
    Select {
        to: u32,
        a: u32,
        b: u32,
        by: Predicate,
    },
    /// A vector of narrow registers to one wide.
    Pack {
        to: u32,
        from: Vec<u32>,
        bits: u32,
    },
    /// One wide register to a vector of narrow ones.
    Unpack {
        to: Vec<Option<u32>>,
        from: u32,
        bits: u32,
    },
    Load {
        space: Space,
        to: Vec<Option<u32>>,
        address: Address,
        n_bytes: usize,
        /// Bits a loaded value is sign-extended to; 0 leaves it as it is.
        signed_to: u32,
    },
    LoadParameter {
        to: Vec<Option<u32>>,
        offset: usize,
        n_bytes: usize,
    },
    Store {
        space: Space,
        from: Vec<u32>,
        address: Address,
        n_bytes: usize,
    },
    /// From global to shared memory; the rest of the bytes is zero where fewer are to be read.
    CopyAsync {
        to: Address,
        from: Address,
        n_bytes: usize,
        n_read: Option<u32>,
    },
    CopyCommit,
    /// Until at most this many groups are under way.
    CopyWait {
        n_left: usize,
    },
    Shuffle {
        kind: Shuffle,
        to: u32,
        valid: Option<u32>,
        value: u32,
        lane: u32,
        clamp: u32,
        members: u32,
    },
    Vote {
        kind: Vote,
        /// A predicate; for a ballot a register.
        to: u32,
        by: Predicate,
        members: u32,
    },
    LoadMatrix {
        to: Vec<u32>,
        address: Address,
        transposed: bool,
    },
    Multiply {
        ty: MatrixType,
        to: [u32; 4],
        a: [u32; 4],
        b: [u32; 2],
        c: [u32; 4],
    },
    /// The registers of asynchronous products have been written.
    ProductFence,
    /// `sum += left · right`, begun: `left` is a warp's 16 rows of bf16 in four registers, `sum` has four for each 8 rows of
    /// the right operand, and the descriptor of that is in a register.
    ProductBegin {
        sum: Vec<u32>,
        left: [u32; 4],
        right: u32,
    },
    ProductCommit,
    /// Until at most this many groups of products are under way.
    ProductWait {
        n_left: usize,
    },
    /// Orders this thread's writes to shared memory before asynchronous products that a barrier lets follow.
    ProxyFence,
    Branch {
        target: usize,
    },
    Exit,
    Barrier,
    WarpBarrier {
        members: u32,
    },
    /// Orders memory, which here is always in order.
    Fence,
}

/// A register the hardware fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    ThreadIndex(usize),
    BlockLen(usize),
    BlockIndex(usize),
    GridLen(usize),
    Lane,
    Warp,
}

impl Special {
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        if let Some((register, axis)) = name.split_once('.') {
            let axis = ["x", "y", "z"].iter().position(|letter| *letter == axis)?;
            return Some(match register {
                "%tid" => Self::ThreadIndex(axis),
                "%ntid" => Self::BlockLen(axis),
                "%ctaid" => Self::BlockIndex(axis),
                "%nctaid" => Self::GridLen(axis),
                _ => return None,
            });
        }
        match name {
            "%laneid" => Some(Self::Lane),
            "%warpid" => Some(Self::Warp),
            _ => None,
        }
    }
}
