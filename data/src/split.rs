//! One deterministic split of the coverage dataset into train and test.
//!
//! Invariant: samples with equal prompts always land on the same side, so no test prompt was ever trained on.

use std::collections::HashMap;

use crate::Error;
use crate::sample::{Sample, hash_messages};

/// How much goes to the test split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TestSize {
    /// A share of the samples, rounded to the nearest count: above 0, below 1.
    Ratio(f64),
    /// So many samples.
    Count(usize),
}

/// A dataset in two parts, each in the order of the dataset.
#[derive(Debug, Clone)]
pub struct Split {
    /// To learn from.
    pub train: Vec<Sample>,
    /// To be judged on, and for nothing else.
    pub test: Vec<Sample>,
}

/// Splits `samples` by the hash of (seed, prompt): the order of the rows does not matter, and rows added later
/// mostly leave the others where they were. The test split has exactly the size asked for, unless groups of equal
/// prompts cannot add up to it; then it is the largest reachable by the same order that is smaller.
pub fn split(samples: Vec<Sample>, size: TestSize, seed: u64) -> Result<Split, Error> {
    let total = samples.len();
    let wanted = match size {
        TestSize::Count(count) => count,
        TestSize::Ratio(ratio) if ratio > 0.0 && ratio < 1.0 => (total as f64 * ratio).round() as usize,
        TestSize::Ratio(ratio) => return Err(Error::Ratio { ratio }),
    };
    let keys: Vec<[u8; 32]> = samples
        .iter()
        .map(|sample| hash_messages(&seed.to_le_bytes(), sample.prompt()))
        .collect();
    let mut group_sizes: HashMap<[u8; 32], usize> = HashMap::new();
    for key in &keys {
        *group_sizes.entry(*key).or_default() += 1;
    }
    let prompts = group_sizes.len();
    let empty_split = |empty, remedy| Error::EmptySplit {
        test: wanted,
        samples: total,
        prompts,
        empty,
        remedy,
    };
    if wanted == 0 {
        return Err(empty_split(
            "test",
            "ask for a larger test ratio or count, or add samples",
        ));
    }
    let mut groups: Vec<([u8; 32], usize)> = group_sizes.into_iter().collect();
    groups.sort_unstable();
    let mut is_test: HashMap<[u8; 32], bool> = HashMap::new();
    let mut missing = wanted;
    for (key, size) in groups {
        let fits = size <= missing;
        missing -= if fits { size } else { 0 };
        is_test.insert(key, fits);
    }
    let mut split = Split {
        train: Vec::new(),
        test: Vec::new(),
    };
    for (sample, key) in samples.into_iter().zip(keys) {
        let side = if is_test.get(&key).copied().unwrap_or(false) {
            &mut split.test
        } else {
            &mut split.train
        };
        side.push(sample);
    }
    if split.test.is_empty() {
        return Err(empty_split(
            "test",
            "too many samples share one prompt; add samples with other prompts",
        ));
    }
    if split.train.is_empty() {
        return Err(empty_split(
            "train",
            "ask for a smaller test ratio or count, or add samples with other prompts",
        ));
    }
    Ok(split)
}

#[cfg(test)]
mod tests;
