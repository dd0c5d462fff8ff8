//! A warp: its registers, and where its lanes stand.
//!
//! Invariant: each live lane is in exactly one place, either a part that can run or one that waits at a barrier.

use crate::instruction::{Predicate, Special};
use crate::lanes::{Lanes, N_LANES, lanes_of};
use crate::module::Kernel;
use crate::products::Products;
use crate::shared::{Local, Visitor};

/// Lanes at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) at: usize,
    pub(crate) lanes: u32,
}

/// One asynchronous copy: its bytes are read when it is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) n_bytes: usize,
    pub(crate) n_read: usize,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) registers: Vec<Lanes>,
    pub(crate) predicates: Vec<u32>,
    /// Lanes that have not left.
    pub(crate) live: u32,
    /// Parts that can run.
    pub(crate) parts: Vec<Part>,
    /// The part that waits at a barrier of the block.
    pub(crate) waiting: Option<Part>,
    /// Counts barriers.
    pub(crate) epoch: u32,
    /// Of each lane, groups of copies, the open one last.
    pub(crate) copies: Vec<Vec<Vec<Copy>>>,
    pub(crate) products: Products,
    pub(crate) locals: Vec<Local>,
}

/// Where a block stands in its grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) index: [u32; 3],
}

impl Place {
    pub(crate) fn n_threads(&self) -> usize {
        self.block.iter().map(|&len| len as usize).product()
    }
}

impl Warp {
    pub(crate) fn new(kernel: &Kernel, index: usize, place: &Place) -> Self {
        let mut registers = vec![[0; N_LANES]; kernel.n_registers];
        for &(register, value) in &kernel.constants {
            registers[register as usize] = [value; N_LANES];
        }
        for &(register, special) in &kernel.specials {
            registers[register as usize] = std::array::from_fn(|lane| special.value(place, index, lane));
        }
        let n_threads = place.n_threads() - index * N_LANES;
        let live = if n_threads >= N_LANES {
            u32::MAX
        } else {
            (1 << n_threads) - 1
        };
        let n_locals = if kernel.local_bytes == 0 { 0 } else { N_LANES };
        Self {
            index,
            registers,
            predicates: vec![0; kernel.n_predicates],
            live,
            parts: vec![Part { at: 0, lanes: live }],
            waiting: None,
            epoch: 1,
            copies: vec![vec![Vec::new()]; N_LANES],
            products: Products::new(if kernel.has_products {
                kernel.n_registers
            } else {
                0
            }),
            locals: (0..n_locals).map(|_| Local::new(kernel.local_bytes)).collect(),
        }
    }

    /// Lanes where `predicate` holds.
    #[inline]
    pub(crate) fn holds(&self, predicate: Predicate) -> u32 {
        let value = self.predicates[predicate.index as usize];
        if predicate.negated { !value } else { value }
    }

    /// Writes `values` where `lanes` are.
    #[inline]
    pub(crate) fn write(&mut self, register: u32, values: &Lanes, lanes: u32) {
        let target = &mut self.registers[register as usize];
        if lanes == u32::MAX {
            *target = *values;
        } else {
            for lane in lanes_of(lanes) {
                target[lane] = values[lane];
            }
        }
    }

    #[inline]
    pub(crate) fn write_predicate(&mut self, index: u32, value: u32, lanes: u32) {
        let target = &mut self.predicates[index as usize];
        *target = *target & !lanes | value & lanes;
    }

    pub(crate) fn thread(&self, lane: usize) -> u32 {
        (self.index * N_LANES + lane) as u32
    }

    pub(crate) fn visitor(&self, lane: usize, block_epoch: u32) -> Visitor {
        Visitor {
            thread: self.thread(lane) as u16,
            block_epoch,
            warp_epoch: self.epoch,
        }
    }

    /// Takes the part that is furthest behind, with all lanes that stand where it does.
    pub(crate) fn take_lowest(&mut self) -> Option<Part> {
        let at = self.parts.iter().map(|part| part.at).min()?;
        let mut lanes = 0;
        self.parts.retain(|part| {
            if part.at == at {
                lanes |= part.lanes;
            }
            part.at != at
        });
        Some(Part { at, lanes })
    }
}

impl Special {
    fn value(self, place: &Place, warp: usize, lane: usize) -> u64 {
        let thread = (warp * N_LANES + lane) as u32;
        let [x, y, _] = place.block;
        u64::from(match self {
            Self::ThreadIndex(0) => thread % x,
            Self::ThreadIndex(1) => thread / x % y,
            Self::ThreadIndex(_) => thread / (x * y),
            Self::BlockLen(axis) => place.block[axis],
            Self::BlockIndex(axis) => place.index[axis],
            Self::GridLen(axis) => place.grid[axis],
            Self::Lane => lane as u32,
            Self::Warp => warp as u32,
        })
    }
}
