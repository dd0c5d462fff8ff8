//! What the tests of all operations share.

use crate::cpu::Isa;
use crate::golden::assert_same_bits;
use crate::random;
use crate::{Backend, Cpu, CpuWeight, LinearForward, Result};

/// Sizes at and beside the edges of blocks, tiles and lanes.
pub(super) const ODD_SIZES: [usize; 4] = [1, 31, 33, 257];

/// `len` numbers in [-1, 1).
pub(super) fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|i| 2.0 * random::uniform(random::key(&[seed]), i) - 1.0)
        .collect()
}

/// A backend for each instruction set and for one and three threads.
pub(super) fn backends() -> Vec<Cpu> {
    let sets = Isa::all().into_iter();
    sets.flat_map(|isa| [1, 3].map(|threads| Cpu::with_isa(Some(threads), isa).unwrap()))
        .collect()
}

pub(super) fn cpu() -> Cpu {
    Cpu::new(Some(2)).unwrap()
}

/// `y [M, N] = x · Wᵀ` of one weight alone.
pub(super) fn matmul(cpu: &Cpu, y: &mut Vec<f32>, x: &[f32], weight: &CpuWeight, m: usize) -> Result<()> {
    let linear = LinearForward {
        y,
        weight,
        lora: None,
    };
    cpu.linears(&x.to_vec(), &mut [linear], m)
}

/// The result of `run`, which must be the same on all backends.
#[track_caller]
pub(super) fn same_everywhere(run: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let results: Vec<Vec<f32>> = backends().iter().map(run).collect();
    for other in &results[1..] {
        assert_same_bits(other, &results[0]);
    }
    results.into_iter().next().unwrap()
}

/// Fails unless each value is within `bound` of the reference, relative to the largest reference.
#[track_caller]
pub(super) fn assert_close(got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    let largest = expected
        .iter()
        .fold(1e-6f64, |largest, value| largest.max(value.abs()));
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= bound * largest,
            "element {i}: {got} for {expected}, error {error:e}"
        );
    }
}

/// Compares a gradient with central differences of `loss` at `x`, at up to 60 elements.
#[track_caller]
pub(super) fn assert_gradient(x: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    const STEP: f32 = 1.0 / 128.0; // a power of two, so that x + STEP loses little
    assert_eq!(x.len(), gradient.len());
    let largest = gradient
        .iter()
        .fold(1e-2f64, |largest, value| largest.max(f64::from(value.abs())));
    for i in (0..x.len()).step_by(x.len().div_ceil(60)) {
        let at = |offset: f32| {
            let mut moved = x.to_vec();
            moved[i] += offset;
            (loss(&moved), f64::from(moved[i]))
        };
        let ((above, x_above), (below, x_below)) = (at(STEP), at(-STEP));
        let expected = (above - below) / (x_above - x_below);
        let error = (f64::from(gradient[i]) - expected).abs();
        assert!(
            error <= 2e-3 * largest,
            "element {i}: {} for {expected}, error {error:e}",
            gradient[i]
        );
    }
}

/// `sum of values * weights`: a loss whose gradient is `weights`.
pub(super) fn weighted_sum(values: &[f32], weights: &[f32]) -> f64 {
    values
        .iter()
        .zip(weights)
        .map(|(&value, &weight)| f64::from(value) * f64::from(weight))
        .sum()
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}
