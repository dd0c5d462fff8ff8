//! The table of all operations.
//!
//! Invariant: each has the odd sizes 1, 31, 33 and 257, and the head dimensions and settings that models have.

mod attention;
mod lora;
mod lora_by_row;
mod norms;
mod pointwise;
mod products;
mod sampling;
mod training;

use crate::case::Case;

/// Lengths at which vectors, warps and blocks end in the middle.
pub(crate) const LENGTHS: [usize; 6] = [1, 31, 33, 257, 2048, 2053];

pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    attention::add_to(&mut cases);
    lora::add_to(&mut cases);
    lora_by_row::add_to(&mut cases);
    norms::add_to(&mut cases);
    pointwise::add_to(&mut cases);
    products::add_to(&mut cases);
    sampling::add_to(&mut cases);
    training::add_to(&mut cases);
    cases
}
