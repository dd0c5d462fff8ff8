//! Whether an instruction is too close to a test prompt to be trained on.
//!
//! Invariant: every test prompt is compared, by every measure, with no index in between; what is reported names the
//! test prompt, the measure and the value, so that a person can judge it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::near_duplicate::{jaccard, runs};
use super::rouge::{Pattern, Vocabulary};
use crate::sample::{Sample, SampleId};
use crate::text::{cut, each_word};

/// When an instruction is too close to a test prompt. A threshold above 1 switches its measure off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContaminationConfig {
    /// Words in an n-gram. A test prompt with fewer says too little to be recognised inside a longer text; the
    /// other two measures still hold it against the whole.
    pub ngram_words: usize,
    /// Least share of the test prompt's words that lie in n-grams of the instruction.
    pub ngram_share_min: f64,
    /// Least ROUGE-L.
    pub rouge_l_min: f64,
    /// Least Jaccard similarity of character 5-grams: what differs in case, spacing or a typo.
    pub character_jaccard_min: f64,
}

impl Default for ContaminationConfig {
    /// 10-grams, since prompts of one task share openings of eight words, and half of the words as Tülu 3; ROUGE-L below
    /// the novelty threshold, because a leak costs more than a sample; 0.7 of the character 5-grams, because each typo
    /// costs five of them and a short prompt has some thirty.
    fn default() -> Self {
        Self {
            ngram_words: 10,
            ngram_share_min: 0.5,
            rouge_l_min: 0.6,
            character_jaccard_min: 0.7,
        }
    }
}

/// How closeness was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of the test prompt's words in shared n-grams.
    NgramShare,
    /// ROUGE-L F-measure.
    RougeL,
    /// Jaccard similarity of character 5-grams.
    CharacterJaccard,
}

/// Why an instruction counts as contaminated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The test sample it is close to.
    pub test: SampleId,
    /// How that test sample's prompt begins.
    pub test_instruction: String,
    /// The measure that it exceeds by most.
    pub measure: Measure,
    /// Its value, 0 to 1.
    pub value: f64,
    /// The least value that counts.
    pub threshold: f64,
}

/// Characters of a test prompt shown as evidence.
const EVIDENCE_BYTES_MAX: usize = 200;

/// Characters in a gram of the character measure: short enough to survive a typo, long enough to be telling.
const GRAM_CHARS: usize = 5;

/// The test split, prepared.
#[derive(Debug)]
pub struct Contamination {
    config: ContaminationConfig,
    vocabulary: Vocabulary,
    tests: Vec<TestPrompt>,
}

#[derive(Debug)]
struct TestPrompt {
    id: SampleId,
    instruction: String,
    words: Vec<u32>,
    characters: Vec<u64>,
}

impl Contamination {
    /// Prepares the prompts of `test`.
    pub fn new(test: &[Sample], config: ContaminationConfig) -> Self {
        let mut vocabulary = Vocabulary::default();
        let tests = test
            .iter()
            .map(|sample| {
                let instruction = sample.instruction();
                let words = vocabulary.encode(&instruction);
                TestPrompt {
                    id: sample.id(),
                    words,
                    characters: characters(&instruction),
                    instruction,
                }
            })
            .collect();
        Self {
            config,
            vocabulary,
            tests,
        }
    }

    /// The test prompt that `instruction` is closest to, if it is too close to one.
    pub fn evidence(&mut self, instruction: &str) -> Option<Evidence> {
        let words = self.vocabulary.encode(instruction);
        let pattern = Pattern::new(&words);
        let characters = characters(instruction);
        let config = &self.config;
        let grams: HashSet<&[u32]> = words.windows(config.ngram_words.max(1)).collect();
        let mut worst: Option<(f64, Evidence)> = None;
        for test in &self.tests {
            let measures = [
                (
                    Measure::NgramShare,
                    ngram_share(&grams, &test.words, config.ngram_words),
                    config.ngram_share_min,
                ),
                (Measure::RougeL, pattern.rouge_l(&test.words), config.rouge_l_min),
                (
                    Measure::CharacterJaccard,
                    jaccard(&characters, &test.characters),
                    config.character_jaccard_min,
                ),
            ];
            for (measure, value, threshold) in measures {
                let excess = value - threshold;
                if excess >= 0.0 && worst.as_ref().is_none_or(|(most, _)| excess > *most) {
                    let test_instruction = cut(&test.instruction, EVIDENCE_BYTES_MAX).to_owned();
                    worst = Some((
                        excess,
                        Evidence {
                            test: test.id,
                            test_instruction,
                            measure,
                            value,
                            threshold,
                        },
                    ));
                }
            }
        }
        worst.map(|(_, evidence)| evidence)
    }
}

/// The share of `test` that lies in runs of `size` words which are among `grams`.
fn ngram_share(grams: &HashSet<&[u32]>, test: &[u32], size: usize) -> f64 {
    let size = size.max(1);
    if test.len() < size {
        return 0.0;
    }
    let (mut covered, mut covered_to) = (0, 0);
    for (start, gram) in test.windows(size).enumerate() {
        if grams.contains(gram) {
            covered += start + size - covered_to.max(start);
            covered_to = start + size;
        }
    }
    covered as f64 / test.len() as f64
}

/// The character 5-grams of a text, whatever its case, spacing and punctuation.
fn characters(text: &str) -> Vec<u64> {
    let mut characters = Vec::new();
    each_word(text, |word| characters.extend(word.chars().map(u64::from)));
    runs(&characters, GRAM_CHARS)
}

#[cfg(test)]
mod tests;
