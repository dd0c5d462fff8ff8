//! The CPU backend: the specification of every operation.
//!
//! Invariant: see the crate: each element is one fixed chain of operations, so how the work is cut into tasks, and
//! what runs it, shows in the time it takes and nowhere else.

mod adamw;
mod attention;
mod attention_paged;
mod backend;
mod check;
mod cross_entropy;
mod elementwise;
mod embed;
mod gated;
mod gemm;
mod kv_cache;
mod linear;
mod lora;
mod math;
mod nf4_tiles;
mod peak;
mod rms_norm;
mod rope;
mod scratch;
pub(crate) mod simd;
mod weight;

#[cfg(test)]
mod tests;

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result};
pub use kv_cache::CpuKvCache;
use scratch::{Scratch, ScratchPool};
pub use simd::Isa;
pub use weight::CpuWeight;

/// Work, in multiply-adds or elements touched, that is done before another thread would have woken up.
const PARALLEL_WORK_MIN: usize = 1 << 14;

/// The CPU backend: threads, an instruction set and memory for intermediate values.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    isa: Isa,
    scratch: ScratchPool,
}

impl Cpu {
    /// A backend with `threads` threads, by default one for each core. Fails when they cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_isa(threads, Isa::detect())
    }

    /// A backend that uses `isa`: results are the same, so this serves to show just that.
    pub fn with_isa(threads: Option<usize>, isa: Isa) -> Result<Self> {
        let threads = threads.unwrap_or(0); // what rayon takes for "one for each core"
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|source| Error::Threads { threads, source })?;
        Ok(Self {
            pool,
            isa,
            scratch: ScratchPool::default(),
        })
    }

    /// Number of threads.
    pub fn n_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `run` on every item, on all threads when there is enough work.
    fn each<T: Send>(&self, items: Vec<T>, work: usize, run: impl Fn(T) + Send + Sync) {
        if items.len() < 2 || work < PARALLEL_WORK_MIN || self.n_threads() == 1 {
            items.into_iter().for_each(run);
        } else {
            self.pool
                .install(|| items.into_par_iter().with_max_len(1).for_each(run));
        }
    }

    /// Rows that make a task worth its scheduling, when there are `m` rows and each is `work` elements.
    fn rows_per_task(&self, m: usize, work: usize) -> usize {
        let smallest = (PARALLEL_WORK_MIN / 4).div_ceil(work.max(1));
        m.div_ceil(4 * self.n_threads()).max(smallest).max(1)
    }

    /// Memory for `len` intermediate values, whatever they are now.
    fn scratch(&self, len: usize) -> Scratch<'_> {
        self.scratch.take(len)
    }
}
