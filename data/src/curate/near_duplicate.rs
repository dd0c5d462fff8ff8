//! Near duplicates by MinHash and locality-sensitive hashing, each verified.
//!
//! Invariant: a pair is reported only if the exact Jaccard similarity of its word shingles reaches the threshold.
//!
//! A signature of 128 values comes from one hash per shingle (one-permutation hashing, Li, Owen, Zhang, *NIPS* 2012;
//! empty bins filled by optimal densification, Shrivastava, *ICML* 2017). 16 bands of 8 values propose candidates:
//! a pair of similarity s is proposed with probability 1 − (1 − s⁸)¹⁶, 0.95 at 0.8 and 0.61 at 0.7. What slips
//! through there is the novelty filter's to catch.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::sample::SampleId;
use crate::text::each_word;

/// Values in a signature.
pub const SIGNATURE_LEN: usize = 128;

/// Values in a band; a signature has 16 bands.
const BAND_LEN: usize = 8;

/// Texts of one band that are verified at most. Texts that are truly alike were dropped before they could fill a
/// band, so only chance collisions remain.
const VERIFIED_MAX: usize = 1024;

/// When two instructions count as one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NearDuplicateConfig {
    /// Least Jaccard similarity of a near duplicate, 0 to 1; above 1 the filter is off.
    pub jaccard_min: f64,
    /// Words in a shingle: 3 for requests of a few sentences, 5 for long texts.
    pub shingle_words: usize,
}

impl Default for NearDuplicateConfig {
    /// 0.7 over 3-word shingles: instructions are mostly under 60 words.
    fn default() -> Self {
        Self {
            jaccard_min: 0.7,
            shingle_words: 3,
        }
    }
}

/// An instruction's shingles and the bands it lies in; none when it has no words or the filter is off.
#[derive(Debug)]
pub struct Prepared {
    shingles: Vec<u64>,
    bands: Vec<(u8, u64)>,
}

/// The texts seen so far.
#[derive(Debug)]
pub struct NearDuplicates {
    config: NearDuplicateConfig,
    texts: Vec<(SampleId, Vec<u64>)>,
    bands: HashMap<(u8, u64), Vec<u32>>,
}

impl NearDuplicates {
    /// No texts yet.
    pub fn new(config: NearDuplicateConfig) -> Self {
        Self {
            config,
            texts: Vec::new(),
            bands: HashMap::new(),
        }
    }

    /// Makes an instruction ready to be looked for and added.
    pub fn prepare(&self, instruction: &str) -> Prepared {
        if self.config.jaccard_min > 1.0 {
            return Prepared {
                shingles: Vec::new(),
                bands: Vec::new(),
            };
        }
        let shingles = shingles(instruction, self.config.shingle_words);
        let bands = if shingles.is_empty() {
            Vec::new()
        } else {
            bands(&signature(&shingles)).collect()
        };
        Prepared { shingles, bands }
    }

    /// Adds an instruction.
    pub fn insert(&mut self, id: SampleId, prepared: Prepared) {
        let text = self.texts.len() as u32;
        for band in prepared.bands {
            self.bands.entry(band).or_default().push(text);
        }
        self.texts.push((id, prepared.shingles));
    }

    /// The most similar near duplicate of an instruction, with its Jaccard similarity.
    pub fn find(&self, prepared: &Prepared) -> Option<(SampleId, f64)> {
        let mut candidates: Vec<u32> = Vec::new();
        for band in &prepared.bands {
            let texts = self.bands.get(band).map_or(&[][..], Vec::as_slice);
            candidates.extend(texts.iter().take(VERIFIED_MAX));
        }
        candidates.sort_unstable();
        candidates.dedup();
        let mut closest: Option<(SampleId, f64)> = None;
        for (id, other) in candidates
            .into_iter()
            .filter_map(|text| self.texts.get(text as usize))
        {
            let jaccard = jaccard(&prepared.shingles, other);
            if jaccard >= self.config.jaccard_min && closest.is_none_or(|(_, best)| jaccard > best) {
                closest = Some((*id, jaccard));
            }
        }
        closest
    }
}

/// The hashes of all runs of `size` words, sorted, each once. A shorter text is one shingle.
pub fn shingles(text: &str, size: usize) -> Vec<u64> {
    let mut hashes = Vec::new();
    each_word(text, |word| hashes.push(hash_bytes(word.as_bytes())));
    runs(&hashes, size)
}

/// The hashes of all runs of `size` items, sorted, each once.
pub(super) fn runs(hashes: &[u64], size: usize) -> Vec<u64> {
    if hashes.is_empty() {
        return Vec::new();
    }
    let size = size.clamp(1, hashes.len());
    let combine = |run: &[u64]| {
        run.iter()
            .fold(run.len() as u64, |hash, word| mix(hash.rotate_left(5) ^ word))
    };
    let mut shingles: Vec<u64> = hashes.windows(size).map(combine).collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// |A ∩ B| / |A ∪ B| of two sorted sets; texts without words say nothing, so two empty sets score 0.
pub fn jaccard(left: &[u64], right: &[u64]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0usize);
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        match a.cmp(b) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let union = left.len() + right.len() - shared;
    if union == 0 {
        0.0
    } else {
        shared as f64 / union as f64
    }
}

/// The MinHash signature of a set of hashes: the share of equal values estimates the Jaccard similarity.
pub fn signature(shingles: &[u64]) -> [u64; SIGNATURE_LEN] {
    let mut bins = [u64::MAX; SIGNATURE_LEN];
    for shingle in shingles {
        let hash = mix(*shingle);
        // 7 bits choose one of 128 bins, the others are the value.
        let bin = &mut bins[(hash >> 57) as usize];
        *bin = (*bin).min(hash & (u64::MAX >> 7));
    }
    if shingles.is_empty() {
        return bins;
    }
    let sparse = bins;
    for (index, bin) in bins.iter_mut().enumerate() {
        let mut attempt = 0u64;
        while *bin == u64::MAX {
            attempt += 1;
            // Which bin to copy from depends on this bin and the attempt only, so equal sets stay equal. A text has
            // at least one full bin, and the hash reaches every bin, so the search ends.
            let from = mix((index as u64) << 32 | attempt) >> 57;
            *bin = sparse[from as usize];
        }
    }
    bins
}

fn bands(signature: &[u64; SIGNATURE_LEN]) -> impl Iterator<Item = (u8, u64)> {
    (0u8..).zip(
        signature
            .chunks_exact(BAND_LEN)
            .map(|band| band.iter().fold(0, |hash, value| mix(hash ^ value))),
    )
}

/// FNV-1a.
fn hash_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finalizer of splitmix64: every input bit reaches every output bit.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
