//! `run.proto`: where a run stands and what was measured.

use super::{InvalidMessage, Result, number, required, same_variants, text_for_people};
use crate::ids::Cycle;
use crate::run::{
    Cost, CurationCounts, GateDecision, MetricScore, Quantization, RunStatus, Scores, Stage, Subject,
};
use crate::wire;

same_variants!(
    RunStatus,
    unspecified Err(InvalidMessage::unspecified("a status")),
    Running, Passed, GateNotReached, BudgetSpent, ServiceFailed, Cancelled, Failed
);
same_variants!(
    Stage,
    unspecified Err(InvalidMessage::unspecified("a stage")),
    Train, Infer, Judge, Synthesize
);

impl TryFrom<wire::Subject> for Subject {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Subject) -> Result<Self> {
        use wire::subject::Subject as Wire;
        match wire.subject.ok_or_else(|| InvalidMessage::absent("subject"))? {
            Wire::Base(number) => {
                let base: Quantization = super::enumeration::<wire::Quantization, _>("base", number)?;
                Ok(Self::Base(base))
            }
            Wire::Service(true) => Ok(Self::Service),
            Wire::Service(false) => Err(InvalidMessage::new("service", "true", false)),
            Wire::AdapterCycle(cycle) => {
                super::at_least_1("adapter_cycle", cycle).map(|cycle| Self::Adapter(Cycle(cycle)))
            }
        }
    }
}

impl From<Subject> for wire::Subject {
    fn from(subject: Subject) -> Self {
        use wire::subject::Subject as Wire;
        let subject = match subject {
            Subject::Base(quantization) => Wire::Base(wire::Quantization::from(quantization).into()),
            Subject::Service => Wire::Service(true),
            Subject::Adapter(cycle) => Wire::AdapterCycle(cycle.0),
        };
        Self {
            subject: Some(subject),
        }
    }
}

impl TryFrom<wire::Scores> for Scores {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Scores) -> Result<Self> {
        Ok(Self {
            similarity: required("similarity", wire.similarity)?,
            precision: required("precision", wire.precision)?,
            n_verdicts: wire.n_verdicts,
            n_unparsed: wire.n_unparsed,
        })
    }
}

impl From<Scores> for wire::Scores {
    fn from(scores: Scores) -> Self {
        Self {
            similarity: Some(scores.similarity.into()),
            precision: Some(scores.precision.into()),
            n_verdicts: scores.n_verdicts,
            n_unparsed: scores.n_unparsed,
        }
    }
}

/// `None` for NaN, which stands for "no value" on the wire.
fn unless_nan(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

impl TryFrom<wire::MetricScore> for MetricScore {
    type Error = InvalidMessage;
    fn try_from(wire: wire::MetricScore) -> Result<Self> {
        let mean = unless_nan(wire.mean)
            .map(|mean| number("mean", mean, "1 to 100, or NaN", |x| (1.0..=100.0).contains(&x)));
        let coverage = unless_nan(wire.coverage)
            .map(|share| number("coverage", share, "0 to 1, or NaN", |x| (0.0..=1.0).contains(&x)));
        let interval = match (unless_nan(wire.mean_low), unless_nan(wire.mean_high)) {
            (None, None) => None,
            (Some(low), Some(high)) if low.is_finite() && high.is_finite() && low <= high => {
                Some((low, high))
            }
            _ => {
                let found = format!("{} and {}", wire.mean_low, wire.mean_high);
                return Err(InvalidMessage::new(
                    "mean_low",
                    "finite and at most mean_high, or both NaN",
                    found,
                ));
            }
        };
        Ok(Self {
            mean: mean.transpose()?,
            interval,
            coverage: coverage.transpose()?,
        })
    }
}

impl From<MetricScore> for wire::MetricScore {
    fn from(score: MetricScore) -> Self {
        let (mean_low, mean_high) = score.interval.unwrap_or((f64::NAN, f64::NAN));
        Self {
            mean: score.mean.unwrap_or(f64::NAN),
            mean_low,
            mean_high,
            coverage: score.coverage.unwrap_or(f64::NAN),
        }
    }
}

impl TryFrom<wire::GateDecision> for GateDecision {
    type Error = InvalidMessage;
    fn try_from(wire: wire::GateDecision) -> Result<Self> {
        let value = unless_nan(wire.value).map(|value| number("value", value, "finite, or NaN", |_| true));
        Ok(Self {
            rule: text_for_people(wire.rule),
            value: value.transpose()?,
            threshold: number("threshold", wire.threshold, "a finite number", |_| true)?,
            passed: wire.passed,
            reason: text_for_people(wire.reason),
        })
    }
}

impl From<GateDecision> for wire::GateDecision {
    fn from(decision: GateDecision) -> Self {
        Self {
            rule: decision.rule,
            value: decision.value.unwrap_or(f64::NAN),
            threshold: decision.threshold,
            passed: decision.passed,
            reason: decision.reason,
        }
    }
}

impl TryFrom<wire::CurationCounts> for CurationCounts {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CurationCounts) -> Result<Self> {
        let parts = [
            wire.n_kept,
            wire.n_duplicates,
            wire.n_filtered,
            wire.n_contaminated,
        ];
        let sum: u64 = parts.into_iter().map(u64::from).sum();
        if sum != u64::from(wire.n_raw) {
            return Err(InvalidMessage::new(
                "n_raw",
                &format!("{sum}, the sum of its parts"),
                wire.n_raw,
            ));
        }
        Ok(Self {
            n_raw: wire.n_raw,
            n_kept: wire.n_kept,
            n_duplicates: wire.n_duplicates,
            n_filtered: wire.n_filtered,
            n_contaminated: wire.n_contaminated,
        })
    }
}

impl From<CurationCounts> for wire::CurationCounts {
    fn from(counts: CurationCounts) -> Self {
        Self {
            n_raw: counts.n_raw,
            n_kept: counts.n_kept,
            n_duplicates: counts.n_duplicates,
            n_filtered: counts.n_filtered,
            n_contaminated: counts.n_contaminated,
        }
    }
}

impl TryFrom<wire::Cost> for Cost {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Cost) -> Result<Self> {
        Ok(Self {
            n_calls: wire.n_calls,
            input_tokens: wire.input_tokens,
            output_tokens: wire.output_tokens,
            nano_usd: wire.nano_usd,
            n_calls_unpriced: wire.n_calls_unpriced,
            n_calls_unknown: wire.n_calls_unknown,
        })
    }
}

impl From<Cost> for wire::Cost {
    fn from(cost: Cost) -> Self {
        Self {
            n_calls: cost.n_calls,
            input_tokens: cost.input_tokens,
            output_tokens: cost.output_tokens,
            nano_usd: cost.nano_usd,
            n_calls_unpriced: cost.n_calls_unpriced,
            n_calls_unknown: cost.n_calls_unknown,
        }
    }
}
