//! A block's shared memory, and who has touched it since the last barrier.
//!
//! Invariant: an access that is not ordered by a barrier against another thread's access to the same bytes, one of the
//! two writing, is reported by whichever comes second. Accesses are noted for each two bytes: two threads that write
//! neighbouring single bytes would be taken for a race.

mod proxy;

use crate::report::Problem;
use crate::types::Space;

const NAME: &str = "shared";
/// Bytes that share one note.
const GRANULE: usize = 2;

/// Who is at the memory, and when: epochs of the block begin with each of its barriers, those of a warp with each
/// barrier of the block or of the warp.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor {
    pub(crate) thread: u16,
    pub(crate) block_epoch: u32,
    pub(crate) warp_epoch: u32,
}

impl Visitor {
    fn warp(self) -> u32 {
        u32::from(self.thread) / 32
    }
}

/// The last accesses to a granule. Epoch 0 is before all.
#[derive(Clone, Copy, Debug, Default)]
struct Note {
    written: bool,
    /// Thread + 1 of an asynchronous copy under way.
    pending: u16,
    writer: u16,
    write_epoch: u32,
    write_warp_epoch: u32,
    reader: u16,
    read_epoch: u32,
    read_warp_epoch: u32,
    /// Warps that have read in `read_epoch`.
    readers: u32,
    /// How many `fence.proxy.async` the writer had made.
    n_fences: u32,
    /// Products under way that read here, one for each warp.
    n_products: u32,
}

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    notes: Vec<Note>,
    /// Of each thread, the block's epochs in which it has made a `fence.proxy.async`.
    fences: Vec<Vec<u32>>,
}

impl Shared {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            notes: vec![Note::default(); len.div_ceil(GRANULE)],
            fences: Vec::new(),
        }
    }

    /// What the next block finds: nothing that it may read.
    pub(crate) fn clear(&mut self) {
        self.notes.fill(Note::default());
        self.fences.clear();
    }

    #[inline]
    pub(crate) fn load(&mut self, address: u64, n_bytes: usize, by: Visitor) -> Result<&[u8], Problem> {
        let begin = self.check(address, n_bytes)?;
        for (index, note) in self.notes[begin / GRANULE..(begin + n_bytes).div_ceil(GRANULE)]
            .iter_mut()
            .enumerate()
        {
            let here = (begin / GRANULE + index) * GRANULE;
            note.pending_or(here)?;
            if !note.written {
                return Err(Problem::Uninitialised {
                    space: NAME,
                    address: here as u64,
                });
            }
            if note.conflicts_with_write(by) {
                return Err(race(here, "a read", "write", note.writer));
            }
            if note.read_epoch != by.block_epoch {
                note.readers = 0;
            }
            note.readers |= 1 << by.warp();
            note.reader = by.thread;
            note.read_epoch = by.block_epoch;
            note.read_warp_epoch = by.warp_epoch;
        }
        Ok(&self.bytes[begin..begin + n_bytes])
    }

    #[inline]
    pub(crate) fn store(&mut self, address: u64, bytes: &[u8], by: Visitor) -> Result<(), Problem> {
        let begin = self.check(address, bytes.len())?;
        self.note_write(begin, bytes.len(), by)?;
        self.bytes[begin..begin + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Marks what an asynchronous copy will write.
    pub(crate) fn begin_copy(&mut self, address: u64, n_bytes: usize, by: Visitor) -> Result<(), Problem> {
        let begin = self.check(address, n_bytes)?;
        self.note_write(begin, n_bytes, by)?;
        for note in &mut self.notes[begin / GRANULE..(begin + n_bytes).div_ceil(GRANULE)] {
            note.pending = by.thread + 1;
        }
        Ok(())
    }

    /// The copy is done: its bytes count as written now, by the thread that has waited.
    pub(crate) fn end_copy(&mut self, address: u64, bytes: &[u8], by: Visitor) -> Result<(), Problem> {
        let begin = self.check(address, bytes.len())?;
        for note in &mut self.notes[begin / GRANULE..(begin + bytes.len()).div_ceil(GRANULE)] {
            note.pending = 0;
        }
        self.store(address, bytes, by)
    }

    fn note_write(&mut self, begin: usize, n_bytes: usize, by: Visitor) -> Result<(), Problem> {
        let n_fences = self.n_fences(by.thread);
        for (index, note) in self.notes[begin / GRANULE..(begin + n_bytes).div_ceil(GRANULE)]
            .iter_mut()
            .enumerate()
        {
            let here = (begin / GRANULE + index) * GRANULE;
            note.pending_or(here)?;
            if note.n_products > 0 {
                return Err(Problem::ReadByProduct { address: here as u64 });
            }
            if note.conflicts_with_write(by) {
                return Err(race(here, "a write", "write", note.writer));
            }
            if note.conflicts_with_read(by) {
                return Err(race(here, "a write", "read", note.reader));
            }
            note.written = true;
            note.n_fences = n_fences;
            note.writer = by.thread;
            note.write_epoch = by.block_epoch;
            note.write_warp_epoch = by.warp_epoch;
        }
        Ok(())
    }

    fn check(&self, address: u64, n_bytes: usize) -> Result<usize, Problem> {
        let begin = address as usize;
        if begin
            .checked_add(n_bytes)
            .is_none_or(|end| end > self.bytes.len())
        {
            return Err(Problem::OutOfBounds {
                space: NAME,
                address,
                n_bytes,
            });
        }
        if !begin.is_multiple_of(n_bytes) {
            return Err(Problem::Misaligned {
                space: NAME,
                address,
                n_bytes,
            });
        }
        Ok(begin)
    }
}

fn race(address: usize, now: &'static str, before: &'static str, other: u16) -> Problem {
    Problem::Race {
        address: address as u64,
        now,
        before,
        other: u32::from(other),
    }
}

impl Note {
    fn pending_or(&self, address: usize) -> Result<(), Problem> {
        match self.pending {
            0 => Ok(()),
            thread => Err(Problem::Pending {
                address: address as u64,
                other: u32::from(thread) - 1,
            }),
        }
    }

    fn conflicts_with_write(&self, by: Visitor) -> bool {
        let other_warp = self.write_epoch == by.block_epoch && u32::from(self.writer) / 32 != by.warp();
        let other_lane = self.write_warp_epoch == by.warp_epoch && self.write_epoch == by.block_epoch;
        other_warp || (other_lane && self.writer != by.thread)
    }

    fn conflicts_with_read(&self, by: Visitor) -> bool {
        if self.read_epoch != by.block_epoch {
            return false;
        }
        let other_lane = self.read_warp_epoch == by.warp_epoch && self.reader != by.thread;
        self.readers & !(1 << by.warp()) != 0 || other_lane
    }
}

/// One thread's own memory: arrays that do not fit in registers.
#[derive(Debug)]
pub(crate) struct Local {
    bytes: Vec<u8>,
    written: Vec<bool>,
}

impl Local {
    pub(crate) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            written: vec![false; len],
        }
    }

    pub(crate) fn load(&self, address: u64, n_bytes: usize) -> Result<&[u8], Problem> {
        let begin = self.check(address, n_bytes)?;
        match self.written[begin..begin + n_bytes]
            .iter()
            .position(|written| !written)
        {
            None => Ok(&self.bytes[begin..begin + n_bytes]),
            Some(index) => Err(Problem::Uninitialised {
                space: Space::Local.name(),
                address: address + index as u64,
            }),
        }
    }

    pub(crate) fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Problem> {
        let begin = self.check(address, bytes.len())?;
        self.bytes[begin..begin + bytes.len()].copy_from_slice(bytes);
        self.written[begin..begin + bytes.len()].fill(true);
        Ok(())
    }

    fn check(&self, address: u64, n_bytes: usize) -> Result<usize, Problem> {
        let (begin, space) = (address as usize, Space::Local.name());
        if begin
            .checked_add(n_bytes)
            .is_none_or(|end| end > self.bytes.len())
        {
            return Err(Problem::OutOfBounds {
                space,
                address,
                n_bytes,
            });
        }
        if !begin.is_multiple_of(n_bytes) {
            return Err(Problem::Misaligned {
                space,
                address,
                n_bytes,
            });
        }
        Ok(begin)
    }
}
