//! Global memory: allocations with gaps between them.
//!
//! Invariant: a byte is read only after it was written; each byte knows who wrote it.

use crate::report::Problem;
use crate::types::Space;

/// First address of the first allocation.
const FIRST: u64 = 1 << 32;
/// Allocations begin at multiples of this, as the driver's do, and at least this much apart.
const ALIGNMENT: u64 = 256;

/// Nobody has written the byte.
const NEVER: u32 = 0;
/// It was written before the launches that now run.
const EARLIER: u32 = 1;

/// The card's memory.
#[derive(Debug)]
pub struct Memory {
    /// In the order of their addresses.
    allocations: Vec<Allocation>,
    next: u64,
    used: usize,
    capacity: usize,
    /// Writers are numbered by block, upwards through all launches.
    last_writer: u32,
    /// Writers from this one on belong to the launch that runs.
    launch_begins: u32,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: Vec<u8>,
    writers: Vec<u32>,
}

impl Memory {
    /// Empty memory that holds at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            allocations: Vec::new(),
            next: FIRST,
            used: 0,
            capacity,
            last_writer: EARLIER,
            launch_begins: EARLIER + 1,
        }
    }

    /// Bytes that can still be allocated.
    pub fn n_free(&self) -> usize {
        self.capacity - self.used
    }

    /// All bytes there are.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// `len` bytes that nobody has written. Fails when the capacity does not hold them.
    pub fn allocate(&mut self, len: usize) -> Result<u64, Problem> {
        if len > self.n_free() {
            let what = format!("{len} bytes asked for, {} are free", self.n_free());
            return Err(Problem::Shape { what });
        }
        let address = self.next;
        self.next += (len as u64).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        self.used += len;
        self.allocations.push(Allocation {
            address,
            bytes: vec![0; len],
            writers: vec![NEVER; len],
        });
        Ok(address)
    }

    /// Gives an allocation back, and says how long it was. Its address is never used again.
    pub fn free(&mut self, address: u64) -> Option<usize> {
        match self
            .allocations
            .binary_search_by_key(&address, |allocation| allocation.address)
        {
            Ok(index) => {
                let len = self.allocations.remove(index).bytes.len();
                self.used -= len;
                Some(len)
            }
            Err(_) => None,
        }
    }

    /// Writes from outside of any launch.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Problem> {
        let (allocation, offset) = self.find(address, bytes.len())?;
        allocation.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        allocation.writers[offset..offset + bytes.len()].fill(EARLIER);
        Ok(())
    }

    /// Reads from outside of any launch. Bytes that nobody wrote are an error.
    pub fn read(&mut self, address: u64, out: &mut [u8]) -> Result<(), Problem> {
        let (allocation, offset) = self.find(address, out.len())?;
        let range = offset..offset + out.len();
        if let Some(index) = allocation.writers[range.clone()]
            .iter()
            .position(|&writer| writer == NEVER)
        {
            return Err(uninitialised(address + index as u64));
        }
        out.copy_from_slice(&allocation.bytes[range]);
        Ok(())
    }

    /// Begins a launch: what was written before counts as earlier than all its blocks.
    pub(crate) fn begin_launch(&mut self) {
        if self.last_writer > u32::MAX / 2 {
            for allocation in &mut self.allocations {
                for writer in &mut allocation.writers {
                    *writer = (*writer).min(EARLIER);
                }
            }
            self.last_writer = EARLIER;
        }
        self.launch_begins = self.last_writer + 1;
    }

    /// Begins the next block of the launch.
    pub(crate) fn begin_block(&mut self) {
        self.last_writer += 1;
    }

    /// The bytes a thread reads.
    #[inline]
    pub(crate) fn load(&mut self, address: u64, n_bytes: usize) -> Result<&[u8], Problem> {
        let (block, launch) = (self.last_writer, self.launch_begins);
        let (allocation, offset) = self.find_aligned(address, n_bytes)?;
        let writers = &allocation.writers[offset..offset + n_bytes];
        for (index, &writer) in writers.iter().enumerate() {
            let address = address + index as u64;
            if writer == NEVER {
                return Err(uninitialised(address));
            }
            if writer >= launch && writer != block {
                return Err(Problem::BlockRace {
                    address,
                    now: "reads",
                });
            }
        }
        Ok(&allocation.bytes[offset..offset + n_bytes])
    }

    /// What a thread writes.
    #[inline]
    pub(crate) fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Problem> {
        let (block, launch) = (self.last_writer, self.launch_begins);
        let n_bytes = bytes.len();
        let (allocation, offset) = self.find_aligned(address, n_bytes)?;
        for (index, writer) in allocation.writers[offset..offset + n_bytes]
            .iter_mut()
            .enumerate()
        {
            if *writer >= launch && *writer != block {
                let address = address + index as u64;
                return Err(Problem::BlockRace {
                    address,
                    now: "writes",
                });
            }
            *writer = block;
        }
        allocation.bytes[offset..offset + n_bytes].copy_from_slice(bytes);
        Ok(())
    }

    fn find_aligned(&mut self, address: u64, n_bytes: usize) -> Result<(&mut Allocation, usize), Problem> {
        let found = self.find(address, n_bytes)?;
        if address.is_multiple_of(n_bytes as u64) {
            Ok(found)
        } else {
            Err(Problem::Misaligned {
                space: Space::Global.name(),
                address,
                n_bytes,
            })
        }
    }

    fn find(&mut self, address: u64, n_bytes: usize) -> Result<(&mut Allocation, usize), Problem> {
        let outside = Problem::OutOfBounds {
            space: Space::Global.name(),
            address,
            n_bytes,
        };
        let index = self
            .allocations
            .partition_point(|allocation| allocation.address <= address);
        let Some(allocation) = index
            .checked_sub(1)
            .and_then(|index| self.allocations.get_mut(index))
        else {
            return Err(outside);
        };
        let offset = (address - allocation.address) as usize;
        match offset.checked_add(n_bytes) {
            Some(end) if end <= allocation.bytes.len() => Ok((allocation, offset)),
            _ => Err(outside),
        }
    }
}

fn uninitialised(address: u64) -> Problem {
    Problem::Uninitialised {
        space: Space::Global.name(),
        address,
    }
}
