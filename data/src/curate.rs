//! Ψ: from what the service LLM wrote to what is worth training on (LlamaDuo, equation 9).
//!
//! Invariant: every candidate is either kept or dropped for exactly one reason with its evidence, and the counts
//! add up. The order is fixed: malformed, exact duplicate, rule, contamination, near duplicate, novelty. What can be
//! said of a sample alone is said before samples are compared with each other, so that one that is dropped never
//! displaces a good one.

pub mod contamination;
pub mod near_duplicate;
pub mod novelty;
pub mod rouge;
pub mod rules;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::sample::{Sample, SampleId};
use crate::synthesis::{Candidate, Malformed};
use contamination::{Contamination, ContaminationConfig, Evidence};
use near_duplicate::{NearDuplicateConfig, NearDuplicates};
use novelty::{Novelty, NoveltyConfig};
use rules::{Breach, Rules};

/// All knobs of curation. Similarity is always measured on [`Sample::instruction`]: the responses of a task that
/// answers in a fixed form are alike by design.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CurationConfig {
    /// What a pair must be on its own.
    pub rules: Rules,
    /// When two instructions count as one.
    pub near_duplicates: NearDuplicateConfig,
    /// How new an instruction must be.
    pub novelty: NoveltyConfig,
    /// When an instruction is too close to a test prompt.
    pub contamination: ContaminationConfig,
}

/// What came of curation.
#[derive(Debug, Clone, PartialEq)]
pub struct Curated {
    /// Worth training on, in the order they came.
    pub kept: Vec<Sample>,
    /// The others, in the order they came.
    pub dropped: Vec<Dropped>,
    /// How many of each.
    pub counts: CurationCounts,
}

/// A candidate that was not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// The pair, absent when the item was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// Why, with evidence.
    pub reason: DropReason,
}

/// Why a candidate was dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DropReason {
    /// It is no pair.
    Malformed(Malformed),
    /// It says word for word what another says.
    Duplicate {
        /// The other: a train sample or one kept before.
        of: SampleId,
    },
    /// It breaks a rule.
    Rule(Breach),
    /// It is too close to a test prompt.
    Contaminated(Evidence),
    /// Its instruction is nearly another's.
    NearDuplicate {
        /// The other.
        of: SampleId,
        /// Jaccard similarity of their word shingles.
        jaccard: f64,
    },
    /// Its instruction says little new.
    NotNovel {
        /// The closest one.
        of: SampleId,
        /// ROUGE-L F-measure with it.
        rouge_l: f64,
    },
}

/// How many candidates met which end. `raw` is the sum of all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurationCounts {
    /// Candidates in all.
    pub raw: u64,
    /// No pairs.
    pub malformed: u64,
    /// Word for word the same as another.
    pub duplicates: u64,
    /// Broke a rule.
    pub filtered: u64,
    /// Too close to a test prompt.
    pub contaminated: u64,
    /// Nearly another.
    pub near_duplicates: u64,
    /// Little new.
    pub not_novel: u64,
    /// Kept.
    pub kept: u64,
}

/// Curates `candidates` against what is trained on already (`existing`: the train split and samples kept in
/// earlier cycles) and against the `test` split, which must not leak in.
pub fn curate(
    candidates: Vec<Candidate>,
    existing: &[Sample],
    test: &[Sample],
    config: &CurationConfig,
) -> Curated {
    let mut pool = Pool::new(existing, test, &candidates, config);
    let mut kept = Vec::new();
    let mut dropped = Vec::new();
    let mut counts = CurationCounts::default();
    for candidate in candidates {
        counts.raw += 1;
        let sample = match candidate {
            Candidate::Sample(sample) => sample,
            Candidate::Malformed(malformed) => {
                counts.malformed += 1;
                dropped.push(Dropped {
                    sample: None,
                    reason: DropReason::Malformed(malformed),
                });
                continue;
            }
        };
        match pool.admit(&sample, &config.rules) {
            Ok(()) => kept.push(sample),
            Err(reason) => {
                counts.add(&reason);
                dropped.push(Dropped {
                    sample: Some(sample),
                    reason,
                });
            }
        }
    }
    counts.kept = kept.len() as u64;
    Curated {
        kept,
        dropped,
        counts,
    }
}

impl CurationCounts {
    fn add(&mut self, reason: &DropReason) {
        let count = match reason {
            DropReason::Malformed(_) => &mut self.malformed,
            DropReason::Duplicate { .. } => &mut self.duplicates,
            DropReason::Rule(_) => &mut self.filtered,
            DropReason::Contaminated(_) => &mut self.contaminated,
            DropReason::NearDuplicate { .. } => &mut self.near_duplicates,
            DropReason::NotNovel { .. } => &mut self.not_novel,
        };
        *count += 1;
    }
}

/// Everything admitted so far, indexed for each comparison.
struct Pool {
    ids: HashSet<SampleId>,
    contamination: Contamination,
    near_duplicates: NearDuplicates,
    novelty: Novelty,
}

impl Pool {
    fn new(existing: &[Sample], test: &[Sample], candidates: &[Candidate], config: &CurationConfig) -> Self {
        let texts = existing
            .iter()
            .chain(candidates.iter().filter_map(|candidate| match candidate {
                Candidate::Sample(sample) => Some(sample),
                Candidate::Malformed(_) => None,
            }));
        let mut pool = Self {
            ids: HashSet::new(),
            contamination: Contamination::new(test, config.contamination.clone()),
            near_duplicates: NearDuplicates::new(config.near_duplicates.clone()),
            novelty: Novelty::new(config.novelty.clone(), texts.map(Sample::instruction)),
        };
        for sample in existing {
            let instruction = sample.instruction();
            pool.ids.insert(sample.id());
            let shingled = pool.near_duplicates.prepare(&instruction);
            pool.near_duplicates.insert(sample.id(), shingled);
            let encoded = pool.novelty.prepare(&instruction);
            pool.novelty.insert(sample.id(), encoded);
        }
        pool
    }

    fn admit(&mut self, sample: &Sample, rules: &Rules) -> Result<(), DropReason> {
        let id = sample.id();
        if self.ids.contains(&id) {
            return Err(DropReason::Duplicate { of: id });
        }
        if let Some(breach) = rules.breach(sample) {
            return Err(DropReason::Rule(breach));
        }
        let instruction = sample.instruction();
        if let Some(evidence) = self.contamination.evidence(&instruction) {
            return Err(DropReason::Contaminated(evidence));
        }
        let shingled = self.near_duplicates.prepare(&instruction);
        if let Some((of, jaccard)) = self.near_duplicates.find(&shingled) {
            return Err(DropReason::NearDuplicate { of, jaccard });
        }
        let encoded = self.novelty.prepare(&instruction);
        if let Some((of, rouge_l)) = self.novelty.find(&encoded) {
            return Err(DropReason::NotNovel { of, rouge_l });
        }
        self.ids.insert(id);
        self.near_duplicates.insert(id, shingled);
        self.novelty.insert(id, encoded);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
