//! A loop of nothing but fused multiply-adds: the rate that a product can come near to.
//!
//! Invariant: touches no memory.

use super::Cpu;
use super::simd::{Set, versions};

impl Cpu {
    /// Runs `n_steps` multiply-adds in each of some chains on every thread.
    pub fn multiply_add_loop(&self, n_steps: usize) -> f32 {
        let run = |_: rayon::BroadcastContext<'_>| match self.isa.set() {
            Set::Avx512 => wide(self.isa, n_steps),
            Set::Avx2 | Set::Portable => narrow(self.isa, n_steps),
        };
        self.pool.broadcast(run).into_iter().sum()
    }

    /// Floating-point operations of [`Cpu::multiply_add_loop`].
    pub fn multiply_add_flops(&self, n_steps: usize) -> f64 {
        let n_chains = match self.isa.set() {
            Set::Avx512 => WIDE,
            Set::Avx2 | Set::Portable => NARROW,
        };
        2.0 * (n_chains * n_steps * self.n_threads()) as f64
    }
}

/// Chains that AVX-512's registers hold: enough vectors in flight to hide the latency of each.
const WIDE: usize = 192;

/// The same with AVX2's, which are half as many and half as wide.
const NARROW: usize = 96;

versions! {
    fn wide(n_steps: usize) -> f32 {
        chains::<WIDE>(n_steps)
    }
}

versions! {
    fn narrow(n_steps: usize) -> f32 {
        chains::<NARROW>(n_steps)
    }
}

#[inline(always)]
fn chains<const N: usize>(n_steps: usize) -> f32 {
    let mut chains: [f32; N] = std::array::from_fn(|i| i as f32);
    for _ in 0..n_steps {
        for chain in &mut chains {
            *chain = chain.mul_add(0.5, 1.0);
        }
    }
    chains.iter().sum()
}
