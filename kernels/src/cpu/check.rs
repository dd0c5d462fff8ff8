//! Checks of shapes: what every operation does before anything else.
//!
//! Invariant: after its checks an operation cannot index out of bounds.

use crate::dims::HeadDims;
use crate::error::{Error, Result};

/// The product of `dims`. Fails when it overflows.
pub(super) fn size(op: &'static str, what: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |size, &dim| size.checked_mul(dim))
        .ok_or(Error::Overflow { op, what })
}

/// The first elements of `buffer`, as many as `dims` say. Fails when it holds fewer.
pub(super) fn part<'a, T>(
    op: &'static str,
    what: &'static str,
    buffer: &'a [T],
    dims: &[usize],
) -> Result<&'a [T]> {
    let expected = size(op, what, dims)?;
    buffer.get(..expected).ok_or(Error::TooShort {
        op,
        what,
        expected,
        got: buffer.len(),
    })
}

/// See [`part`].
pub(super) fn part_mut<'a, T>(
    op: &'static str,
    what: &'static str,
    buffer: &'a mut [T],
    dims: &[usize],
) -> Result<&'a mut [T]> {
    let expected = size(op, what, dims)?;
    let got = buffer.len();
    buffer.get_mut(..expected).ok_or(Error::TooShort {
        op,
        what,
        expected,
        got,
    })
}

/// `buffer[offset..offset + len]`. Fails when it holds fewer.
pub(super) fn window<'a, T>(
    op: &'static str,
    what: &'static str,
    buffer: &'a [T],
    offset: usize,
    len: usize,
) -> Result<&'a [T]> {
    let expected = offset.checked_add(len).ok_or(Error::Overflow { op, what })?;
    buffer.get(offset..expected).ok_or(Error::TooShort {
        op,
        what,
        expected,
        got: buffer.len(),
    })
}

/// See [`window`].
pub(super) fn window_mut<'a, T>(
    op: &'static str,
    what: &'static str,
    buffer: &'a mut [T],
    offset: usize,
    len: usize,
) -> Result<&'a mut [T]> {
    let expected = offset.checked_add(len).ok_or(Error::Overflow { op, what })?;
    let got = buffer.len();
    buffer.get_mut(offset..expected).ok_or(Error::TooShort {
        op,
        what,
        expected,
        got,
    })
}

/// Fails unless `got` is `expected`.
pub(super) fn same(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
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

/// Query heads for each key head. Fails when a dimension is 0 or the key heads do not divide the query heads.
pub(super) fn group_len(op: &'static str, heads: HeadDims) -> Result<usize> {
    let HeadDims {
        n_heads,
        n_kv_heads,
        head_dim,
    } = heads;
    setting(op, "head_dim", "at least 1", head_dim > 0)?;
    let divides = n_heads > 0 && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    setting(op, "n_heads", "a multiple of n_kv_heads and at least 1", divides)?;
    Ok(n_heads / n_kv_heads)
}

/// Fails at the first of `values` that is not below `limit`.
pub(super) fn below(op: &'static str, what: &'static str, values: &[u32], limit: usize) -> Result<()> {
    match values.iter().position(|&value| value as usize >= limit) {
        None => Ok(()),
        Some(index) => Err(Error::OutOfRange {
            op,
            what,
            index,
            value: values[index] as usize,
            limit,
        }),
    }
}
