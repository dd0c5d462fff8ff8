//! Checks of shapes, before anything is launched.
//!
//! Invariant: what a launch may touch lies within its buffers, and every size fits the integer the kernel takes it as.

use cudarc::driver::CudaSlice;

use crate::error::{Error, Result};

/// The product of `dims`. Fails when it overflows.
pub(super) fn size(op: &'static str, what: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |size, &dim| size.checked_mul(dim))
        .ok_or(Error::Overflow { op, what })
}

/// Fails when `buffer` holds fewer elements than `dims` say.
pub(super) fn holds<T>(
    op: &'static str,
    what: &'static str,
    buffer: &CudaSlice<T>,
    dims: &[usize],
) -> Result<()> {
    let expected = size(op, what, dims)?;
    if buffer.len() >= expected {
        Ok(())
    } else {
        Err(Error::TooShort {
            op,
            what,
            expected,
            got: buffer.len(),
        })
    }
}

/// Fails unless both are the same.
pub(super) fn same(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::Mismatch {
            op,
            what,
            expected,
            got,
        })
    }
}

/// `value` as the kernels take it. Fails when it does not fit.
pub(super) fn int(op: &'static str, what: &'static str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Overflow { op, what })
}

/// `value` as a number of blocks. Fails when it does not fit.
pub(super) fn blocks(op: &'static str, what: &'static str, value: usize) -> Result<u32> {
    int(op, what, value).map(|value| value as u32)
}

/// Fails unless `holds`.
pub(super) fn setting(
    op: &'static str,
    what: &'static str,
    expected: &'static str,
    holds: bool,
) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::Setting { op, what, expected })
    }
}
