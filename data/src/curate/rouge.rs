//! ROUGE-L: how much of two texts is said in the same order.
//!
//! F = 2·LCS/(m+n) over words, with LCS the length of the longest common subsequence (Lin, *Text Summarization
//! Branches Out*, 2004, at β = 1: what Python's `rouge-score` computes). The LCS is found 64 words at a time
//! (Hyyrö, *Bit-parallel LCS-length computation revisited*, 2004).
//!
//! Invariant: the same numbers as the table of dynamic programming gives.

use std::collections::HashMap;

use crate::text::each_word;

/// Words as numbers, so that comparing texts compares integers.
#[derive(Debug, Default)]
pub struct Vocabulary {
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// The words of `text` as numbers; a new word gets the next one. At most 2³² words fit, which no text held in
    /// memory has.
    pub fn encode(&mut self, text: &str) -> Vec<u32> {
        let mut encoded = Vec::new();
        each_word(text, |word| {
            let next = self.ids.len() as u32;
            // Most words are known, so a new String is made only for one that is not.
            let id = match self.ids.get(word) {
                Some(&id) => id,
                None => *self.ids.entry(word.to_owned()).or_insert(next),
            };
            encoded.push(id);
        });
        encoded
    }
}

/// A text prepared for being compared with many.
#[derive(Debug)]
pub struct Pattern {
    length: usize,
    /// Per word, the positions it stands at, 64 to a number.
    positions: HashMap<u32, Vec<u64>>,
}

impl Pattern {
    /// Prepares `words`.
    pub fn new(words: &[u32]) -> Self {
        let blocks = words.len().div_ceil(64);
        let mut positions: HashMap<u32, Vec<u64>> = HashMap::new();
        for (index, word) in words.iter().enumerate() {
            positions.entry(*word).or_insert_with(|| vec![0; blocks])[index / 64] |= 1 << (index % 64);
        }
        Self {
            length: words.len(),
            positions,
        }
    }

    /// Length of the longest common subsequence with `words`.
    pub fn common(&self, words: &[u32]) -> usize {
        // A zero bit marks a pattern position at which the LCS grows.
        let mut state = vec![u64::MAX; self.length.div_ceil(64)];
        for word in words {
            let Some(matches) = self.positions.get(word) else {
                continue;
            };
            let mut carry = false;
            for (block, matches) in state.iter_mut().zip(matches) {
                let shared = *block & matches;
                let (sum, first) = block.overflowing_add(shared);
                let (sum, second) = sum.overflowing_add(u64::from(carry));
                carry = first || second;
                *block = sum | (*block & !matches);
            }
        }
        let mut common = 0;
        for (index, block) in state.iter().enumerate() {
            let bits = (self.length - index * 64).min(64);
            let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
            common += (!block & mask).count_ones() as usize;
        }
        common
    }

    /// ROUGE-L F-measure with `words`, 0 to 1; 0 when either is empty.
    pub fn rouge_l(&self, words: &[u32]) -> f64 {
        let total = self.length + words.len();
        if self.length == 0 || words.is_empty() {
            0.0
        } else {
            2.0 * self.common(words) as f64 / total as f64
        }
    }
}

/// ROUGE-L F-measure of two texts.
pub fn rouge_l(left: &str, right: &str) -> f64 {
    let mut vocabulary = Vocabulary::default();
    Pattern::new(&vocabulary.encode(left)).rouge_l(&vocabulary.encode(right))
}

#[cfg(test)]
pub(crate) mod tests;
