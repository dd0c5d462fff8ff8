//! Whether an instruction says something new: its ROUGE-L with every instruction of the pool stays at or below a
//! threshold (self-instruct's filter).
//!
//! Invariant: the answer is that of comparing with the whole pool, as long as no more than [`COMPARED_MAX`] texts
//! could reach the threshold; beyond that the earliest of them are compared.
//!
//! Comparing all pairs is quadratic. But ROUGE-L > t needs LCS > t·(m+n)/2, the LCS is at most the number of words
//! two texts share, and two texts that share o words of m share one of the m−o+1 rarest (prefix filtering:
//! Chaudhuri, Ganti, Kaushik, *ICDE* 2006). So each text is indexed under its rarest words only.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::rouge::{Pattern, Vocabulary};
use crate::sample::SampleId;

/// Texts that one instruction is compared with at most: some 10 ms of work.
pub const COMPARED_MAX: usize = 4096;

/// How new an instruction must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoveltyConfig {
    /// Above this ROUGE-L with any other instruction it is dropped; 1 switches the filter off. A task whose prompts
    /// share a template wants a higher value than free text.
    pub rouge_l_max: f64,
}

impl Default for NoveltyConfig {
    /// 0.7, as self-instruct and Alpaca.
    fn default() -> Self {
        Self { rouge_l_max: 0.7 }
    }
}

/// The pool, indexed.
#[derive(Debug)]
pub struct Novelty {
    config: NoveltyConfig,
    vocabulary: Vocabulary,
    /// Per word, how many of all texts have it.
    frequency: HashMap<u32, u32>,
    texts: Vec<(SampleId, Vec<u32>)>,
    /// Texts by one of their rarest words; the second number tells the first "the" of a text from its second.
    index: HashMap<(u32, u32), Vec<u32>>,
}

impl Novelty {
    /// An empty pool. `texts` are all that will be inserted or looked for: they say which words are rare.
    pub fn new(config: NoveltyConfig, texts: impl Iterator<Item = String>) -> Self {
        let mut vocabulary = Vocabulary::default();
        let mut frequency: HashMap<u32, u32> = HashMap::new();
        if config.rouge_l_max < 1.0 {
            for text in texts {
                let mut words = vocabulary.encode(&text);
                words.sort_unstable();
                words.dedup();
                for word in words {
                    *frequency.entry(word).or_default() += 1;
                }
            }
        }
        Self {
            config,
            vocabulary,
            frequency,
            texts: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Adds an instruction to the pool.
    pub fn insert(&mut self, id: SampleId, instruction: &str) {
        if self.config.rouge_l_max >= 1.0 {
            return;
        }
        let words = self.vocabulary.encode(instruction);
        let text = self.texts.len() as u32;
        for key in self.rarest(&words) {
            self.index.entry(key).or_default().push(text);
        }
        self.texts.push((id, words));
    }

    /// The closest instruction of the pool above the threshold, with its ROUGE-L.
    pub fn find(&mut self, instruction: &str) -> Option<(SampleId, f64)> {
        let threshold = self.config.rouge_l_max;
        if threshold >= 1.0 {
            return None;
        }
        let words = self.vocabulary.encode(instruction);
        let mut candidates: Vec<u32> = Vec::new();
        for key in self.rarest(&words) {
            let texts = self.index.get(&key).map_or(&[][..], Vec::as_slice);
            candidates.extend(texts.iter().filter(|text| self.length_fits(words.len(), **text)));
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates.truncate(COMPARED_MAX);
        let pattern = Pattern::new(&words);
        let mut closest: Option<(SampleId, f64)> = None;
        for (id, other) in candidates
            .into_iter()
            .filter_map(|text| self.texts.get(text as usize))
        {
            let rouge_l = pattern.rouge_l(other);
            if rouge_l > closest.map_or(threshold, |(_, best)| best) {
                closest = Some((*id, rouge_l));
            }
        }
        closest
    }

    /// Whether texts of these lengths can exceed the threshold: 2·min/(m+n) > t.
    fn length_fits(&self, length: usize, text: u32) -> bool {
        let other = self.texts.get(text as usize).map_or(0, |(_, words)| words.len());
        2.0 * length.min(other) as f64 > self.config.rouge_l_max * (length + other) as f64
    }

    /// The words under which a text of `words` must be found: the m−o+1 rarest, where o = ⌈m·t/(2−t)⌉ is the
    /// fewest shared words that any other length can do with.
    fn rarest(&self, words: &[u32]) -> Vec<(u32, u32)> {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let mut keys: Vec<(u32, u32)> = words
            .iter()
            .map(|word| {
                let occurrence = seen.entry(*word).or_default();
                *occurrence += 1;
                (*word, *occurrence)
            })
            .collect();
        // A repeated word is rarer than its first occurrence; the order only has to be the same for all texts.
        keys.sort_unstable_by_key(|key| (self.frequency.get(&key.0).copied().unwrap_or(0), *key));
        let t = self.config.rouge_l_max.clamp(0.0, 1.0);
        // The small slack keeps rounding from asking for one shared word too many.
        let shared_min = ((keys.len() as f64 * t / (2.0 - t)) - 1e-9).ceil().max(1.0) as usize;
        keys.truncate((keys.len() + 1).saturating_sub(shared_min));
        keys
    }
}

#[cfg(test)]
mod tests;
