//! Launches.
//!
//! Invariant: the only place that launches; a caller has checked the shapes, and a grid of no blocks is no launch.
#![expect(
    unsafe_code,
    reason = "nothing but the kernel's own source says what its parameters are"
)]

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};

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

/// A launch whose parameters are being gathered.
pub(super) struct Launch<'a> {
    op: &'static str,
    grid: (u32, u32),
    n_threads: u32,
    shared_bytes: u32,
    builder: cudarc::driver::LaunchArgs<'a>,
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
        Launch {
            op,
            grid,
            n_threads,
            shared_bytes: kernel.dynamic_shared_bytes(),
            builder: self.stream.launch_builder(self.function(kernel)),
        }
    }
}

impl<'a> Launch<'a> {
    /// The next parameter: a buffer or a value.
    pub(super) fn with<T>(mut self, parameter: T) -> Self
    where
        cudarc::driver::LaunchArgs<'a>: PushKernelArg<T>,
    {
        self.builder.arg(parameter);
        self
    }

    /// Enqueues it.
    ///
    /// # Safety
    ///
    /// The parameters are the kernel's in number, order and type, and its reads and writes stay within the buffers.
    pub(super) unsafe fn run(mut self) -> Result<()> {
        let (x, y) = self.grid;
        if x == 0 || y == 0 {
            return Ok(());
        }
        let config = LaunchConfig {
            grid_dim: (x, y, 1),
            block_dim: (self.n_threads, 1, 1),
            shared_mem_bytes: self.shared_bytes,
        };
        // SAFETY: the caller vouches for parameters and shapes; one stream orders all work.
        let launched = unsafe { self.builder.launch(config) };
        launched.map(|_| ()).map_err(|error| Error::Device {
            op: self.op,
            source: DeviceError::driver("launching", error),
        })
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
unsafe impl DeviceRepr for AttentionSizes {}

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
unsafe impl DeviceRepr for PagedSizes {}

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
unsafe impl DeviceRepr for DropoutMask {}

// SAFETY: eight floats in the order of the kernel's structure.
unsafe impl DeviceRepr for AdamwFactors {}
