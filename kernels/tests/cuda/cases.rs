//! The table of all operations.
//!
//! Invariant: each has the odd sizes 1, 31, 33 and 257, and the head dimensions and settings that models have.

mod attention;
mod documents;
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

/// Those for which Hopper has kernels of its own.
pub(crate) fn of_documents() -> Vec<Case> {
    let mut cases = Vec::new();
    documents::add_to(&mut cases);
    lora_by_row::add_documents_to(&mut cases);
    cases
}

/// Those and all others with weights.
pub(crate) fn of_products() -> Vec<Case> {
    let mut cases = of_documents();
    products::add_to(&mut cases);
    cases
}

pub(crate) fn all() -> Vec<Case> {
    let mut cases = of_products();
    attention::add_to(&mut cases);
    lora::add_to(&mut cases);
    lora_by_row::add_to(&mut cases);
    norms::add_to(&mut cases);
    pointwise::add_to(&mut cases);
    sampling::add_to(&mut cases);
    training::add_to(&mut cases);
    cases
}
