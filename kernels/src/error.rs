//! What can go wrong when math meets a buffer.
//!
//! Invariant: an operation that returns an error has launched nothing and written nothing.

use std::path::PathBuf;

use crate::cuda::DeviceError;
use crate::weight::Format;

/// `Result` with this crate's [`Error`], where no other is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused operation: the caller's shapes or values do not fit it, or the machine did not give what it needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A quantized row must be made of whole blocks.
    #[error("a row of {k} elements does not fill whole {format:?} blocks of {}; the file is damaged or of another format", format.block_len())]
    RowNotBlocks {
        /// Elements of the row.
        k: usize,
        /// Its format.
        format: Format,
    },
    /// The bytes at hand end before the matrix does.
    #[error(
        "a {format:?} matrix [{n}, {k}] at byte {offset} does not fit in {available} bytes; the file is truncated"
    )]
    WeightBytes {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// How the bytes are read.
        format: Format,
        /// First byte of the matrix.
        offset: usize,
        /// Bytes at hand.
        available: usize,
    },
    /// A part of an NF4 matrix has another length than its shape asks for.
    #[error("the {what} of an NF4 matrix [{n}, {k}] must hold {expected} values, got {got}")]
    Nf4Part {
        /// Which part.
        what: &'static str,
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// Values the shape asks for.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A buffer is shorter than the operation's shapes ask for.
    #[error(
        "{op}: {what} holds {got} elements, expected at least {expected}; allocate it for the step's rows"
    )]
    TooShort {
        /// The operation.
        op: &'static str,
        /// The buffer.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements held.
        got: usize,
    },
    /// Two dimensions that must be equal are not.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Mismatch {
        /// The operation.
        op: &'static str,
        /// The dimension.
        what: &'static str,
        /// What the other operands say.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// An index points outside what it indexes.
    #[error("{op}: {what} {value} at index {index} is not below {limit}")]
    OutOfRange {
        /// The operation.
        op: &'static str,
        /// What the index names.
        what: &'static str,
        /// Where it stands.
        index: usize,
        /// The index.
        value: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// A setting has a value for which the operation has no meaning.
    #[error("{op}: {what} must be {expected}")]
    Setting {
        /// The operation.
        op: &'static str,
        /// The setting.
        what: &'static str,
        /// The values that are allowed.
        expected: &'static str,
    },
    /// A product of dimensions does not fit in the address space.
    #[error("{op}: the size of {what} overflows; its dimensions cannot be right")]
    Overflow {
        /// The operation.
        op: &'static str,
        /// What was to be sized.
        what: &'static str,
    },
    /// A row of logits from which no token can be chosen.
    #[error(
        "{op}: the largest logit of row {row} is not a finite number; the model's or the adapter's numbers are damaged"
    )]
    NotFinite {
        /// The operation.
        op: &'static str,
        /// The row.
        row: usize,
    },
    /// The CUDA device did not do what it was asked.
    #[error("{op} on the CUDA device")]
    Device {
        /// The operation.
        op: &'static str,
        /// Why not.
        #[source]
        source: DeviceError,
    },
    /// A file could not be mapped into memory.
    #[error("cannot map {path:?} into memory; check that it is a readable file")]
    MapFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The threads of the CPU backend could not be started.
    #[error("cannot start {threads} compute threads; ask for fewer")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

impl Error {
    /// What the CUDA device said, where it is to blame.
    pub fn device(&self) -> Option<&DeviceError> {
        match self {
            Self::Device { source, .. } => Some(source),
            _ => None,
        }
    }
}
