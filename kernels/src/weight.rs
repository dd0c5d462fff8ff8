//! A frozen matrix as it comes from a model file, before a backend takes it in.
//!
//! Invariant: `data` holds exactly `n * k` elements in `format`, checked when the value is made.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::nf4::{DoubleQuant, Nf4Matrix};
use crate::quant;

/// How a row's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bytes an element.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// GGUF blocks of 32: f16 scale, 32 i8.
    Q8_0,
    /// GGUF blocks of 32: f16 scale, 16 bytes of nibbles, value `(q - 8) * d`.
    Q4_0,
    /// GGUF blocks of 32: f16 scale, f16 minimum, 16 bytes of nibbles, value `q * d + m`.
    Q4_1,
    /// GGUF blocks of 32: f16 scale, 4 bytes of fifth bits, 16 bytes of nibbles, value `(q - 16) * d`.
    Q5_0,
    /// GGUF blocks of 32: f16 scale, f16 minimum, 4 bytes of fifth bits, 16 bytes of nibbles, value `q * d + m`.
    Q5_1,
    /// GGUF blocks of 32: f16 scale, 16 bytes of nibbles that index a table of levels.
    Iq4Nl,
    /// GGUF super-blocks of 256, 2 bits.
    Q2K,
    /// GGUF super-blocks of 256, 3 bits.
    Q3K,
    /// GGUF super-blocks of 256, 4 bits.
    Q4K,
    /// GGUF super-blocks of 256, 5 bits.
    Q5K,
    /// GGUF super-blocks of 256, 6 bits.
    Q6K,
}

impl Format {
    /// Elements in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `n_elements`, or `None` when they do not fill whole blocks or overflow.
    pub const fn bytes_for(self, n_elements: usize) -> Option<usize> {
        if !n_elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// A mapped file or memory of our own.
pub trait Bytes: AsRef<[u8]> + Send + Sync {
    /// Says that a part will not be read again soon. A mapped file gives back the memory its pages took; they are read
    /// from the file again should they be asked for.
    fn release(&self, _part: Range<usize>) {}
}

impl Bytes for Vec<u8> {}

/// Bytes that several tensors may share.
pub type SharedBytes = Arc<dyn Bytes>;

/// Values of a frozen matrix `[N, K]`, row-major.
#[derive(Clone)]
pub enum HostWeight {
    /// The file's own bytes.
    Blocks(BlockMatrix),
    /// Quantized to NF4.
    Nf4(Nf4Matrix),
}

/// A matrix in the bytes of a file, checked by [`HostWeight::blocks`], the only way to make one.
#[derive(Clone)]
pub struct BlockMatrix {
    /// Output features.
    n: usize,
    /// Input features; a multiple of the format's block length.
    k: usize,
    /// How the bytes are to be read.
    pub(crate) format: Format,
    /// Holds the matrix at `offset..offset + format.bytes_for(n * k)`.
    pub(crate) bytes: SharedBytes,
    /// First byte of the matrix.
    pub(crate) offset: usize,
}

impl std::fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockMatrix[{}, {}] {:?}", self.n, self.k, self.format)
    }
}

impl BlockMatrix {
    /// `(N, K)`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// How its elements are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The values of the rows in `rows`, row-major; rows beyond the matrix are left out.
    pub fn rows_to_f32(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let end = rows.end.min(self.n);
        let start = rows.start.min(end);
        let mut values = vec![0.0; (end - start) * self.k];
        self.decode_rows(start, &mut values);
        values
    }

    /// The bytes of the matrix.
    pub fn data(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range()]
    }

    /// Says that the bytes will not be read again soon.
    pub(crate) fn release(&self) {
        self.bytes.release(self.range());
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.n * self.row_bytes()
    }

    /// `out [rows, K] =` the values of the rows from `first` on.
    pub(crate) fn decode_rows(&self, first: usize, out: &mut [f32]) {
        let row_bytes = self.row_bytes();
        if row_bytes > 0 {
            let rows = self.data()[first * row_bytes..].chunks_exact(row_bytes);
            for (row, out) in rows.zip(out.chunks_exact_mut(self.k)) {
                quant::decode_row(self.format, row, 0, out);
            }
        }
    }

    fn row_bytes(&self) -> usize {
        self.k / self.format.block_len() * self.format.block_bytes()
    }
}

impl std::fmt::Debug for HostWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n, k) = self.shape();
        match self {
            Self::Blocks(matrix) => write!(f, "HostWeight[{n}, {k}] {:?}", matrix.format),
            Self::Nf4(_) => write!(f, "HostWeight[{n}, {k}] NF4"),
        }
    }
}

impl HostWeight {
    /// A matrix over part of `bytes`. Fails when the part is out of bounds or rows do not fill whole blocks.
    pub fn blocks(n: usize, k: usize, format: Format, bytes: SharedBytes, offset: usize) -> Result<Self> {
        let len = (*bytes).as_ref().len();
        let row = format.bytes_for(k).ok_or(Error::RowNotBlocks { k, format })?;
        let end = row.checked_mul(n).and_then(|size| size.checked_add(offset));
        if end.is_none_or(|end| end > len) {
            return Err(Error::WeightBytes {
                n,
                k,
                format,
                offset,
                available: len,
            });
        }
        Ok(Self::Blocks(BlockMatrix {
            n,
            k,
            format,
            bytes,
            offset,
        }))
    }

    /// A matrix of 32-bit floats.
    pub fn from_f32(n: usize, k: usize, values: &[f32]) -> Result<Self> {
        let bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
        Self::blocks(n, k, Format::F32, Arc::new(bytes), 0)
    }

    /// The values, `[N, K]` row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::Nf4(matrix) => matrix.dequantize(),
            Self::Blocks(matrix) => matrix.rows_to_f32(0..matrix.n),
        }
    }

    /// The matrix in NF4; one that is in NF4 already stays as it is. Gives back the memory of a mapped file's bytes.
    pub fn into_nf4(self, double_quant: DoubleQuant) -> Result<Nf4Matrix> {
        match self {
            Self::Nf4(matrix) => Ok(matrix),
            Self::Blocks(blocks) => {
                let decode = |row: usize, out: &mut [f32]| blocks.decode_rows(row, out);
                let matrix = Nf4Matrix::quantize_rows(blocks.n, blocks.k, double_quant, decode)?;
                blocks.release();
                Ok(matrix)
            }
        }
    }

    /// `(N, K)`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Blocks(matrix) => (matrix.n, matrix.k),
            Self::Nf4(matrix) => matrix.shape(),
        }
    }
}
