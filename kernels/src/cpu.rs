//! The CPU backend: the specification of every operation.
//!
//! Invariant: see the crate: each element is one fixed chain of operations, so how the work is cut into tasks, and
//! what runs it, shows in the time it takes and nowhere else.

mod adamw;
mod attention;
mod attention_paged;
mod backend;
mod check;
mod choose;
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
mod q8_0_tiles;
mod rms_norm;
mod rope;
mod scratch;
pub(crate) mod simd;
mod team;
mod weight;

#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result};
pub use choose::CpuChoices;
pub use kv_cache::CpuKvCache;
use scratch::{Scratch, ScratchPool};
use simd::Bf16;
pub use simd::Isa;
use team::Team;
pub use weight::CpuWeight;

/// Work, in multiply-adds or elements touched, that is done before another thread would have woken up.
const PARALLEL_WORK_MIN: usize = 1 << 14;

/// Parts that a thread's share of many items is cut into: enough that none waits long for another, few enough that
/// handing them out costs little.
const PARTS_PER_THREAD: usize = 16;

/// How matrix products compute; everything else is float32, and so are the sums of products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Exact operands: the specification.
    #[default]
    F32,
    /// Operands rounded to bf16: faster where the machine multiplies bf16 (AVX-512 BF16). Elsewhere the same
    /// operands are multiplied as floats, slower than F32 where rows are few.
    Bf16,
    /// Forward products with NF4 and Q8_0 weights in integers: inputs rounded to 14 bits of the largest of each 64, NF4's
    /// levels to 13 bits. For reading and answering; what is trained is multiplied as F32.
    Int16,
}

impl Compute {
    /// What training computes with: gradients are those of exact products.
    pub fn for_training(self) -> Self {
        match self {
            Self::Int16 => Self::F32,
            Self::F32 | Self::Bf16 => self,
        }
    }
}

impl std::str::FromStr for Compute {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int16" => Ok(Self::Int16),
            _ => Err(Error::Setting {
                op: "products",
                what: "compute",
                expected: "f32, bf16 or int16",
            }),
        }
    }
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
        })
    }
}

/// The operands of products, as [`Compute`] asks and the machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operands {
    F32,
    /// Floats rounded to bf16.
    Rounded,
    /// Pairs of bf16.
    Pairs(Bf16),
    /// Integers where a weight has them, else floats.
    Integers,
}

/// The CPU backend: threads, an instruction set and memory for intermediate values.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    isa: Isa,
    operands: Operands,
    scratch: ScratchPool,
    team: Team,
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
        let scratch = ScratchPool::new(pool.current_num_threads());
        Ok(Self {
            pool,
            isa,
            operands: Operands::F32,
            scratch,
            team: Team::default(),
        })
    }

    /// The same with its products computed as `compute` says.
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.operands = match compute {
            Compute::F32 => Operands::F32,
            Compute::Bf16 => self.isa.bf16().map_or(Operands::Rounded, Operands::Pairs),
            Compute::Int16 => Operands::Integers,
        };
        self
    }

    /// Number of threads.
    pub fn n_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `run` on every item, on all threads when there is enough work.
    fn each<T: Send>(&self, items: Vec<T>, work: usize, run: impl Fn(T) + Send + Sync) {
        if items.len() < 2 || work < PARALLEL_WORK_MIN || self.n_threads() == 1 {
            return items.into_iter().for_each(run);
        }
        // an item is taken once, so nobody waits at its lock
        let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let task = |index: usize| {
            let item = items[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            item.into_iter().for_each(&run);
        };
        if !self.team.run(items.len(), &task) {
            let len_max = items.len() / (PARTS_PER_THREAD * self.n_threads());
            let indices = (0..items.len()).into_par_iter().with_max_len(len_max.max(1));
            self.pool.install(|| indices.for_each(task));
        }
    }

    /// Rows that make a task worth its scheduling, when there are `m` rows and each is `work` elements.
    fn rows_per_task(&self, m: usize, work: usize) -> usize {
        let smallest = (PARALLEL_WORK_MIN / 4).div_ceil(work.max(1));
        m.div_ceil(4 * self.n_threads()).max(smallest).max(1)
    }

    /// Whether keys and values are cached as integers.
    fn holds_integers(&self) -> bool {
        self.operands == Operands::Integers
    }

    /// Memory for `len` intermediate values, whatever they are now.
    fn scratch(&self, len: usize) -> Scratch<'_> {
        self.scratch.take(len)
    }
}
