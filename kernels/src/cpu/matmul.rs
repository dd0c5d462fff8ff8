//! Products with a frozen weight `[N, K]`: `y = x · Wᵀ`, `dx += dy · W` and the logits.
//!
//! Invariant: forward and backward go through the one driver in [`gemm`](super::gemm).

use super::gemm::{Product, Right, Start, View};
use super::{Cpu, CpuWeight, check};
use crate::error::Result;

/// `y [M, N] = x [M, K] · Wᵀ`.
pub(super) fn forward(
    cpu: &Cpu,
    op: &'static str,
    y: &mut [f32],
    x: &[f32],
    weight: &CpuWeight,
    m: usize,
) -> Result<()> {
    let (n, k) = weight.shape();
    let y = check::part_mut(op, "y", y, &[m, n])?;
    let x = check::part(op, "x", x, &[m, k])?;
    let product = Product {
        m,
        n,
        k,
        a: View::rows(x, k),
        b: Right::Transposed(weight),
    };
    cpu.multiply(y, product, Start::Zero);
    Ok(())
}

/// `dx [M, K] += dy [M, N] · W`.
pub(super) fn backward(cpu: &Cpu, dx: &mut [f32], dy: &[f32], weight: &CpuWeight, m: usize) -> Result<()> {
    let (n, k) = weight.shape();
    let dx = check::part_mut("matmul_backward", "dx", dx, &[m, k])?;
    let dy = check::part("matmul_backward", "dy", dy, &[m, n])?;
    let product = Product {
        m,
        n: k,
        k: n,
        a: View::rows(dy, n),
        b: Right::Straight(weight),
    };
    cpu.multiply(dx, product, Start::Current);
    Ok(())
}
