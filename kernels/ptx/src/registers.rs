//! Which registers an instruction reads and writes.
//!
//! Invariant: an operation names no register that is missing here.

use crate::instruction::{Instruction, Operation, Vote};

impl Operation {
    /// All of them, whether read or written, some more than once.
    pub(crate) fn registers(&self) -> Vec<u32> {
        match self {
            Self::Compute { to, inputs, .. } => [&[*to], &inputs[..]].concat(),
            Self::Compare { inputs, .. } => inputs.to_vec(),
            Self::Select { to, a, b, .. } => vec![*to, *a, *b],
            Self::Pack { to, from, .. } => [&[*to], &from[..]].concat(),
            Self::Unpack { to, from, .. } => to.iter().flatten().chain([from]).copied().collect(),
            Self::Load { to, address, .. } => to.iter().flatten().chain([&address.base]).copied().collect(),
            Self::LoadParameter { to, .. } => to.iter().flatten().copied().collect(),
            Self::Store { from, address, .. } => [&from[..], &[address.base]].concat(),
            Self::CopyAsync { to, from, n_read, .. } => {
                [to.base, from.base].into_iter().chain(*n_read).collect()
            }
            Self::Shuffle {
                to,
                value,
                lane,
                clamp,
                members,
                ..
            } => vec![*to, *value, *lane, *clamp, *members],
            Self::Vote {
                kind: Vote::Ballot,
                to,
                members,
                ..
            } => vec![*to, *members],
            Self::Vote { members, .. } => vec![*members],
            Self::LoadMatrix { to, address, .. } => [&to[..], &[address.base]].concat(),
            Self::Multiply { to, a, b, c, .. } => [&to[..], a, b, c].concat(),
            Self::ProductBegin { sum, left, right } => [&sum[..], left, &[*right]].concat(),
            Self::WarpBarrier { members } => vec![*members],
            Self::Combine { .. }
            | Self::CopyCommit
            | Self::CopyWait { .. }
            | Self::ProductFence
            | Self::ProductCommit
            | Self::ProductWait { .. }
            | Self::ProxyFence
            | Self::Branch { .. }
            | Self::Exit
            | Self::Barrier
            | Self::Fence => Vec::new(),
        }
    }

    /// The registers that an asynchronous product holds.
    pub(crate) fn held(&self) -> Vec<u32> {
        match self {
            Self::ProductBegin { sum, left, .. } => [&sum[..], left].concat(),
            _ => Vec::new(),
        }
    }
}

/// Notes in each instruction which registers of asynchronous products it touches. Says whether there are such products.
pub(crate) fn note_touches(code: &mut [Instruction], n_registers: usize) -> bool {
    let mut is_held = vec![false; n_registers];
    for register in code.iter().flat_map(|instruction| instruction.operation.held()) {
        is_held[register as usize] = true;
    }
    if !is_held.contains(&true) {
        return false;
    }
    for instruction in code {
        if !matches!(instruction.operation, Operation::ProductBegin { .. }) {
            let registers = instruction.operation.registers().into_iter();
            instruction.touches = registers.filter(|&register| is_held[register as usize]).collect();
        }
    }
    true
}
