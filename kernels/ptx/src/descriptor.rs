//! Descriptors of matrices in shared memory, as `wgmma` takes them.
//!
//! Invariant: a descriptor that is decoded tells the place of every row, and no row leaves its swizzle's pattern.

use crate::report::Problem;

/// Bytes of 8 values of 16 bits: what is never parted.
pub(crate) const PIECE_BYTES: usize = 16;
/// Rows after which the pattern of a swizzle repeats.
const PATTERN_ROWS: u64 = 8;
/// Bits that no field of the format has: 14 and 15, 30 and 31, 46 to 48, 52 to 61.
const UNUSED: u64 = 0x3ff1_c000_c000_c000;

/// A matrix whose rows lie along the contraction ("K-major"), in steps of 16 values of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    start: u64,
    /// From a row's first piece to its second; only without a swizzle.
    leading: u64,
    /// From 8 rows to the next 8.
    stride: u64,
    /// Bytes of a row of the swizzle's pattern: 128, 64 or 32; 16 without.
    row_bytes: u64,
}

impl Descriptor {
    /// PTX ISA, "matrix descriptor format". Fails on what the format forbids, on a pattern that does not begin at a
    /// multiple of its own size (the base offset, which would allow that, is not known here), and on a step that leaves it.
    pub(crate) fn decode(raw: u64) -> Result<Self, Problem> {
        let fail = |what: &str| {
            Err(Problem::Descriptor {
                raw,
                what: what.to_owned(),
            })
        };
        let field = |first_bit: u32| (raw >> first_bit & 0x3fff) << 4;
        let row_bytes = match raw >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        let decoded = Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            row_bytes,
        };
        if raw & UNUSED != 0 {
            return fail("bits that have no meaning are set");
        }
        if raw >> 49 & 7 != 0 {
            return fail("a base offset is not known here");
        }
        if row_bytes == 16 {
            return Ok(decoded);
        }
        let pattern = PATTERN_ROWS * row_bytes;
        let within_row = decoded.start % row_bytes;
        if !(decoded.start - within_row).is_multiple_of(pattern) {
            return fail("it does not begin where a swizzle's pattern does");
        }
        if !decoded.stride.is_multiple_of(pattern) {
            return fail("its stride is no multiple of a swizzle's pattern");
        }
        if within_row + 2 * PIECE_BYTES as u64 > row_bytes {
            return fail("it leaves the rows of a swizzle's pattern");
        }
        Ok(decoded)
    }

    /// Where piece 0 or 1 of a row lies: the swizzle exchanges pieces by the number of their row within the pattern.
    pub(crate) fn address(self, row: usize, piece: usize) -> u64 {
        let (row, piece) = (row as u64, piece as u64);
        let (pattern, within) = (row / PATTERN_ROWS * self.stride, row % PATTERN_ROWS);
        let piece_bytes = PIECE_BYTES as u64;
        if self.row_bytes == piece_bytes {
            return self.start + pattern + within * piece_bytes + piece * self.leading;
        }
        let plain = self.start + pattern + within * self.row_bytes + piece * piece_bytes;
        let pieces_of_row = self.row_bytes / piece_bytes;
        plain ^ ((plain >> 7 & (pieces_of_row - 1)) * piece_bytes)
    }
}
