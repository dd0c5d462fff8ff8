//! Whether the local model may take over.
//!
//! Invariant: the outcome names its rule, every number it looked at and, in one sentence, why it passed or not;
//! a number that is missing never passes.

use serde::{Deserialize, Serialize};

use crate::score::{Judged, Metric, Statistic, ratio};

/// A rule to pass by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GateRule {
    /// The lower bound of local/service must reach `floor` on similarity and on precision, for each of
    /// `statistics`, both graded on the same test prompts.
    Relative {
        /// The least share of the service LLM's own number, 0 to 1 and beyond.
        floor: f64,
        /// Which numbers are compared.
        statistics: Vec<Statistic>,
    },
    /// The paper's: the local model's own numbers must reach fixed thresholds.
    Absolute {
        /// Least mean similarity, 1 to 100.
        similarity_mean: f64,
        /// Least mean precision, 1 to 100.
        precision_mean: f64,
        /// Least coverage, 0 to 1.
        coverage: f64,
    },
}

/// The least share of the service LLM's own numbers that the default gate asks for.
pub const DEFAULT_RATIO: f64 = 0.9;

/// The paper's least mean score.
pub const PAPER_MEAN: f64 = 90.0;

/// The least coverage beside it, for which the paper names no number: as many of 100 as points.
pub const PAPER_COVERAGE: f64 = 0.9;

impl Default for GateRule {
    /// 0.9 of the service LLM, on mean and coverage: it asks for what the service itself can reach, which the
    /// paper's fixed 90 of 100 does not.
    fn default() -> Self {
        Self::relative(DEFAULT_RATIO)
    }
}

impl GateRule {
    /// The default relative rule with another floor.
    pub fn relative(floor: f64) -> Self {
        Self::Relative {
            floor,
            statistics: vec![Statistic::Mean, Statistic::Coverage],
        }
    }

    /// The paper's thresholds.
    pub fn paper() -> Self {
        Self::Absolute {
            similarity_mean: PAPER_MEAN,
            precision_mean: PAPER_MEAN,
            coverage: PAPER_COVERAGE,
        }
    }

    /// The rule in words. `coverage_score` is the ζ that coverage is counted at.
    pub fn describe(&self, coverage_score: f64) -> String {
        match self {
            Self::Relative { floor, statistics } => {
                let names: Vec<&str> = statistics.iter().map(|statistic| statistic.name()).collect();
                format!(
                    "lower 95 % bound of local/service ≥ {floor} on similarity and precision ({}, coverage score \
                     {coverage_score})",
                    names.join(" and ")
                )
            }
            Self::Absolute {
                similarity_mean: mean,
                precision_mean,
                coverage,
            } if mean == precision_mean => format!(
                "mean ≥ {mean} and coverage ≥ {coverage} on similarity and precision (coverage score {coverage_score})"
            ),
            Self::Absolute {
                similarity_mean,
                precision_mean,
                coverage,
            } => format!(
                "mean similarity ≥ {similarity_mean}, mean precision ≥ {precision_mean}, and coverage ≥ {coverage} on \
                 both (coverage score {coverage_score})"
            ),
        }
    }
}

/// What a rule said of a cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateOutcome {
    /// The rule, in words.
    pub rule: String,
    /// Each number it looked at.
    pub checks: Vec<GateCheck>,
    /// Whether all of them sufficed.
    pub passed: bool,
    /// Why, in a sentence.
    pub reason: String,
}

/// One comparison of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateCheck {
    /// What is compared.
    pub metric: Metric,
    /// Which number of it.
    pub statistic: Statistic,
    /// The estimate: local/service, or the local model's own number.
    pub estimate: Option<f64>,
    /// The number held against `needed`: the lower bound for the relative rule, the estimate for the absolute.
    pub value: Option<f64>,
    /// The least it may be.
    pub needed: f64,
    /// Whether it is.
    pub passed: bool,
    /// Why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Missing>,
}

/// Why a number is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// No answer of the local model was graded.
    NothingGraded,
    /// Fewer than two prompts have graded answers of both models.
    TooFewPrompts,
    /// The service LLM's own number is zero or cannot be told from it, so that nothing can be compared with it.
    ServiceNearZero,
}

impl GateCheck {
    /// How far the value is above what is needed, as a ratio, so that numbers of different units can be compared; a
    /// missing value is below everything.
    pub fn margin(&self) -> f64 {
        match self.value {
            None => f64::NEG_INFINITY,
            Some(value) => margin(value, self.needed),
        }
    }
}

/// `value` over `needed`; endless where nothing is needed.
fn margin(value: f64, needed: f64) -> f64 {
    if needed > 0.0 {
        value / needed
    } else {
        f64::INFINITY
    }
}

/// Share of a subject's answers that may stay without any readable grading. Beyond it the means describe only
/// the answers that the judge could cope with, and a gate on them would favour a model that confuses the judge.
pub const UNGRADED_SHARE_MAX: f64 = 0.05;

/// Holds `local` against `rule`. `service` is the service LLM's own fresh answers to the same prompts, graded by
/// the same judge.
pub fn evaluate(rule: &GateRule, local: &Judged, service: &Judged) -> GateOutcome {
    let checks: Vec<GateCheck> = match rule {
        GateRule::Relative { floor, statistics } => each(statistics, |metric, statistic| {
            let ratio = ratio(local, service, metric, statistic);
            let low = ratio.interval.map(|interval| interval.low);
            let missing = match ratio.prompts {
                0 | 1 => Missing::TooFewPrompts,
                _ => Missing::ServiceNearZero,
            };
            check((metric, statistic), ratio.value, low, *floor, missing)
        }),
        GateRule::Absolute {
            similarity_mean,
            precision_mean,
            coverage,
        } => {
            let scores = local.scores();
            each(&[Statistic::Mean, Statistic::Coverage], |metric, statistic| {
                let (score, mean) = match metric {
                    Metric::Similarity => (scores.similarity, *similarity_mean),
                    Metric::Precision => (scores.precision, *precision_mean),
                };
                let (value, needed) = match statistic {
                    Statistic::Mean => (score.mean, mean),
                    Statistic::Coverage => (score.coverage, *coverage),
                };
                check((metric, statistic), value, value, needed, Missing::NothingGraded)
            })
        }
    };
    let complaint = ungraded("local model", local).or_else(|| match rule {
        GateRule::Relative { .. } => ungraded("service LLM", service),
        GateRule::Absolute { .. } => None,
    });
    let passed = complaint.is_none() && !checks.is_empty() && checks.iter().all(|check| check.passed);
    let reason = complaint.unwrap_or_else(|| explain(rule, &checks, local.coverage_score()));
    GateOutcome {
        rule: rule.describe(local.coverage_score()),
        checks,
        passed,
        reason,
    }
}

fn each(statistics: &[Statistic], check: impl Fn(Metric, Statistic) -> GateCheck) -> Vec<GateCheck> {
    let check = &check;
    statistics
        .iter()
        .flat_map(|&statistic| Metric::ALL.map(|metric| check(metric, statistic)))
        .collect()
}

/// `missing` says why, should there be no value.
fn check(
    (metric, statistic): (Metric, Statistic),
    estimate: Option<f64>,
    value: Option<f64>,
    needed: f64,
    missing: Missing,
) -> GateCheck {
    let passed = value.is_some_and(|value| value >= needed);
    GateCheck {
        metric,
        statistic,
        estimate,
        value,
        needed,
        passed,
        missing: value.is_none().then_some(missing),
    }
}

fn ungraded(subject: &str, judged: &Judged) -> Option<String> {
    let scores = judged.scores();
    let share = scores.ungraded_responses as f64 / scores.responses.max(1) as f64;
    (share > UNGRADED_SHARE_MAX).then(|| {
        format!(
            "{} of {} answers of the {subject} have no grading that could be read, so their scores cannot \
             be trusted.",
            scores.ungraded_responses, scores.responses
        )
    })
}

fn explain(rule: &GateRule, checks: &[GateCheck], coverage_score: f64) -> String {
    if let Some((check, missing)) = checks.iter().find_map(|check| Some((check, check.missing?))) {
        return why_missing(check, missing, coverage_score);
    }
    // The check with the least room decides what the sentence speaks of.
    let tightest = checks.iter().min_by(|a, b| a.margin().total_cmp(&b.margin()));
    let Some(tightest) = tightest else {
        return "The rule compares nothing.".to_owned();
    };
    let number = |value: Option<f64>| {
        value.map_or("nothing".to_owned(), |value| {
            in_words(tightest.statistic, rule, value)
        })
    };
    let (metric, statistic) = (tightest.metric.name(), tightest.statistic.name());
    let finding = match rule {
        GateRule::Relative { .. } => format!(
            "the local model reaches {} of the service LLM's {statistic} of {metric} (at least {} with 95 % confidence)",
            number(tightest.estimate),
            number(tightest.value)
        ),
        GateRule::Absolute { .. } => format!("the {statistic} of {metric} is {}", number(tightest.value)),
    };
    let needed = number(Some(tightest.needed));
    let (all, failing) = (checks.len(), checks.iter().filter(|check| !check.passed).count());
    match failing {
        0 => format!("In the closest of {all} comparisons {finding}; {needed} is needed."),
        _ => format!(
            "In the worst of {all} comparisons {finding}; {needed} is needed ({failing} of {all} fall short)."
        ),
    }
}

/// What cannot be compared, why, and what to do about it.
fn why_missing(check: &GateCheck, missing: Missing, coverage_score: f64) -> String {
    let why = match (missing, check.statistic) {
        (Missing::NothingGraded, _) => {
            "no answer of the local model has a grading that could be read".to_owned()
        }
        (Missing::TooFewPrompts, _) => {
            "it needs graded answers of both models to at least two prompts".to_owned()
        }
        (Missing::ServiceNearZero, Statistic::Coverage) => format!(
            "the service LLM's own coverage is (nearly) 0 at a coverage score of {coverage_score}; lower \
             gate.coverage_score"
        ),
        (Missing::ServiceNearZero, Statistic::Mean) => {
            "the service LLM's own mean varies too much over so few prompts; add test prompts".to_owned()
        }
    };
    let (statistic, metric) = (check.statistic.name(), check.metric.name());
    format!("The {statistic} of {metric} cannot be compared: {why}.")
}

/// Mean scores of 100 as they are, everything else in per cent.
fn in_words(statistic: Statistic, rule: &GateRule, value: f64) -> String {
    match (rule, statistic) {
        (GateRule::Absolute { .. }, Statistic::Mean) => format!("{value:.1}"),
        _ => format!("{:.1} %", 100.0 * value),
    }
}

#[cfg(test)]
mod tests;
