//! Buffers that live within one operation, kept for the next one that asks for as much.
//!
//! Invariant: a buffer is given out to one owner at a time and holds zeros, or what was copied into it, as far as it was
//! asked for. It may be given out again before the device is done with it, since one stream does all work in order. A step that
//! is recorded is given none: its graph would hold a buffer that by then is another operation's.
//!
//! A step of training asks for the same buffers as the step before, so that from the second one on nothing is asked of the
//! driver; a step of fewer rows takes a larger buffer. Where the driver has no room left, what is kept goes back to it
//! first.
#![expect(unsafe_code, reason = "memory without an owner while nobody uses it")]

use std::collections::BTreeMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits, sys};

use super::Cuda;
use crate::error::Result;

/// What is kept, by size.
pub(super) struct Kept {
    stream: Arc<CudaStream>,
    /// Whether a buffer may be given to who asks for less.
    fits_less: bool,
    /// Bytes of a buffer to the buffers of that size.
    shelves: Mutex<BTreeMap<usize, Vec<sys::CUdeviceptr>>>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Kept {
    pub(super) fn new(stream: &Arc<CudaStream>, fits_less: bool) -> Self {
        Self {
            stream: Arc::clone(stream),
            fits_less,
            shelves: Mutex::default(),
        }
    }

    fn shelves(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<sys::CUdeviceptr>>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest buffer of at least `n_bytes`, and at most twice as many: a larger one is left to what needs it.
    fn take(&self, n_bytes: usize) -> Option<(sys::CUdeviceptr, usize)> {
        let most = if self.fits_less {
            n_bytes.saturating_mul(2)
        } else {
            n_bytes
        };
        let mut shelves = self.shelves();
        let (&size, shelf) = shelves.range_mut(n_bytes..=most).next()?;
        let address = shelf.pop();
        if shelf.is_empty() {
            shelves.remove(&size);
        }
        address.map(|address| (address, size))
    }

    fn put(&self, address: sys::CUdeviceptr, size: usize) {
        self.shelves().entry(size).or_default().push(address);
    }

    /// Gives all of it back to the driver; whether there was any.
    pub(super) fn clear(&self) -> bool {
        let shelves = std::mem::take(&mut *self.shelves());
        let was_any = !shelves.is_empty();
        for (size, shelf) in shelves {
            for address in shelf {
                // SAFETY: the address is of an allocation of `size` bytes on this stream that nobody else holds.
                let buffer: CudaSlice<u8> = unsafe { self.stream.upgrade_device_ptr(address, size) };
                drop(buffer);
            }
        }
        was_any
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A buffer of as many elements as were asked for, kept when it is let go of.
#[derive(Debug)]
pub(super) struct Scratch<T> {
    buffer: ManuallyDrop<CudaSlice<T>>,
    /// Bytes of its allocation.
    size: usize,
    kept: Arc<Kept>,
}

impl<T> Deref for Scratch<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.buffer
    }
}

impl<T> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.buffer
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        // SAFETY: it is taken here only, and never used again.
        let buffer = unsafe { ManuallyDrop::take(&mut self.buffer) };
        self.kept.put(buffer.leak(), self.size);
    }
}

impl Cuda {
    /// `len` zeros for as long as one operation needs them.
    pub(super) fn scratch<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Scratch<T>> {
        let stream = self.stream("scratch")?;
        let size = len.max(1).saturating_mul(size_of::<T>());
        let Some((address, size)) = self.kept.take(size) else {
            return self.zeros(len).map(|buffer| self.keep_after(buffer));
        };
        // SAFETY: the allocation holds `size` bytes, as many as `len` elements at least, and nobody else has it; every
        // type that is valid as zeros is valid once it is filled with them below.
        let buffer = unsafe { stream.upgrade_device_ptr::<T>(address, len.max(1)) };
        let mut scratch = Scratch {
            buffer: ManuallyDrop::new(buffer),
            size,
            kept: Arc::clone(&self.kept),
        };
        self.zero_part(&mut scratch, len.max(1))?;
        Ok(scratch)
    }

    /// A copy of `values` for as long as one operation needs it.
    pub(super) fn scratch_of<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        op: &'static str,
        values: &[T],
    ) -> Result<Scratch<T>> {
        let stream = self.stream(op)?;
        let size = size_of_val(values).max(size_of::<T>());
        let Some((address, size)) = self.kept.take(size) else {
            return self.upload(op, values).map(|buffer| self.keep_after(buffer));
        };
        // SAFETY: as above; it is filled with `values` below.
        let buffer = unsafe { stream.upgrade_device_ptr::<T>(address, values.len().max(1)) };
        let mut scratch = Scratch {
            buffer: ManuallyDrop::new(buffer),
            size,
            kept: Arc::clone(&self.kept),
        };
        self.write(op, &mut scratch, values)?;
        Ok(scratch)
    }

    fn keep_after<T>(&self, buffer: CudaSlice<T>) -> Scratch<T> {
        Scratch {
            size: buffer.num_bytes(),
            buffer: ManuallyDrop::new(buffer),
            kept: Arc::clone(&self.kept),
        }
    }
}
