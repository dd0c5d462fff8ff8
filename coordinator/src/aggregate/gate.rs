//! Whether a cycle's adapter is good enough.
//!
//! Invariant: the decision compares answers to the same test prompts, graded by the same judge.

use llamaduo_artifacts::Directory;
use llamaduo_data::gate::{self, GateCheck, GateOutcome, GateRule};
use llamaduo_data::score::{Judged, Metric};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{GateDecision, GateRule as Rule, RunSpec, Subject};

use super::{Error, inputs};
use crate::machine::Run;

/// Decides about `cycle`.
pub(super) fn decide(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cycle: Cycle,
) -> Result<GateDecision, Error> {
    let local = inputs::judged(artifacts, run, spec, cycle, Subject::Adapter(cycle))?;
    let service = inputs::judged(artifacts, run, spec, Cycle(0), Subject::Service)?;
    Ok(decision(evaluate(&spec.gate.rule, &local, &service)))
}

/// Holds `local` against the run's rule.
pub(super) fn evaluate(rule: &Rule, local: &Judged, service: &Judged) -> GateOutcome {
    let absolute = |mean, coverage| gate::evaluate(&GateRule::Absolute { mean, coverage }, local, service);
    match *rule {
        Rule::Relative { ratio_min } => gate::evaluate(&relative(ratio_min), local, service),
        Rule::Absolute {
            similarity_mean_min,
            precision_mean_min,
            coverage_min,
        } => {
            let similarity = absolute(similarity_mean_min, coverage_min);
            if similarity_mean_min == precision_mean_min {
                return similarity;
            }
            let precision = absolute(precision_mean_min, coverage_min);
            both(similarity, precision)
        }
    }
}

/// The rule of the other kind, for comparison in the report.
pub(super) fn other_rule(rule: &Rule) -> GateRule {
    match rule {
        Rule::Relative { .. } => GateRule::paper(),
        Rule::Absolute { .. } => GateRule::default(),
    }
}

/// The default relative rule with another bound.
fn relative(ratio_min: f64) -> GateRule {
    match GateRule::default() {
        GateRule::Relative { statistics, .. } => GateRule::Relative {
            floor: ratio_min,
            statistics,
        },
        absolute @ GateRule::Absolute { .. } => absolute,
    }
}

/// Thresholds that differ by metric: each metric's checks from the outcome made with its own threshold.
fn both(similarity: GateOutcome, precision: GateOutcome) -> GateOutcome {
    let of = |outcome: &GateOutcome, metric: Metric| {
        outcome
            .checks
            .iter()
            .filter(|check| check.metric == metric)
            .cloned()
            .collect::<Vec<_>>()
    };
    let checks = [
        of(&similarity, Metric::Similarity),
        of(&precision, Metric::Precision),
    ]
    .concat();
    let all_pass = !checks.is_empty() && checks.iter().all(|check| check.passed);
    // An outcome whose checks all pass and that still does not has a complaint about the gradings.
    let complains =
        |outcome: &GateOutcome| !outcome.passed && outcome.checks.iter().all(|check| check.passed);
    let passed = all_pass && !complains(&similarity) && !complains(&precision);
    let fails = |outcome: &GateOutcome, metric| of(outcome, metric).iter().any(|check| !check.passed);
    let reason = match (passed, fails(&precision, Metric::Precision)) {
        (true, _) => similarity.reason,
        (false, true) => precision.reason,
        (false, false) => similarity.reason,
    };
    let rule = format!(
        "for similarity {}; for precision {}",
        similarity.rule, precision.rule
    );
    GateOutcome {
        rule,
        checks,
        passed,
        reason,
    }
}

/// The decision as the run's record holds it: of all comparisons the closest.
fn decision(outcome: GateOutcome) -> GateDecision {
    let room = |check: &&GateCheck| {
        check.value.map_or(f64::NEG_INFINITY, |value| {
            value / check.needed.max(f64::MIN_POSITIVE)
        })
    };
    let closest = outcome.checks.iter().min_by(|a, b| room(a).total_cmp(&room(b)));
    GateDecision {
        rule: outcome.rule.clone(),
        value: closest.and_then(|check| check.value),
        threshold: closest.map_or(0.0, |check| check.needed),
        passed: outcome.passed,
        reason: outcome.reason,
    }
}
