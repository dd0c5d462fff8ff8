//! Memory for intermediate values that outlives the operation, so that a step does not ask the system for it anew.
//!
//! Invariant: at most [`KEPT_MAX`] buffers wait for use.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Buffers kept: several for each thread of a large machine.
const KEPT_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct ScratchPool {
    free: Mutex<Vec<Vec<f32>>>,
}

/// A buffer that goes back to its pool.
#[derive(Debug)]
pub(super) struct Scratch<'a> {
    pool: &'a ScratchPool,
    values: Vec<f32>,
    len: usize,
}

impl ScratchPool {
    /// A buffer of `len` floats with any content: the smallest free one that is large enough, or the largest.
    pub(super) fn take(&self, len: usize) -> Scratch<'_> {
        let mut values = {
            // a poisoned list is still a list of free buffers
            let mut free = self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let fit = (0..free.len()).min_by_key(|&i| {
                let held = free[i].len();
                if held >= len {
                    (0, held)
                } else {
                    (1, usize::MAX - held)
                }
            });
            fit.map(|i| free.swap_remove(i)).unwrap_or_default()
        };
        if values.len() < len {
            values.resize(len, 0.0);
        }
        Scratch {
            pool: self,
            values,
            len,
        }
    }
}

impl Deref for Scratch<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
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
            free.push(std::mem::take(&mut self.values));
        }
    }
}
