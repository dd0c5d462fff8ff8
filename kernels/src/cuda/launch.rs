//! Launches.
//!
//! Invariant: the only place that launches; a caller has checked the shapes, and a grid of no blocks is no launch. What a
//! kernel is given is all in its [`Call`].
#![expect(
    unsafe_code,
    reason = "nothing but the kernel's own source says what its parameters are"
)]

use std::ffi::c_void;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, result};

use super::{Cuda, DeviceError, Kernel};
use crate::error::{Error, Result};

/// Elements of a 16-byte access of bf16.
pub(super) const VECTOR: usize = 8;

/// How many threads work on a row of `width` elements that is read in vectors (or singly): as few warps as give each
/// thread one access, at most `threads_max`.
pub(super) fn row_threads(width: usize, threads_max: u32) -> u32 {
    let per_thread = if width.is_multiple_of(VECTOR) { VECTOR } else { 1 };
    let n_threads = width.div_ceil(per_thread).next_multiple_of(32);
    n_threads.clamp(32, threads_max as usize) as u32
}

/// Blocks of 256 threads that cover `len` elements, `per_thread` each.
pub(super) fn covering(op: &'static str, len: usize, per_thread: usize) -> Result<(u32, u32)> {
    let n_blocks = len.div_ceil(per_thread).div_ceil(256);
    let n_blocks = i32::try_from(n_blocks).map_err(|_| Error::Overflow { op, what: "launch" })?;
    Ok((n_blocks as u32, 256))
}

/// A kernel with everything that its launch is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    kernel: Kernel,
    grid: (u32, u32),
    n_threads: u32,
    /// Shared memory beside the kernel's own.
    shared_bytes: u32,
    /// The parameters' bytes, each from a word of its own on.
    words: Vec<u64>,
    /// The words at which parameters begin.
    starts: Vec<usize>,
}

/// Room that is set aside: a product with an NF4 weight and pairs has most, of which none is longer than a word.
const N_PARAMETERS: usize = 15;

/// A launch whose parameters are being gathered; its buffers are held until it runs.
pub(super) struct Launch<'a> {
    op: &'static str,
    cuda: &'a Cuda,
    call: Call,
}

/// What a kernel can be given.
pub(super) trait Parameter {
    /// Appends the bytes that the kernel sees.
    fn append(self, stream: &CudaStream, words: &mut Vec<u64>);
}

/// What a kernel is given as it is.
///
/// # Safety
///
/// The type has the kernel's own layout, and no byte of it is a gap.
pub(super) unsafe trait Value: Copy {}

// SAFETY: numbers.
unsafe impl Value for f32 {}
// SAFETY: as above.
unsafe impl Value for i32 {}
// SAFETY: as above.
unsafe impl Value for u64 {}

impl<T: Value> Parameter for &T {
    fn append(self, _stream: &CudaStream, words: &mut Vec<u64>) {
        let first = words.len();
        words.resize(first + size_of::<T>().div_ceil(size_of::<u64>()), 0);
        let to: *mut u64 = words[first..].as_mut_ptr();
        // SAFETY: all bytes of a value are set, and there are words enough for them.
        unsafe {
            std::ptr::copy_nonoverlapping(std::ptr::from_ref(self).cast::<u8>(), to.cast(), size_of::<T>())
        };
    }
}

impl<T> Parameter for &CudaSlice<T> {
    fn append(self, stream: &CudaStream, words: &mut Vec<u64>) {
        words.push(self.device_ptr(stream).0);
    }
}

impl<T> Parameter for &mut CudaSlice<T> {
    fn append(self, stream: &CudaStream, words: &mut Vec<u64>) {
        words.push(self.device_ptr_mut(stream).0);
    }
}

impl<T> Parameter for &CudaView<'_, T> {
    fn append(self, stream: &CudaStream, words: &mut Vec<u64>) {
        words.push(self.device_ptr(stream).0);
    }
}

impl<T> Parameter for &mut CudaViewMut<'_, T> {
    fn append(self, stream: &CudaStream, words: &mut Vec<u64>) {
        words.push(self.device_ptr_mut(stream).0);
    }
}

impl Cuda {
    /// `n_blocks` blocks of `n_threads` threads.
    pub(super) fn launch(
        &self,
        op: &'static str,
        kernel: Kernel,
        (n_blocks, n_threads): (u32, u32),
    ) -> Launch<'_> {
        self.launch_grid(op, kernel, (n_blocks, 1), n_threads)
    }

    /// Blocks along two axes.
    pub(super) fn launch_grid(
        &self,
        op: &'static str,
        kernel: Kernel,
        grid: (u32, u32),
        n_threads: u32,
    ) -> Launch<'_> {
        let call = Call {
            kernel,
            grid,
            n_threads,
            shared_bytes: kernel.dynamic_shared_bytes(),
            words: Vec::with_capacity(N_PARAMETERS),
            starts: Vec::with_capacity(N_PARAMETERS),
        };
        Launch { op, cuda: self, call }
    }

    /// Gives a launch to the driver.
    ///
    /// # Safety
    ///
    /// As of [`Launch::run`], whose call it is.
    pub(super) unsafe fn submit(&self, op: &'static str, call: &Call) -> Result<()> {
        let (x, y) = call.grid;
        let mut parameters: Vec<*mut c_void> = call
            .starts
            .iter()
            .map(|&start| call.words[start..].as_ptr().cast_mut().cast())
            .collect();
        let function = self.function(call.kernel);
        let function = function
            .map_err(|source| Error::Device { op, source })?
            .cu_function();
        let (grid, block) = ((x, y, 1), (call.n_threads, 1, 1));
        let launched = self.stream.context().bind_to_thread().and_then(|()| {
            // SAFETY: the caller vouches for parameters and shapes; one stream orders all work.
            unsafe {
                result::launch_kernel(
                    function,
                    grid,
                    block,
                    call.shared_bytes,
                    self.stream.cu_stream(),
                    &mut parameters,
                )
            }
        });
        launched.map_err(|error| Error::Device {
            op,
            source: DeviceError::driver("launching", error),
        })
    }
}

impl<'a> Launch<'a> {
    /// The next parameter: a buffer or a value.
    pub(super) fn with<T: Parameter + 'a>(mut self, parameter: T) -> Self {
        self.call.starts.push(self.call.words.len());
        parameter.append(&self.cuda.stream, &mut self.call.words);
        self
    }

    /// Enqueues it; in a step that is recorded, notes it.
    ///
    /// # Safety
    ///
    /// The parameters are the kernel's in number, order and type, and its reads and writes stay within the buffers.
    pub(super) unsafe fn run(self) -> Result<()> {
        let Self { op, cuda, call } = self;
        let (x, y) = call.grid;
        if x == 0 || y == 0 {
            return Ok(());
        }
        match &cuda.recorder {
            Some(recorder) => {
                recorder.push(call);
                Ok(())
            }
            // SAFETY: the caller vouches for it.
            None => unsafe { cuda.submit(op, &call) },
        }
    }
}

/// AdamW's factors as the kernel takes them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamwFactors {
    pub(super) gradient_scale: f32,
    pub(super) decay: f32,
    pub(super) first_rest: f32,
    pub(super) second_decay: f32,
    pub(super) second_rest: f32,
    pub(super) step_size: f32,
    pub(super) second_root: f32,
    pub(super) epsilon: f32,
}

/// What attention's kernels need beside their tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionSizes {
    pub(super) scale: f32,
    pub(super) scale_log2: f32,
    pub(super) n_heads: i32,
    pub(super) n_kv_heads: i32,
    /// 0: none.
    pub(super) window: i32,
}

// SAFETY: two floats and three integers in the order of the kernel's structure.
unsafe impl Value for AttentionSizes {}

/// What paged attention's kernels need beside their tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PagedSizes {
    pub(super) scale_log2: f32,
    pub(super) n_heads: i32,
    pub(super) n_kv_heads: i32,
    pub(super) page_len: i32,
    /// 0: none.
    pub(super) window: i32,
}

// SAFETY: a float and four integers in the order of the kernel's structure.
unsafe impl Value for PagedSizes {}

/// Which elements of an input are kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct DropoutMask {
    pub(super) key: u64,
    /// 0: all are kept.
    pub(super) rate: f32,
    /// `1 / (1 - rate)`.
    pub(super) factor: f32,
}

// SAFETY: an integer of 64 bits and two floats in the order of the kernel's structure, without a gap.
unsafe impl Value for DropoutMask {}

// SAFETY: eight floats in the order of the kernel's structure.
unsafe impl Value for AdamwFactors {}
