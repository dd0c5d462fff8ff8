//! Mean score and coverage percentage of a subject, with intervals that respect that the K answers to one prompt
//! stand or fall together.
//!
//! Invariant: a verdict that could not be read enters no mean and is counted instead; the unit of every interval
//! is the prompt.
//!
//! With s the score of grading m of answer k to prompt i, over n prompts:
//! (5) s̄(i,k) = 1/M Σ s(i,k,m) over the gradings that were read; (6) mean = 1/(nK) Σ s̄(i,k);
//! (7) coverage = 1/(nK) Σ 1[s̄(i,k) ≥ ζ]. (LlamaDuo, equations 5 to 7.)

mod interval;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use interval::{Interval, prompts_needed};

use crate::verdict::Verdict;

/// The coverage score ζ of the default gate: an answer whose mean score reaches it counts as covered.
pub const DEFAULT_COVERAGE_SCORE: f64 = 70.0;

/// What is graded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// How alike response and reference are.
    Similarity,
    /// How right the response is.
    Precision,
}

impl Metric {
    /// Both, in the order of the report.
    pub const ALL: [Self; 2] = [Self::Similarity, Self::Precision];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Similarity => "similarity",
            Self::Precision => "precision",
        }
    }
}

/// How the grades of all answers become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Mean score, 1 to 100.
    Mean,
    /// Share of answers at or above ζ, 0 to 1.
    Coverage,
}

impl Statistic {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Coverage => "coverage",
        }
    }
}

/// All gradings of one answer, averaged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ResponseScore {
    /// The prompt, from 0.
    pub prompt_index: u32,
    /// Which answer to it, from 0.
    pub k: u32,
    /// s̄ of similarity, absent when no grading could be read.
    pub similarity: Option<f64>,
    /// s̄ of precision.
    pub precision: Option<f64>,
    /// Gradings read.
    pub graded: u32,
    /// Gradings not read.
    pub unparsed: u32,
}

impl ResponseScore {
    /// s̄ of `metric`.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Similarity => self.similarity,
            Metric::Precision => self.precision,
        }
    }
}

/// A subject's answers, graded.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    responses: Vec<ResponseScore>,
    coverage_score: f64,
}

/// A subject's numbers as the report holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// How alike its answers and the references are.
    pub similarity: MetricScore,
    /// How right its answers are.
    pub precision: MetricScore,
    /// Gradings asked for and answered, read or not.
    pub verdicts: u64,
    /// Those among them that could not be read.
    pub unparsed: u64,
    /// Different prompts with at least one graded answer: the n of the intervals.
    pub prompts: u64,
    /// Answers with at least one grading, read or not.
    pub responses: u64,
    /// Answers none of whose gradings could be read; they are in no mean.
    pub ungraded_responses: u64,
}

/// Mean and coverage of one metric. Absent values mean that nothing was graded, or, for intervals, that there are
/// fewer than two prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricScore {
    /// Mean score, 1 to 100.
    pub mean: Option<f64>,
    /// Its 95 % interval: Student's t over prompts.
    pub mean_interval: Option<Interval>,
    /// Share of answers at or above ζ, 0 to 1.
    pub coverage: Option<f64>,
    /// Its 95 % interval: Wilson's, at the effective sample size of the clustered design.
    pub coverage_interval: Option<Interval>,
}

/// A local model's number over the service LLM's, on the prompts that both were graded on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// local / service; absent when the service's number is zero or no prompt is shared.
    pub value: Option<f64>,
    /// Its 95 % interval, by Fieller's theorem for means and by MOVER-R for coverages; absent below two prompts or when
    /// the service's number is not distinguishable from zero.
    pub interval: Option<Interval>,
    /// Prompts that both were graded on.
    pub prompts: u64,
}

impl Judged {
    /// Averages `verdicts`. Of two verdicts with the same (prompt, k, m) the first counts.
    pub fn new(verdicts: &[Verdict], coverage_score: f64) -> Self {
        let mut seen = BTreeSet::new();
        let mut answers: BTreeMap<(u32, u32), Tally> = BTreeMap::new();
        for verdict in verdicts {
            if seen.insert((verdict.prompt_index, verdict.k, verdict.m)) {
                answers
                    .entry((verdict.prompt_index, verdict.k))
                    .or_default()
                    .add(verdict);
            }
        }
        let responses = answers
            .into_iter()
            .map(|((prompt_index, k), tally)| tally.score(prompt_index, k))
            .collect();
        Self {
            responses,
            coverage_score,
        }
    }

    /// Every answer's score, by prompt and k.
    pub fn responses(&self) -> &[ResponseScore] {
        &self.responses
    }

    /// The ζ that coverage is counted at.
    pub fn coverage_score(&self) -> f64 {
        self.coverage_score
    }

    /// The numbers of the report.
    pub fn scores(&self) -> Scores {
        let sum = |count: fn(&ResponseScore) -> u32| self.responses.iter().map(|r| u64::from(count(r))).sum();
        let unparsed: u64 = sum(|response| response.unparsed);
        let graded: u64 = sum(|response| response.graded);
        Scores {
            similarity: self.metric_score(Metric::Similarity),
            precision: self.metric_score(Metric::Precision),
            verdicts: graded + unparsed,
            unparsed,
            prompts: self.clusters(Metric::Similarity, Statistic::Mean).len() as u64,
            responses: self.responses.len() as u64,
            ungraded_responses: self
                .responses
                .iter()
                .filter(|response| response.graded == 0)
                .count() as u64,
        }
    }

    /// How many answers' mean scores fall into each tenth of the scale: 1 to 10, above 10 to 20, …
    pub fn histogram(&self, metric: Metric) -> [u64; 10] {
        let mut bins = [0; 10];
        for score in self.responses.iter().filter_map(|response| response.get(metric)) {
            // Scores are 1..=100, so the tenth is 0..=9; min guards the bound against rounding.
            let tenth = ((score - 1e-9) / 10.0).max(0.0) as usize;
            bins[tenth.min(9)] += 1;
        }
        bins
    }

    fn metric_score(&self, metric: Metric) -> MetricScore {
        let means = self.clusters(metric, Statistic::Mean);
        let coverages = self.clusters(metric, Statistic::Coverage);
        let (means, coverages): (Vec<_>, Vec<_>) =
            (means.into_values().collect(), coverages.into_values().collect());
        MetricScore {
            mean: interval::mean(&means),
            mean_interval: interval::mean_interval(&means).map(|interval| Interval {
                low: interval.low.max(1.0),
                high: interval.high.min(100.0),
            }),
            coverage: interval::mean(&coverages),
            coverage_interval: interval::share_interval(&coverages),
        }
    }

    /// Per prompt: how many of its answers count, and the sum of their values.
    fn clusters(&self, metric: Metric, statistic: Statistic) -> BTreeMap<u32, interval::Cluster> {
        let mut clusters: BTreeMap<u32, interval::Cluster> = BTreeMap::new();
        for response in &self.responses {
            let Some(score) = response.get(metric) else {
                continue;
            };
            let value = match statistic {
                Statistic::Mean => score,
                Statistic::Coverage => f64::from(u8::from(score >= self.coverage_score)),
            };
            let cluster = clusters.entry(response.prompt_index).or_default();
            cluster.count += 1.0;
            cluster.sum += value;
        }
        clusters
    }
}

/// `local` over `service` for one metric and statistic, paired by prompt.
pub fn ratio(local: &Judged, service: &Judged, metric: Metric, statistic: Statistic) -> Ratio {
    let local = local.clusters(metric, statistic);
    let service = service.clusters(metric, statistic);
    let pairs: Vec<(interval::Cluster, interval::Cluster)> = local
        .iter()
        .filter_map(|(prompt, cluster)| Some((*cluster, *service.get(prompt)?)))
        .collect();
    let (value, interval) = match statistic {
        Statistic::Mean => interval::mean_ratio(&pairs),
        Statistic::Coverage => interval::share_ratio(&pairs),
    };
    Ratio {
        value,
        interval,
        prompts: pairs.len() as u64,
    }
}

#[derive(Default)]
struct Tally {
    similarity: u64,
    precision: u64,
    graded: u32,
    unparsed: u32,
}

impl Tally {
    fn add(&mut self, verdict: &Verdict) {
        match verdict.outcome.judgement() {
            Some(judgement) => {
                self.similarity += u64::from(judgement.similarity.score.get());
                self.precision += u64::from(judgement.precision.score.get());
                self.graded += 1;
            }
            None => self.unparsed += 1,
        }
    }

    fn score(self, prompt_index: u32, k: u32) -> ResponseScore {
        let mean = |sum: u64| (self.graded > 0).then(|| sum as f64 / f64::from(self.graded));
        ResponseScore {
            prompt_index,
            k,
            similarity: mean(self.similarity),
            precision: mean(self.precision),
            graded: self.graded,
            unparsed: self.unparsed,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
