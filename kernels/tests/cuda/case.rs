//! A row of the table: an operation, its dimensions, and what came out on both backends.
//!
//! Invariant: both backends get the same numbers: activations are rounded to bf16 before either sees them.

use half::bf16;
use llamaduo_kernels::{Cpu, Cuda, Error};

/// How far a result may be from the CPU's: `absolute + relative * |expected|`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) absolute: f64,
    pub(crate) relative: f64,
}

/// The very bits.
pub(crate) const EXACT: Bound = Bound {
    absolute: 0.0,
    relative: 0.0,
};

/// f32 sums in another order, and approximate functions of 2 units in the last place.
pub(crate) const F32: Bound = Bound {
    absolute: 2e-6,
    relative: 4e-6,
};

/// Rounded once to bf16, whose unit is 2^-8 from 1 on: half of it, and a little where two sums straddle a tie.
pub(crate) const BF16: Bound = Bound {
    absolute: 2e-5,
    relative: 1.02 / 256.0,
};

/// One output of an operation.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) what: &'static str,
    pub(crate) expected: Vec<f32>,
    pub(crate) got: Vec<f32>,
    pub(crate) bound: Bound,
}

pub(crate) type Outputs = Result<Vec<Output>, Error>;

type Run = Box<dyn Fn(&Cpu, &Cuda) -> Outputs + Send + Sync>;

pub(crate) struct Case {
    pub(crate) name: String,
    run: Run,
}

impl Case {
    pub(crate) fn new(name: String, run: impl Fn(&Cpu, &Cuda) -> Outputs + Send + Sync + 'static) -> Self {
        Self {
            name,
            run: Box::new(run),
        }
    }

    /// Runs on both and returns the largest error as a part of its bound, or what is wrong.
    pub(crate) fn check(&self, cpu: &Cpu, cuda: &Cuda) -> Result<f64, String> {
        let outputs = (self.run)(cpu, cuda).map_err(|error| chain(&error))?;
        let mut worst = 0f64;
        for output in outputs {
            worst = worst.max(output.check()?);
        }
        Ok(worst)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

impl Output {
    fn check(&self) -> Result<f64, String> {
        assert_eq!(self.expected.len(), self.got.len(), "{}", self.what);
        let mut worst = 0f64;
        for (index, (&expected, &got)) in self.expected.iter().zip(&self.got).enumerate() {
            if expected.to_bits() == got.to_bits() {
                continue;
            }
            let [expected, got] = [expected, got].map(f64::from);
            let allowed = self.bound.absolute + self.bound.relative * expected.abs();
            let part = (got - expected).abs() / allowed;
            if part.is_nan() || part > 1.0 {
                return Err(format!(
                    "{}[{index}] is {got:e}, expected {expected:e} within {allowed:e}",
                    self.what
                ));
            }
            worst = worst.max(part);
        }
        Ok(worst)
    }
}

/// `len` numbers in (-2, 2), mostly small, the same for the same seed.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() + next()).collect()
}

/// The same, exact in bf16.
pub(crate) fn activations(seed: u64, len: usize) -> Vec<f32> {
    rounded(&numbers(seed, len))
}

/// Each value rounded to the nearest bf16.
pub(crate) fn rounded(values: &[f32]) -> Vec<f32> {
    let rounded = values.iter().map(|&value| bf16::from_f32(value).to_f32());
    rounded.collect()
}
