//! Memory for intermediate values that outlives the operation, so that a step does not ask the system for it anew.
//!
//! Invariant: at most [`KEPT_MAX`] buffers wait for use in each thread's list; a thread takes from its own, so that none
//! waits for another.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

/// Buffers kept for a thread: more than an operation holds at once.
const KEPT_MAX: usize = 32;

/// A cache line. Buffers are made of them, since a vector that lies across two lines is loaded and stored slowly.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE_LEN]);

const LINE_LEN: usize = 16;

#[derive(Debug)]
pub(super) struct ScratchPool {
    /// One list for each thread of the pool, and one for all others.
    free: Vec<Mutex<Vec<Vec<Line>>>>,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    pool: &'a ScratchPool,
    lines: Vec<Line>,
    len: usize,
}

impl ScratchPool {
    pub(super) fn new(n_threads: usize) -> Self {
        Self {
            free: (0..=n_threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// The list of this thread.
    fn list(&self) -> Option<MutexGuard<'_, Vec<Vec<Line>>>> {
        let others = self.free.len() - 1;
        let index = rayon::current_thread_index().map_or(others, |index| index.min(others));
        // a poisoned list is still a list of free buffers
        Some(
            self.free
                .get(index)?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// A buffer of `len` floats with any content: the smallest free one that is large enough, or the largest.
    pub(super) fn take(&self, len: usize) -> Scratch<'_> {
        let n_lines = len.div_ceil(LINE_LEN);
        let take = |mut free: MutexGuard<'_, Vec<Vec<Line>>>| {
            let fit = (0..free.len()).min_by_key(|&i| {
                let held = free[i].len();
                if held >= n_lines {
                    (0, held)
                } else {
                    (1, usize::MAX - held)
                }
            });
            fit.map(|i| free.swap_remove(i))
        };
        let mut lines = self.list().and_then(take).unwrap_or_default();
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
        if let Some(mut free) = self.pool.list()
            && free.len() < KEPT_MAX
        {
            free.push(std::mem::take(&mut self.lines));
        }
    }
}
