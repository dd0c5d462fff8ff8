//! Random numbers that are functions of a key and a counter, never of what was drawn before.
//!
//! Invariant: the same words give the same number on every machine, whatever the order of the calls. This is what
//! makes a resumed training run equal an undisturbed one, and a response independent of its batch.

/// The finalizer of splitmix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words that passes BigCrush when fed
/// with a counter in steps of the golden ratio.
const fn scramble(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Folds words into one key; the order of the words matters.
pub fn key(words: &[u64]) -> u64 {
    words.iter().fold(0, |key, &word| scramble(scramble(key.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ word))
}

/// The `counter`-th 64-bit number of the stream `key`.
pub fn bits(key: u64, counter: u64) -> u64 {
    scramble(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The `counter`-th number of the stream `key`, in `[0, 1)`, all 53 bits of it random.
pub fn uniform(key: u64, counter: u64) -> f64 {
    (bits(key, counter) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A permutation of `0..n`, by Fisher and Yates.
pub fn permutation(key: u64, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // The bias of a remainder is below n / 2^64.
        let other = (bits(key, last as u64) % (last as u64 + 1)) as usize;
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly() {
        let mut buckets = [0usize; 16];
        for counter in 0..160_000 {
            buckets[(uniform(7, counter) * 16.0) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| (9_500..10_500).contains(&n)), "{buckets:?}");
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_its_key() {
        let mut first = permutation(key(&[1, 2]), 100);
        assert_ne!(first, permutation(key(&[2, 1]), 100));
        first.sort_unstable();
        assert_eq!(first, (0..100).collect::<Vec<_>>());
        assert!(permutation(3, 0).is_empty());
    }
}
