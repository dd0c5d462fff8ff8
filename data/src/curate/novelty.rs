//! Whether an instruction says something new: its ROUGE-L with every instruction of the pool stays at or below a
//! threshold (self-instruct's filter).
//!
//! Invariant: the answer is that of comparing with the whole pool, as long as no more than [`COMPARED_MAX`] texts
//! could reach the threshold; beyond that the earliest of them are compared.
//!
//! Comparing all pairs is quadratic. But ROUGE-L > t needs LCS > t·(m+n)/2, the LCS is at most the number of words
//! two texts share, and two texts that share o words of m share one of the m−o+1 rarest (prefix filtering:
//! Chaudhuri, Ganti, Kaushik, *ICDE* 2006). So each text is indexed under its rarest words only, and where a shared
//! word stands among them bounds how many more can be shared (positional filtering: Xiao et al., *WWW* 2008).

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
    /// Texts by one of their rarest words, with its place among them. The second number of the key tells the first
    /// "the" of a text from its second.
    index: HashMap<(u32, u32), Vec<(u32, u32)>>,
}

/// An instruction's words, and the rarest of them under which it is indexed.
#[derive(Debug)]
pub struct Prepared {
    words: Vec<u32>,
    rarest: Vec<(u32, u32)>,
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

    /// Makes an instruction ready to be looked for and added.
    pub fn prepare(&mut self, instruction: &str) -> Prepared {
        if self.config.rouge_l_max >= 1.0 {
            return Prepared {
                words: Vec::new(),
                rarest: Vec::new(),
            };
        }
        let words = self.vocabulary.encode(instruction);
        Prepared {
            rarest: self.rarest(&words),
            words,
        }
    }

    /// Adds an instruction to the pool.
    pub fn insert(&mut self, id: SampleId, prepared: Prepared) {
        let text = self.texts.len() as u32;
        for (position, key) in (0..).zip(prepared.rarest) {
            self.index.entry(key).or_default().push((text, position));
        }
        self.texts.push((id, prepared.words));
    }

    /// The closest instruction of the pool above the threshold, with its ROUGE-L.
    pub fn find(&self, prepared: &Prepared) -> Option<(SampleId, f64)> {
        let pattern = Pattern::new(&prepared.words);
        let mut closest: Option<(SampleId, f64)> = None;
        let candidates = self.candidates(prepared).into_iter().take(COMPARED_MAX);
        for (id, other) in candidates.filter_map(|text| self.texts.get(text as usize)) {
            let rouge_l = pattern.rouge_l(other);
            if rouge_l > closest.map_or(self.config.rouge_l_max, |(_, best)| best) {
                closest = Some((*id, rouge_l));
            }
        }
        closest
    }

    /// The texts that could exceed the threshold, earliest first. Both lists of rarest words are in one order, so
    /// after a shared word at positions i and j no more than min(m−i, n−j)−1 further words can be shared.
    fn candidates(&self, prepared: &Prepared) -> Vec<u32> {
        // How many words are shared so far, or nothing once the threshold is out of reach.
        let mut shared: HashMap<u32, Option<usize>> = HashMap::new();
        let length = prepared.words.len();
        for (position, key) in prepared.rarest.iter().enumerate() {
            for (text, other_position) in self.index.get(key).map_or(&[][..], Vec::as_slice) {
                let other = self.texts.get(*text as usize).map_or(0, |(_, words)| words.len());
                let found = shared.entry(*text).or_insert(Some(0));
                let Some(count) = *found else { continue };
                let further = (length - position).min(other.saturating_sub(*other_position as usize));
                // ROUGE-L > t needs 2·LCS > t·(m+n); `further` counts this word and all that may follow.
                let most = 2.0 * (count + further) as f64;
                let can_exceed = most > self.config.rouge_l_max * (length + other) as f64;
                *found = can_exceed.then_some(count + 1);
            }
        }
        let mut candidates: Vec<u32> = shared
            .into_iter()
            .filter_map(|(text, count)| count.map(|_| text))
            .collect();
        candidates.sort_unstable();
        candidates
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
