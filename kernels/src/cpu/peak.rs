//! A loop of nothing but fused multiply-adds: the rate that a product can come near to.
//!
//! Invariant: touches no memory.

use super::Cpu;
use super::simd::versions;

/// Independent chains: enough vectors in flight to hide the latency of each.
const CHAINS: usize = 192;

impl Cpu {
    /// Runs `n_steps` multiply-adds in each of 192 chains on every thread.
    pub fn multiply_add_loop(&self, n_steps: usize) -> f32 {
        self.pool.broadcast(|_| run(self.isa, n_steps)).into_iter().sum()
    }

    /// Floating-point operations of [`Cpu::multiply_add_loop`].
    pub fn multiply_add_flops(&self, n_steps: usize) -> f64 {
        2.0 * (CHAINS * n_steps * self.n_threads()) as f64
    }
}

versions! {
    fn run(n_steps: usize) -> f32 {
        let mut chains: [f32; CHAINS] = std::array::from_fn(|i| i as f32);
        for step in 0..n_steps {
            let (factor, term) = (0.5 + step as f32 * 1e-9, 1.0);
            for chain in &mut chains {
                *chain = chain.mul_add(factor, term);
            }
        }
        chains.iter().sum()
    }
}
