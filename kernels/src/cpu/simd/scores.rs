//! Scores of a row's heads over pages of keys, as decoding asks for them.
//!
//! Invariant: a score is one chain of fused multiply-adds over D, on every instruction set.

use super::isa::with_step;

/// Keys of a page, a register of AVX2.
const KEYS: usize = 8;

/// One of a page's D dimensions, of all its keys.
pub(crate) type KeyRow = [f32; KEYS];

/// Most heads that go over the keys together.
pub(crate) const SCORED_HEADS_MAX: usize = 4;

with_step!(
    [super::x86_avx2::add_scaled_avx2, super::x86_avx2::add_scaled_avx2, add_scaled_portable],
    /// `scores[head][column + key] = q[head] · keys` for up to 4 heads `[D]` and two pages, the second of which there may
    /// not be.
    fn score_pages, score_body,
    (q: &[f32], d: usize, pages: [Option<&[KeyRow]>; 2], scores: &mut [f32], column: usize)
);

#[inline(always)]
fn score_body(
    q: &[f32],
    d: usize,
    pages: [Option<&[KeyRow]>; 2],
    scores: &mut [f32],
    column: usize,
    add_scaled: impl Fn(f32, &KeyRow, &mut KeyRow),
) {
    match q.len() / d.max(1) {
        1 => score_heads::<1>(q, d, pages, scores, column, add_scaled),
        2 => score_heads::<2>(q, d, pages, scores, column, add_scaled),
        3 => score_heads::<3>(q, d, pages, scores, column, add_scaled),
        _ => score_heads::<SCORED_HEADS_MAX>(q, d, pages, scores, column, add_scaled),
    }
}

#[inline(always)]
fn score_heads<const W: usize>(
    q: &[f32],
    d: usize,
    pages: [Option<&[KeyRow]>; 2],
    scores: &mut [f32],
    column: usize,
    add_scaled: impl Fn(f32, &KeyRow, &mut KeyRow),
) {
    let [Some(first), second] = pages else { return };
    let mut heads: [&[f32]; W] = [&[]; W];
    for (i, head) in heads.iter_mut().enumerate() {
        *head = &q[i * d..][..d];
    }
    let mut sums = [[[0f32; KEYS]; 2]; W];
    let (first, other) = (&first[..d], &second.unwrap_or(first)[..d]);
    for p in 0..d {
        for i in 0..W {
            add_scaled(heads[i][p], &first[p], &mut sums[i][0]);
            add_scaled(heads[i][p], &other[p], &mut sums[i][1]);
        }
    }
    let step = scores.len() / W;
    for (scores, sums) in scores.chunks_exact_mut(step.max(1)).zip(&sums) {
        let places = scores[column..].as_chunks_mut().0;
        let n_pages = if second.is_some() { 2 } else { 1 };
        // one after the other: a copy of a length that varies would keep the sums out of registers
        for (place, sums) in places.iter_mut().zip(sums).take(n_pages) {
            *place = *sums;
        }
    }
}

#[inline(always)]
fn add_scaled_portable(x: f32, keys: &KeyRow, sums: &mut KeyRow) {
    for (sum, key) in sums.iter_mut().zip(keys) {
        *sum = x.mul_add(*key, *sum);
    }
}
