//! Memory for intermediate values that outlives the operation, so that a step does not ask the system for it anew.
//!
//! Invariant: at most [`KEPT_MAX`] buffers wait for use.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use bytemuck::{Pod, Zeroable};

/// Buffers kept: several for each thread of a large machine.
const KEPT_MAX: usize = 256;

/// A cache line. Buffers are made of them, since a vector that lies across two lines is loaded and stored slowly.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE_LEN]);

const LINE_LEN: usize = 16;

#[derive(Debug, Default)]
pub(super) struct ScratchPool {
    free: Mutex<Vec<Vec<Line>>>,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    pool: &'a ScratchPool,
    lines: Vec<Line>,
    len: usize,
}

impl ScratchPool {
    /// A buffer of `len` floats with any content: the smallest free one that is large enough, or the largest.
    pub(super) fn take(&self, len: usize) -> Scratch<'_> {
        let n_lines = len.div_ceil(LINE_LEN);
        let mut lines = {
            // a poisoned list is still a list of free buffers
            let mut free = self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let fit = (0..free.len()).min_by_key(|&i| {
                let held = free[i].len();
                if held >= n_lines {
                    (0, held)
                } else {
                    (1, usize::MAX - held)
                }
            });
            fit.map(|i| free.swap_remove(i)).unwrap_or_default()
        };
        if lines.len() < n_lines {
            lines.resize(n_lines, Line::zeroed());
        }
        Scratch {
            pool: self,
            lines,
            len,
        }
    }
}

impl Deref for Scratch<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let mut free = self
            .pool
            .free
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if free.len() < KEPT_MAX {
            free.push(std::mem::take(&mut self.lines));
        }
    }
}
