//! Instructions that touch memory.
//!
//! Invariant: every lane's access is checked before its bytes are used.

use crate::execute::{Block, LaneResult};
use crate::instruction::{Address, Operation};
use crate::lanes::{Lanes, N_LANES, lanes_of};
use crate::report::Problem;
use crate::types::Space;
use crate::warp::{Copy, Warp};

/// Bytes of a row of an 8×8 matrix of 16-bit values.
const MATRIX_ROW_BYTES: usize = 16;

fn address_of(warp: &Warp, address: Address, lane: usize) -> u64 {
    warp.registers[address.base as usize][lane].wrapping_add(address.offset as u64)
}

/// The first bytes of a register, as memory has them.
fn value(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl Block<'_> {
    pub(crate) fn access(&mut self, warp: &mut Warp, operation: &Operation, active: u32) -> LaneResult<()> {
        match operation {
            Operation::LoadParameter { to, offset, n_bytes } => {
                for (index, register) in to.iter().enumerate() {
                    let begin = offset + index * n_bytes;
                    let Some(bytes) = self.parameters.get(begin..begin + n_bytes) else {
                        return Err((0, outside(Space::Param, begin as u64, *n_bytes)));
                    };
                    if let Some(register) = register {
                        warp.write(*register, &[value(bytes); N_LANES], active);
                    }
                }
                Ok(())
            }
            Operation::Load {
                space,
                to,
                address,
                n_bytes,
                signed_to,
            } => {
                for lane in lanes_of(active) {
                    let at = address_of(warp, *address, lane);
                    self.load(warp, lane, *space, at, n_bytes * to.len(), |warp, bytes| {
                        for (register, bytes) in to.iter().zip(bytes.chunks_exact(*n_bytes)) {
                            if let Some(register) = register {
                                warp.registers[*register as usize][lane] =
                                    extend(value(bytes), *n_bytes, *signed_to);
                            }
                        }
                    })
                    .map_err(|problem| (lane, problem))?;
                }
                Ok(())
            }
            Operation::Store {
                space,
                from,
                address,
                n_bytes,
            } => {
                let mut bytes = [0u8; 32];
                for lane in lanes_of(active) {
                    for (register, bytes) in from.iter().zip(bytes.chunks_exact_mut(*n_bytes)) {
                        let value = warp.registers[*register as usize][lane].to_le_bytes();
                        bytes.copy_from_slice(&value[..*n_bytes]);
                    }
                    let at = address_of(warp, *address, lane);
                    self.store(warp, lane, *space, at, &bytes[..n_bytes * from.len()])
                        .map_err(|problem| (lane, problem))?;
                }
                Ok(())
            }
            Operation::LoadMatrix {
                to,
                address,
                transposed,
            } => self.load_matrix(warp, to, *address, *transposed),
            _ => self.copy_async(warp, operation, active),
        }
    }

    fn load(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        space: Space,
        address: u64,
        n_bytes: usize,
        take: impl FnOnce(&mut Warp, &[u8]),
    ) -> Result<(), Problem> {
        let mut copied = [0u8; 32];
        let copied = &mut copied[..n_bytes.min(32)];
        match space.resolve(address) {
            (Space::Shared, address) => {
                let visitor = warp.visitor(lane, self.epoch);
                take(warp, self.shared.load(address, n_bytes, visitor)?);
                return Ok(());
            }
            (Space::Local, address) => {
                let local = warp
                    .locals
                    .get(lane)
                    .ok_or_else(|| outside(Space::Local, address, n_bytes))?;
                copied.copy_from_slice(local.load(address, n_bytes)?);
            }
            (_, address) => copied.copy_from_slice(self.memory.load(address, n_bytes)?),
        }
        take(warp, copied);
        Ok(())
    }

    fn store(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        space: Space,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Problem> {
        match space.resolve(address) {
            (Space::Shared, address) => self.shared.store(address, bytes, warp.visitor(lane, self.epoch)),
            (Space::Local, address) => match warp.locals.get_mut(lane) {
                Some(local) => local.store(address, bytes),
                None => Err(outside(Space::Local, address, bytes.len())),
            },
            (_, address) => self.memory.store(address, bytes),
        }
    }

    /// Lane `8 i + r` gives the address of row `r` of matrix `i`; lane `l` gets elements `2 (l % 4)` and the next of row
    /// `l / 4`, or of that column (PTX ISA, `ldmatrix`).
    fn load_matrix(
        &mut self,
        warp: &mut Warp,
        to: &[u32],
        address: Address,
        transposed: bool,
    ) -> LaneResult<()> {
        for (matrix, register) in to.iter().enumerate() {
            let mut elements = [[0u16; 8]; 8];
            for (row, elements) in elements.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                let at = address_of(warp, address, lane);
                let (_, at) = Space::Shared.resolve(at);
                let bytes = self
                    .shared
                    .load(at, MATRIX_ROW_BYTES, warp.visitor(lane, self.epoch))
                    .map_err(|problem| (lane, problem))?;
                for (element, bytes) in elements.iter_mut().zip(bytes.chunks_exact(2)) {
                    *element = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
            }
            let out: Lanes = std::array::from_fn(|lane| {
                let (major, minor) = (lane / 4, lane % 4 * 2);
                let [low, high] = match transposed {
                    false => [elements[major][minor], elements[major][minor + 1]],
                    true => [elements[minor][major], elements[minor + 1][major]],
                };
                u64::from(high) << 16 | u64::from(low)
            });
            warp.write(*register, &out, u32::MAX);
        }
        Ok(())
    }

    fn copy_async(&mut self, warp: &mut Warp, operation: &Operation, active: u32) -> LaneResult<()> {
        for lane in lanes_of(active) {
            let done = match operation {
                Operation::CopyAsync {
                    to,
                    from,
                    n_bytes,
                    n_read,
                } => {
                    let copy = Copy {
                        to: address_of(warp, *to, lane),
                        from: address_of(warp, *from, lane),
                        n_bytes: *n_bytes,
                        n_read: n_read.map_or(*n_bytes, |register| {
                            warp.registers[register as usize][lane] as u32 as usize
                        }),
                    };
                    self.begin_copy(warp, lane, copy)
                }
                Operation::CopyCommit => {
                    warp.copies[lane].push(Vec::new());
                    Ok(())
                }
                Operation::CopyWait { n_left } => self.end_copies(warp, lane, *n_left),
                _ => Ok(()),
            };
            done.map_err(|problem| (lane, problem))?;
        }
        Ok(())
    }

    fn begin_copy(&mut self, warp: &mut Warp, lane: usize, copy: Copy) -> Result<(), Problem> {
        if copy.n_read > copy.n_bytes {
            return Err(outside(Space::Global, copy.from, copy.n_read));
        }
        if !copy.from.is_multiple_of(copy.n_bytes as u64) {
            let (space, address) = (Space::Global.name(), copy.from);
            return Err(Problem::Misaligned {
                space,
                address,
                n_bytes: copy.n_bytes,
            });
        }
        for index in 0..copy.n_read as u64 {
            self.memory.load(copy.from + index, 1)?;
        }
        self.shared
            .begin_copy(copy.to, copy.n_bytes, warp.visitor(lane, self.epoch))?;
        if let Some(open) = warp.copies[lane].last_mut() {
            open.push(copy);
        }
        Ok(())
    }

    /// Ends the oldest groups until `n_left` closed ones are under way.
    fn end_copies(&mut self, warp: &mut Warp, lane: usize, n_left: usize) -> Result<(), Problem> {
        while warp.copies[lane].len() - 1 > n_left {
            let visitor = warp.visitor(lane, self.epoch);
            for copy in warp.copies[lane].remove(0) {
                let mut bytes = [0u8; 16];
                let bytes = &mut bytes[..copy.n_bytes.min(16)];
                for (index, byte) in bytes[..copy.n_read].iter_mut().enumerate() {
                    *byte = self.memory.load(copy.from + index as u64, 1)?[0];
                }
                self.shared.end_copy(copy.to, bytes, visitor)?;
            }
        }
        Ok(())
    }
}

fn outside(space: Space, address: u64, n_bytes: usize) -> Problem {
    Problem::OutOfBounds {
        space: space.name(),
        address,
        n_bytes,
    }
}

/// `value` of `n_bytes`, sign-extended to `bits`; 0 bits leave it alone.
fn extend(value: u64, n_bytes: usize, bits: u32) -> u64 {
    if bits == 0 {
        return value;
    }
    let unused = 64 - 8 * n_bytes as u32;
    let extended = ((value << unused) as i64 >> unused) as u64;
    extended & (u64::MAX >> (64 - bits.clamp(1, 64)))
}
