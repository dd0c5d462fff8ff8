//! Which elements dropout keeps, drawn many at a time.
//!
//! Invariant: element `i` is kept where `random::uniform(key, i) >= rate`, on every instruction set.

use super::{Isa, Set, versions};
use crate::backend::Dropout;
use crate::random;

/// Elements drawn together: 8 counters, whose rounds run in the lanes of a register.
pub(crate) const DRAWN: usize = 32;

/// `kept[i]` is 1 where element `first + i` is kept, else 0; `first` is a multiple of 32.
pub(crate) fn draw_kept(isa: Isa, dropout: Dropout, first: u64, kept: &mut [u8]) {
    debug_assert!(
        first.is_multiple_of(DRAWN as u64),
        "element {first} begins no run"
    );
    let (runs, rest) = kept.as_chunks_mut::<DRAWN>();
    draw_runs(isa, dropout, first, runs);
    if !rest.is_empty() {
        let mut last = [[0; DRAWN]];
        draw_runs(isa, dropout, first + (DRAWN * runs.len()) as u64, &mut last);
        rest.copy_from_slice(&last[0][..rest.len()]);
    }
}

#[expect(
    unsafe_code,
    reason = "calls code compiled for an instruction set that was detected"
)]
#[cfg(target_arch = "x86_64")]
fn draw_runs(isa: Isa, dropout: Dropout, first: u64, kept: &mut [[u8; DRAWN]]) {
    match isa.set() {
        // SAFETY: this `Isa` exists, so AVX2 was detected.
        Set::Avx2 => unsafe { super::x86_keep::draw_runs_avx2(dropout, first, kept) },
        // the compiler's code for AVX-512 is faster than that
        Set::Avx512 | Set::Portable => draw_runs_plainly(isa, dropout, first, kept),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn draw_runs(isa: Isa, dropout: Dropout, first: u64, kept: &mut [[u8; DRAWN]]) {
    draw_runs_plainly(isa, dropout, first, kept);
}

versions! {
    fn draw_runs_plainly(dropout: Dropout, first: u64, kept: &mut [[u8; DRAWN]]) {
        for (run, kept) in kept.iter_mut().enumerate() {
            let counter = first / 4 + (run * DRAWN / 4) as u64;
            let mut words = [[0u32; 4]; DRAWN / 4];
            for (i, words) in words.iter_mut().enumerate() {
                *words = random::block(dropout.key, counter + i as u64);
            }
            for (kept, &word) in kept.iter_mut().zip(words.as_flattened()) {
                *kept = u8::from(random::uniform_of(word) >= dropout.rate);
            }
        }
    }
}
