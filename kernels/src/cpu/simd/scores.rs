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

/// A row's heads and the pages that they are scored against.
#[derive(Clone, Copy)]
pub(crate) struct Scored<'a> {
    /// Up to 4 heads `[D]`.
    pub q: &'a [f32],
    pub d: usize,
    /// Keys `[D][8]` of two pages, the second of which there may not be.
    pub pages: [Option<&'a [KeyRow]>; 2],
    /// Where the first page's scores begin.
    pub column: usize,
}

with_step!(
    [super::x86_avx2::add_scaled_avx2, super::x86_avx2::add_scaled_avx2, add_scaled_portable],
    /// `scores[head][column + key] = q[head] · keys`.
    fn score_pages, score_body,
    (scored: Scored<'_>, scores: &mut [f32])
);

#[inline(always)]
fn score_body(scored: Scored<'_>, scores: &mut [f32], add_scaled: impl Fn(f32, &KeyRow, &mut KeyRow)) {
    match scored.q.len() / scored.d.max(1) {
        1 => score_heads::<1>(scored, scores, add_scaled),
        2 => score_heads::<2>(scored, scores, add_scaled),
        3 => score_heads::<3>(scored, scores, add_scaled),
        _ => score_heads::<SCORED_HEADS_MAX>(scored, scores, add_scaled),
    }
}

#[inline(always)]
fn score_heads<const W: usize>(
    scored: Scored<'_>,
    scores: &mut [f32],
    add_scaled: impl Fn(f32, &KeyRow, &mut KeyRow),
) {
    let Scored { q, d, pages, column } = scored;
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
