//! The operands of linears: a frozen weight, and the LoRA pairs beside it.
//!
//! Invariant: where a pair's factors lie is said by offsets into a flat buffer, so that one buffer holds all of an adapter.

use super::Backend;

/// Dropout on a LoRA input: element `i` of the input is kept iff its counter-based random number says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, in `[0, 1)`; what is kept is scaled by `1 / (1 - rate)`.
    pub rate: f32,
    /// Key of the random stream: distinct for each (run seed, optimizer step, micro-batch, layer, linear).
    pub key: u64,
}

/// One LoRA pair inside the flat parameter buffer: `A [R, K]` at `a_offset`, `B [N, R]` at `b_offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSlot {
    /// First element of `A`.
    pub a_offset: usize,
    /// First element of `B`.
    pub b_offset: usize,
    /// Rank `R`.
    pub rank: usize,
    /// Input features `K`.
    pub n_in: usize,
    /// Output features `N`.
    pub n_out: usize,
    /// `alpha / R`.
    pub scale: f32,
}

/// One of the linears that read the same input: `y [M, N] = x [M, K] · Wᵀ`, and with a pair
/// `y += scale * (h [M, R] = drop(x) · Aᵀ) · Bᵀ`.
#[derive(Debug)]
pub struct LinearForward<'a, B: Backend> {
    /// `[M, N]`, overwritten.
    pub y: &'a mut B::Act,
    /// `W [N, K]`.
    pub weight: &'a B::Weight,
    /// What is beside the weight.
    pub lora: Option<Lora<'a, B>>,
}

/// LoRA beside a linear.
#[derive(Debug)]
pub enum Lora<'a, B: Backend> {
    /// One pair for all rows.
    One(LoraForward<'a, B>),
    /// For each row one of several pairs, or none.
    ByRow(LoraByRow<'a, B>),
}

/// The pairs that several adapters have beside one linear, and which of them each row goes through:
/// `y[i] += scale * (x[i] · Aᵀ) · Bᵀ` with `A [R, K]`, `B [N, R]` and `scale` of row `i`'s pair. A row has the very bits
/// that it has with [`Lora::One`] of its pair, or without any, whatever the other rows have. It costs least where rows
/// of the same pair follow one another.
#[derive(Debug)]
pub struct LoraByRow<'a, B: Backend> {
    /// Room for `[M, R]` with the largest R of the pairs; what is left in it has no meaning.
    pub h: &'a mut B::F32,
    /// The flat buffer of all the adapters.
    pub params: &'a B::F32,
    /// Where in it the pairs are.
    pub pairs: &'a B::LoraPairs,
    /// `[M]`: which of the pairs a row has; [`NO_PAIR`] for none.
    pub of_row: &'a B::U32,
}

/// The LoRA pair of a linear.
#[derive(Debug)]
pub struct LoraForward<'a, B: Backend> {
    /// `[M, R]`, overwritten: the backward needs it.
    pub h: &'a mut B::F32,
    /// The flat adapter buffer.
    pub params: &'a B::F32,
    /// Where in it the pair is.
    pub slot: LoraSlot,
    /// On the pair's input alone.
    pub dropout: Option<Dropout>,
}

/// The number of the pair of a row that has none.
pub const NO_PAIR: u32 = u32::MAX;
