//! Memory on the device.
//!
//! Invariant: a buffer holds zeros or what was written to it, never what was there before.

use cudarc::driver::{CudaSlice, DeviceRepr, DriverError, ValidAsZeroBits, sys};
use half::bf16;

use super::scratch::Scratch;
use super::{Cuda, CudaAct, CudaF32, CudaIndices, DeviceError};
use crate::error::{Error, Result};

/// 32-bit unsigned integers on the device and on the host, where they were made: so that what indexes a table can be
/// checked without waiting for the device.
#[derive(Debug)]
pub struct CudaU32 {
    values: Vec<u32>,
    /// As many at least.
    on_device: Scratch<u32>,
}

impl CudaU32 {
    /// The first `len`. Fails when there are fewer.
    pub(super) fn first(&self, op: &'static str, what: &'static str, len: usize) -> Result<&[u32]> {
        self.values.get(..len).ok_or(Error::TooShort {
            op,
            what,
            expected: len,
            got: self.values.len(),
        })
    }

    pub(super) fn on_device(&self) -> &CudaIndices {
        &self.on_device
    }
}

fn failed(op: &'static str, error: DriverError) -> Error {
    let source = DeviceError::driver("moving data", error);
    Error::Device { op, source }
}

fn unallocated(bytes: usize, error: DriverError) -> Error {
    let source = match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { bytes: Some(bytes) },
        _ => DeviceError::driver("allocating", error),
    };
    Error::Device { op: "alloc", source }
}

/// `buffer[offset..offset + len]` must be there.
fn window(
    op: &'static str,
    what: &'static str,
    held: usize,
    offset: usize,
    len: usize,
) -> Result<std::ops::Range<usize>> {
    let end = offset.checked_add(len).ok_or(Error::Overflow { op, what })?;
    if end > held {
        return Err(Error::TooShort {
            op,
            what,
            expected: end,
            got: held,
        });
    }
    Ok(offset..end)
}

impl Cuda {
    /// `len` zeros. Fails when the device has no room.
    pub(super) fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        // The driver refuses an allocation of nothing.
        let room = len.max(1);
        let bytes = room.checked_mul(size_of::<T>());
        let bytes = bytes.filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or(Error::Overflow {
            op: "alloc",
            what: "buffer",
        })?;
        let stream = self.stream("alloc")?;
        self.with_room(|| stream.alloc_zeros(room))
            .map_err(|error| unallocated(bytes, error))
    }

    /// Allocates, once more where there is no room until what is kept for later is given back.
    fn with_room<T>(
        &self,
        allocate: impl Fn() -> std::result::Result<T, DriverError>,
    ) -> std::result::Result<T, DriverError> {
        match allocate() {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY && self.kept.clear() => {
                allocate()
            }
            done => done,
        }
    }

    pub(super) fn upload<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        op: &'static str,
        values: &[T],
    ) -> Result<CudaSlice<T>> {
        if values.is_empty() {
            return self.zeros(0);
        }
        let stream = self.stream(op)?;
        let copy = || stream.clone_htod(values);
        self.with_room(copy).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => unallocated(size_of_val(values), error),
            _ => failed(op, error),
        })
    }

    /// Puts `len` zeros in the place of `target`, which is let go of first: its values are of no use any more.
    pub(super) fn renew<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        target: &mut CudaSlice<T>,
        len: usize,
    ) -> Result<()> {
        *target = self.zeros(0)?;
        *target = self.zeros(len)?;
        Ok(())
    }

    /// `len` zeros.
    pub fn alloc_act(&self, len: usize) -> Result<CudaAct> {
        self.zeros(len)
    }

    /// `len` zeros.
    pub fn alloc_f32(&self, len: usize) -> Result<CudaF32> {
        self.zeros(len)
    }

    /// A copy of `values`.
    pub fn upload_f32(&self, values: &[f32]) -> Result<CudaF32> {
        self.upload("upload_f32", values)
    }

    /// A copy of `values`, which the host keeps too.
    pub fn upload_u32(&self, values: &[u32]) -> Result<CudaU32> {
        Ok(CudaU32 {
            on_device: self.scratch_of("upload_u32", values)?,
            values: values.to_vec(),
        })
    }

    /// See [`Backend::write_u32`](crate::Backend::write_u32).
    pub fn write_u32(&self, target: &mut CudaU32, values: &[u32]) -> Result<()> {
        if values.len() > target.on_device.len() {
            target.on_device = self.scratch(values.len())?;
        }
        self.write("write_u32", &mut target.on_device, values)?;
        target.values.clear();
        target.values.extend_from_slice(values);
        Ok(())
    }

    /// A copy of `values`.
    pub(super) fn upload_indices(&self, values: &[u32]) -> Result<CudaIndices> {
        self.upload("upload_u32", values)
    }

    /// A copy of `values`, each rounded to the nearest bf16.
    pub fn upload_act(&self, values: &[f32]) -> Result<CudaAct> {
        let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        self.upload("upload_act", &rounded)
    }

    /// Overwrites `target[offset..offset + values.len()]`.
    pub fn write_f32(&self, target: &mut CudaF32, offset: usize, values: &[f32]) -> Result<()> {
        let range = window("write_f32", "target", target.len(), offset, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        let mut part = target.slice_mut(range);
        self.stream("write_f32")?
            .memcpy_htod(values, &mut part)
            .map_err(|error| failed("write_f32", error))
    }

    /// `target[..values.len()] = values`.
    pub(super) fn write<T: DeviceRepr>(
        &self,
        op: &'static str,
        target: &mut CudaSlice<T>,
        values: &[T],
    ) -> Result<()> {
        let range = window(op, "target", target.len(), 0, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        self.stream(op)?
            .memcpy_htod(values, &mut target.slice_mut(range))
            .map_err(|error| failed(op, error))
    }

    /// `target[offset..offset + values.len()]`, each value rounded to the nearest bf16.
    pub(super) fn write_act(&self, target: &mut CudaAct, offset: usize, values: &[f32]) -> Result<()> {
        let range = window("write_act", "target", target.len(), offset, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        let mut part = target.slice_mut(range);
        self.stream("write_act")?
            .memcpy_htod(&rounded, &mut part)
            .map_err(|error| failed("write_act", error))
    }

    /// `target[..] = 0`.
    pub fn zero_f32(&self, target: &mut CudaF32) -> Result<()> {
        self.stream("zero_f32")?
            .memset_zeros(target)
            .map_err(|error| failed("zero_f32", error))
    }

    /// `target[..len] = 0`.
    pub(super) fn zero_part<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        target: &mut CudaSlice<T>,
        len: usize,
    ) -> Result<()> {
        let range = window("zero", "target", target.len(), 0, len)?;
        if len == 0 {
            return Ok(());
        }
        self.stream("zero")?
            .memset_zeros(&mut target.slice_mut(range))
            .map_err(|error| failed("zero", error))
    }

    /// `target[..len] = 0`.
    pub fn zero_act(&self, target: &mut CudaAct, len: usize) -> Result<()> {
        self.zero_part(target, len)
    }

    /// `target[..len] = source[..len]`.
    pub fn copy_act(&self, target: &mut CudaAct, source: &CudaAct, len: usize) -> Result<()> {
        let from = window("copy_act", "source", source.len(), 0, len)?;
        let to = window("copy_act", "target", target.len(), 0, len)?;
        if len == 0 {
            return Ok(());
        }
        let mut part = target.slice_mut(to);
        self.stream("copy_act")?
            .memcpy_dtod(&source.slice(from), &mut part)
            .map_err(|error| failed("copy_act", error))
    }

    /// Waits, then copies `source[offset..offset + out.len()]`.
    pub fn read_f32(&self, source: &CudaF32, offset: usize, out: &mut [f32]) -> Result<()> {
        let range = window("read_f32", "source", source.len(), offset, out.len())?;
        self.read("read_f32", source, range, out)
    }

    /// Waits, then converts `source[offset..offset + out.len()]`.
    pub fn read_act(&self, source: &CudaAct, offset: usize, out: &mut [f32]) -> Result<()> {
        let range = window("read_act", "source", source.len(), offset, out.len())?;
        let mut values = vec![bf16::ZERO; out.len()];
        self.read("read_act", source, range, &mut values)?;
        for (out, value) in out.iter_mut().zip(values) {
            *out = value.to_f32();
        }
        Ok(())
    }

    pub(super) fn read<T: DeviceRepr>(
        &self,
        op: &'static str,
        source: &CudaSlice<T>,
        range: std::ops::Range<usize>,
        out: &mut [T],
    ) -> Result<()> {
        if !out.is_empty() {
            self.stream(op)?
                .memcpy_dtoh(&source.slice(range), out)
                .map_err(|error| failed(op, error))?;
        }
        self.stream(op)?.synchronize().map_err(|error| failed(op, error))
    }

    /// `len` zeros that kernels index with, or words of codes.
    pub(super) fn alloc_indices(&self, len: usize) -> Result<CudaIndices> {
        self.zeros(len)
    }

    /// `len` zeros of any kind.
    pub(super) fn alloc_bytes(&self, len: usize) -> Result<CudaSlice<u8>> {
        self.zeros(len)
    }

    /// Overwrites the beginning of `target`.
    pub(super) fn write_bytes(
        &self,
        op: &'static str,
        target: &mut CudaSlice<u8>,
        values: &[u8],
    ) -> Result<()> {
        let range = window(op, "target", target.len(), 0, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        let mut part = target.slice_mut(range);
        self.stream(op)?
            .memcpy_htod(values, &mut part)
            .map_err(|error| failed(op, error))
    }
}
