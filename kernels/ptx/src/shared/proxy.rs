//! Shared memory as the products of warpgroups read it: past the order that ordinary accesses keep.
//!
//! Invariant: a product reads only what a `fence.proxy.async` of its writer and a barrier after that have made plain to it;
//! nobody writes what it reads before it was waited for.

use super::{GRANULE, Shared, Visitor};
use crate::descriptor::PIECE_BYTES;
use crate::report::Problem;

impl Shared {
    /// `fence.proxy.async` of a thread.
    pub(crate) fn fence(&mut self, by: Visitor) {
        let thread = usize::from(by.thread);
        if self.fences.len() <= thread {
            self.fences.resize(thread + 1, Vec::new());
        }
        self.fences[thread].push(by.block_epoch);
    }

    /// How many fences a thread has made.
    pub(super) fn n_fences(&self, thread: u16) -> u32 {
        self.fences.get(usize::from(thread)).map_or(0, Vec::len) as u32
    }

    /// A piece that a product begins to read, for a warp of its warpgroup.
    pub(crate) fn begin_product(&mut self, address: u64, by: Visitor) -> Result<&[u8], Problem> {
        self.load(address, PIECE_BYTES, by)?;
        let begin = address as usize;
        for index in begin / GRANULE..(begin + PIECE_BYTES) / GRANULE {
            let note = &mut self.notes[index];
            let fences = self.fences.get(usize::from(note.writer));
            let after_write = fences.and_then(|fences| fences.get(note.n_fences as usize));
            let is_own = u32::from(note.writer) / 32 == by.warp();
            // Of another warp's write the fence must be on the other side of the barrier.
            let is_fenced = after_write.is_some_and(|&epoch| is_own || epoch < by.block_epoch);
            if !is_fenced {
                return Err(Problem::NoProxyFence {
                    address: (index * GRANULE) as u64,
                    other: u32::from(note.writer),
                });
            }
            note.n_products += 1;
        }
        Ok(&self.bytes[begin..begin + PIECE_BYTES])
    }

    /// The product was waited for: its read counts as one made now.
    pub(crate) fn end_product(&mut self, address: u64, by: Visitor) -> Result<(), Problem> {
        let begin = address as usize;
        for note in &mut self.notes[begin / GRANULE..(begin + PIECE_BYTES) / GRANULE] {
            note.n_products -= 1;
        }
        self.load(address, PIECE_BYTES, by).map(|_| ())
    }
}
