//! How many bytes of a device's memory things take: what a plan is made of before anything is allocated.
//!
//! Invariant: each formula is of what the operation beside it asks the driver for; no device is needed to compute it.
//! `engine/src/memory/tests.rs` counts on the stand-in whether that is so.

use super::adamw::SUM_LEN;
use super::attention::TILE_LEN;
use super::attention_paged::{
    N_JOIN, N_PART, PART_LEN, n_partials_max, partial_len, partials_room, rows_of_tile,
};
use super::choose::{Row, seen_room};
use super::cross_entropy::LOGITS_BYTES_MAX;
use super::lora::PART_ROWS;
use super::lora_by_row::PAIR_WORDS;
use super::matmul_nf4::{TILE_K, TILE_N};
use crate::dims::HeadDims;
use crate::nf4::{SCALE_BLOCK_LEN, scale_values};

/// What the driver takes for the context and the compiled kernels: an assumption, which no card has shown yet. Drivers of
/// the 5xx series take some 300 to 500 MB for a context on cards of this size.
pub const CONTEXT_BYTES: u64 = 600 << 20;

/// The product of `dims`, the largest number where it overflows.
fn product(dims: &[usize]) -> u64 {
    dims.iter()
        .fold(1, |product: u64, &dim| product.saturating_mul(dim as u64))
}

/// A buffer of `len` elements of `element` bytes; the driver refuses one of nothing.
fn buffer(len: u64, element: u64) -> u64 {
    len.max(1).saturating_mul(element)
}

/// Activations of these dimensions.
pub fn act(dims: &[usize]) -> u64 {
    buffer(product(dims), 2)
}

/// 32-bit floats or integers of these dimensions.
pub fn words(dims: &[usize]) -> u64 {
    buffer(product(dims), 4)
}

/// A weight `[N, K]` in NF4: tiles of 32 rows and 64 columns, half a byte an element, and for each row of a tile a scale
/// of 32 bits or, where scales are quantized too, of 8 with a factor for each 256 and the map of their values.
pub fn nf4_weight(n: usize, k: usize, double: bool) -> u64 {
    let (n, n_tiles) = (n.next_multiple_of(TILE_N), k.div_ceil(TILE_K));
    let scales = match double {
        true => {
            let n_factors = n.saturating_mul(n_tiles).div_ceil(SCALE_BLOCK_LEN);
            let values = words(&[n_factors.saturating_add(scale_values().len())]);
            words(&[n / 4, n_tiles]).saturating_add(values)
        }
        false => words(&[n, n_tiles]),
    };
    words(&[n, n_tiles, TILE_K / 8]).saturating_add(scales)
}

/// A weight `[N, K]` in bf16.
pub fn bf16_weight(n: usize, k: usize) -> u64 {
    act(&[n, k])
}

/// One layer's cache.
pub fn kv_cache(heads: HeadDims, n_pages: usize, page_len: usize) -> u64 {
    2 * act(&[n_pages, page_len, heads.n_kv_heads, heads.head_dim])
}

/// Beside its operands, the loss of `n_rows` rows that have a label, and its gradient.
pub fn cross_entropy(n_rows: usize, width: usize, n_vocab: usize) -> u64 {
    let n_at_once = (LOGITS_BYTES_MAX / 4 / n_vocab.max(1)).clamp(1, n_rows.max(1));
    [
        2 * words(&[n_rows]), // rows and labels
        act(&[n_at_once, width]),
        words(&[n_at_once, n_vocab]),
        act(&[n_at_once, n_vocab]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// Beside their operands, the gradients of LoRA pairs of `m` rows; `widths` are the larger of each pair's numbers of
/// features, each once.
pub fn lora_backward(m: usize, rank: usize, widths: impl IntoIterator<Item = usize>) -> u64 {
    let parts = |width| words(&[m.div_ceil(PART_ROWS), rank, width]);
    widths
        .into_iter()
        .map(parts)
        .fold(words(&[m, rank]), u64::saturating_add)
}

/// Where the pairs of `n_adapters` adapters beside one linear are.
pub fn lora_pairs(n_adapters: usize) -> u64 {
    words(&[n_adapters, PAIR_WORDS])
}

/// Beside its operands, attention's gradients of `m` rows; tiles of a single row each, which is the most there can be.
pub fn attention_backward(m: usize, heads: HeadDims) -> u64 {
    words(&[m, heads.n_heads]).saturating_add(words(&[m, TILE_LEN]))
}

/// The lists and sums of steps of up to `n_rows` rows of up to `n_sequences` sequences, over caches of up to `n_context`
/// tokens each, which are read in pages of `page_len` and through `n_windows` different windows; the most there can be.
pub fn sequences(
    heads: HeadDims,
    [n_rows, n_sequences, n_context]: [usize; 3],
    page_len: usize,
    n_windows: usize,
) -> u64 {
    let n_tiles = n_rows.div_ceil(rows_of_tile(heads)).saturating_add(n_sequences);
    let n_parts = n_context.div_ceil(PART_LEN);
    // At least one tile's parts, even if they are more.
    let n_partials = match n_parts {
        0 | 1 => 0,
        _ => n_tiles
            .saturating_mul(n_parts)
            .min(n_partials_max(heads).max(n_parts)),
    };
    let room = match n_partials {
        0 => 0,
        _ => partials_room(n_partials, heads),
    };
    // filled up to its capacity, a list is at most an eighth longer
    let filled = |n: u64| n.saturating_add(n / 8);
    let of_window = (filled(product(&[n_tiles, n_parts])).saturating_mul(N_PART as u64))
        .saturating_add(filled(n_tiles as u64).saturating_mul(N_JOIN as u64));
    let n_numbers = [
        product(&[n_rows, 2]),
        of_window.saturating_mul(n_windows as u64),
        product(&[n_sequences, n_context.div_ceil(page_len.max(1))]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add);
    let n_numbers = n_numbers.checked_next_power_of_two().unwrap_or(u64::MAX);
    words(&[room, partial_len(heads)]).saturating_add(buffer(n_numbers, 4))
}

/// What up to `n_rows` tokens of steps are chosen by, where penalties fall on up to `n_seen` tokens of each; the most there
/// can be: without a penalty, or where all temperatures are 0, it is less.
pub fn choices(n_rows: usize, n_vocab: usize, n_seen: usize) -> u64 {
    let seen = seen_room(n_rows.saturating_mul(n_seen.min(n_vocab)));
    [
        buffer(n_rows as u64, size_of::<Row>() as u64),
        2 * words(&[seen]), // tokens and their logits
        buffer(product(&[n_rows, n_vocab]), 8),
        words(&[n_rows]),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// Beside its operand, a sum of `len` squares.
pub fn sum_squares(len: usize) -> u64 {
    buffer(len.div_ceil(SUM_LEN) as u64, 8)
}
