//! How contexts are cut into parts.
//!
//! Invariant: nothing here needs a device.

use super::sequences::{N_PART, capacity, turns};
use crate::dims::SequenceSpan;

#[test]
fn turns_hold_no_more_sums_than_they_may() {
    let sequence = |first_row, n_rows, n_context| SequenceSpan {
        first_row,
        n_rows,
        n_context,
        pages: vec![7; 2],
    };
    // 3 parts; 1; 2 tiles of 2 and 3 parts, the first of which ends a part
    let sequences = [sequence(0, 1, 600), sequence(1, 1, 256), sequence(2, 3, 513)];
    let all = turns(&sequences, 2, None, usize::MAX);
    assert_eq!(all.len(), 1);
    let places: Vec<u32> = all[0].parts.chunks(N_PART).map(|part| part[5]).collect();
    let pages: Vec<u32> = all[0].parts.chunks(N_PART).map(|part| part[3]).collect();
    assert_eq!(pages, [0, 0, 0, 2, 4, 4, 4, 4, 4]);
    assert_eq!(places, [1, 2, 3, 0, 4, 5, 6, 7, 8]);
    let tokens: Vec<u32> = all[0].parts.chunks(N_PART).map(|part| part[4]).collect();
    assert_eq!(tokens, [0, 256, 512, 0, 0, 256, 0, 256, 512]);
    assert_eq!(all[0].joins, [0, 1, 0, 3, 2, 2, 3, 2, 4, 1, 5, 3]);
    let few = turns(&sequences, 2, None, 5);
    let sums: Vec<usize> = few.iter().map(|turn| turn.n_partials).collect();
    assert_eq!(sums, [5, 3]);
    let none = turns(&sequences, 2, None, 0);
    assert_eq!(none.iter().map(|turn| turn.n_partials).max(), Some(3));
    let within = turns(&sequences, 2, Some(80), usize::MAX);
    assert_eq!(within[0].n_partials, 2);
}

#[test]
fn lists_have_few_lengths() {
    assert_eq!(
        [0, 1, 15, 16, 17, 33, 160].map(capacity),
        [0, 1, 15, 16, 18, 36, 160]
    );
    let all: std::collections::BTreeSet<usize> = (1..=4096).map(capacity).collect();
    assert!(all.len() < 90, "{}", all.len());
    assert!((1..=4096).all(|n| (n..=n + n / 8 + 1).contains(&capacity(n))));
}
