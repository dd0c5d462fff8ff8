//! Hopper's own kernels on the card that is being opened: each makes one small product beside the kernels for every card.
//!
//! Invariant: a card opens with them only if both products were, just now, the others' within what rounding allows; else
//! they are left out with the reason, and the card opens all the same.

use super::{Cuda, CudaWeight, DeviceError};
use crate::backend::{LinearForward, Lora, LoraForward, LoraSlot};
use crate::error::{Error, Result};
use crate::nf4::{DoubleQuant, Nf4Matrix};
use crate::weight::HostWeight;

/// Rows: no whole block, and more than those that the kernels for few rows make.
const M: usize = 70;
/// Rows of W: more than a block of Hopper's forward has, and the contraction of its backward ends within a step.
const N: usize = 136;
/// Columns of W: an odd number of steps of the forward, and a block and a half of the backward.
const K: usize = 192;
/// Ranks of the pair: no whole step.
const RANK: usize = 5;
const SLOT: LoraSlot = LoraSlot {
    a_offset: 0,
    b_offset: RANK * K,
    rank: RANK,
    n_in: K,
    n_out: N,
    scale: 0.5,
};

/// The largest part of a number that rounding it to bf16 takes away, half a unit of 8 bits, and a 50th of it for what is
/// far smaller: f32 sums in another order, and what pairs and scales lose as two bf16 each.
const ROUNDING: f32 = 1.02 / 256.0;

/// What sums of f32 in another order differ by, as a part of the sum of their terms' absolute values: at most some 200 terms
/// here, and a tensor core drops what is below 2^-23 of the largest.
const SUMS: f32 = 256.0 / (1 << 23) as f32;

/// The card with Hopper's kernels, or without them. Fails where the kernels for every card do, where there is no memory,
/// and where a card that was lost does not open again.
pub(super) fn checked(cuda: Cuda) -> Result<Cuda, DeviceError> {
    let operands = Operands::new().map_err(device_error)?;
    let baseline = cuda.share().without_hopper("only to compare with");
    let expected = operands.products(&baseline).map_err(device_error)?;
    drop(baseline);
    let reason = match operands.products(&cuda) {
        Ok(got) => operands.first_difference(&expected, &got),
        Err(error) => match device_error(error) {
            full @ DeviceError::OutOfMemory { .. } => return Err(full),
            lost @ DeviceError::Lost { .. } => {
                let ordinal = cuda.info.ordinal;
                drop(cuda); // the last who holds the context, so that there can be another
                let reason = format!("they bring the device down: {lost}");
                return Ok(Cuda::open_unchecked(ordinal)?.without_hopper(&reason));
            }
            error => Some(format!("they do not run: {error}")),
        },
    };
    Ok(match reason {
        None => cuda,
        Some(reason) => cuda.without_hopper(&reason),
    })
}

fn device_error(error: Error) -> DeviceError {
    match error {
        Error::Device { source, .. } => source,
        error => DeviceError::Driver {
            doing: "checking Hopper's kernels",
            reason: error.to_string(),
        },
    }
}

/// `y = x · Wᵀ` with the pair beside it, and `dx` with `dy · W` added.
type Products = [Vec<f32>; 2];

struct Operands {
    /// All codes, and scales that are quantized too.
    weight: Nf4Matrix,
    params: Vec<f32>,
    /// `[M, K]`.
    x: Vec<f32>,
    /// `[M, N]`.
    dy: Vec<f32>,
    /// `[M, K]`, what `dx` was before.
    dx: Vec<f32>,
}

/// `[M, width]`, exact in bf16. About one in eight is not 0, others in each row: of few terms each shows beside the rounding
/// of all.
fn activations(width: usize) -> Vec<f32> {
    let value = |(row, column): (usize, usize)| match (row * 61 + column * 37 + row * column) % 97 {
        part @ 0..12 => (part as f32 - 5.5) / 4.0,
        _ => 0.0,
    };
    (0..M * width)
        .map(|index| value((index / width, index % width)))
        .collect()
}

impl Operands {
    fn new() -> Result<Self> {
        let value = |index: usize| {
            let magnitude = (1 + index / 64 % 7) as f32 / 128.0;
            ((index * 37 % 101) as f32 - 50.0) * magnitude
        };
        let values: Vec<f32> = (0..N * K).map(value).collect();
        let param = |index: usize| (index * 29 % 89) as f32 / 30.0 - 1.5;
        Ok(Self {
            weight: Nf4Matrix::quantize(N, K, &values, DoubleQuant::Yes)?,
            params: (0..RANK * (K + N)).map(param).collect(),
            x: activations(K),
            dy: activations(N),
            dx: activations(K).iter().rev().copied().collect(),
        })
    }

    /// By Hopper's kernels where `cuda` has them.
    fn products(&self, cuda: &Cuda) -> Result<Products> {
        let weight: CudaWeight = cuda.load_weight(HostWeight::Nf4(self.weight.clone()))?;
        let (mut y, mut h) = (cuda.alloc_act(M * N)?, cuda.alloc_f32(M * RANK)?);
        let linear = LinearForward {
            y: &mut y,
            weight: &weight,
            lora: Some(Lora::One(LoraForward {
                h: &mut h,
                params: &cuda.upload_f32(&self.params)?,
                slot: SLOT,
                dropout: None,
            })),
        };
        cuda.linears_of_documents(&cuda.upload_act(&self.x)?, &mut [linear], M)?;
        let mut dx = cuda.upload_act(&self.dx)?;
        cuda.matmul_backward(&mut dx, &cuda.upload_act(&self.dy)?, &weight, M)?;
        let mut products = [vec![0.0; M * N], vec![0.0; M * K]];
        cuda.read_act(&y, 0, &mut products[0])?;
        cuda.read_act(&dx, 0, &mut products[1])?;
        Ok(products)
    }

    /// Where `got` is further from `expected` than rounding explains, if anywhere. Both round each result once. In the forward
    /// Hopper has also rounded each element of W with its scale, where the others scale the sum; in the backward all of them
    /// multiply with the same W.
    fn first_difference(&self, expected: &Products, got: &Products) -> Option<String> {
        let w: Vec<f32> = self.weight.dequantize();
        let names = ["forward", "backward"];
        let of_terms = [ROUNDING, SUMS];
        let terms = [self.terms_of_y(&w), self.terms_of_dx(&w)];
        for (product, terms) in terms.iter().enumerate() {
            let pairs = expected[product].iter().zip(&got[product]).zip(terms);
            for (index, ((&expected, &got), &terms)) in pairs.enumerate() {
                let allowed = of_terms[product] * terms + ROUNDING * (expected.abs() + got.abs());
                let difference = (got - expected).abs();
                if !difference.is_finite() || difference > allowed {
                    return Some(format!(
                        "element {index} of a {} product is {got:e}, by the kernels for every card {expected:e}, and may be \
                         {allowed:e} off",
                        names[product]
                    ));
                }
            }
        }
        None
    }

    /// For each element of y the sum of its terms' absolute values.
    fn terms_of_y(&self, w: &[f32]) -> Vec<f32> {
        let (a, b) = self.params.split_at(SLOT.b_offset);
        let mut terms = Vec::with_capacity(M * N);
        for x in self.x.chunks_exact(K) {
            let h: Vec<f32> = a.chunks_exact(K).map(|a| SLOT.scale * dot(x, a)).collect();
            let of_row = w.chunks_exact(K).zip(b.chunks_exact(RANK));
            terms.extend(of_row.map(|(w, b)| dot_of_magnitudes(x, w) + dot_of_magnitudes(&h, b)));
        }
        terms
    }

    /// The same of dx, but for what was there before.
    fn terms_of_dx(&self, w: &[f32]) -> Vec<f32> {
        let mut terms = vec![0.0; M * K];
        for (terms, dy) in terms.chunks_exact_mut(K).zip(self.dy.chunks_exact(N)) {
            for (&dy, w) in dy.iter().zip(w.chunks_exact(K)).filter(|(dy, _)| **dy != 0.0) {
                let pairs = terms.iter_mut().zip(w);
                pairs.for_each(|(term, w)| *term += (dy * w).abs());
            }
        }
        terms
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_of_magnitudes(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn operands_are_what_the_check_takes_them_for() {
        let operands = Operands::new().unwrap();
        for activations in [&operands.x, &operands.dy, &operands.dx] {
            assert!(
                activations
                    .iter()
                    .all(|&value| bf16::from_f32(value).to_f32() == value)
            );
            let n_terms = activations.iter().filter(|value| **value != 0.0).count();
            assert!((8..10).contains(&(activations.len() / n_terms).max(8)));
        }
        let mut n_by_code = [0; 16];
        for byte in operands.weight.codes() {
            n_by_code[usize::from(byte & 15)] += 1;
            n_by_code[usize::from(byte >> 4)] += 1;
        }
        assert!(n_by_code.iter().all(|n| *n > 0), "{n_by_code:?}");
    }

    #[test]
    fn what_rounding_does_not_explain_is_a_difference() {
        let operands = Operands::new().unwrap();
        let expected = [vec![1.0; M * N], vec![1.0; M * K]];
        assert_eq!(operands.first_difference(&expected, &expected), None);
        for product in 0..2 {
            for wrong in [f32::NAN, f32::INFINITY, 9.0] {
                let mut got = expected.clone();
                got[product][7] = wrong;
                let said = operands.first_difference(&expected, &got).unwrap();
                assert!(said.contains("element 7 of a"), "{said}");
            }
            // a unit of bf16
            let mut got = expected.clone();
            got[product][7] = 1.0 + 1.0 / 128.0;
            assert_eq!(operands.first_difference(&expected, &got), None);
        }
    }
}
