//! Whether a cycle's adapter is good enough.
//!
//! Invariant: the decision compares answers to the same test prompts, graded by the same judge.

use llamaduo_artifacts::Directory;
use llamaduo_data::gate::{self, GateOutcome, GateRule};
use llamaduo_data::score::Judged;
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{Gate, GateDecision, GateRule as Rule, RunSpec, Subject};

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

/// Holds `local` against `rule`.
pub(super) fn evaluate(rule: &Rule, local: &Judged, service: &Judged) -> GateOutcome {
    gate::evaluate(&in_data(rule), local, service)
}

fn in_data(rule: &Rule) -> GateRule {
    match *rule {
        Rule::Relative { ratio_min } => GateRule::relative(ratio_min),
        Rule::Absolute {
            similarity_mean_min,
            precision_mean_min,
            coverage_min,
        } => GateRule::Absolute {
            similarity_mean: similarity_mean_min,
            precision_mean: precision_mean_min,
            coverage: coverage_min,
        },
    }
}

/// The rule of the other kind, for comparison in the report: the one that the run was given, else the default.
pub(super) fn other_rule(gate: &Gate) -> GateRule {
    match (&gate.compared, &gate.rule) {
        (Some(rule), _) => in_data(rule),
        (None, Rule::Relative { .. }) => GateRule::paper(),
        (None, Rule::Absolute { .. }) => GateRule::default(),
    }
}

/// The decision as the run's record holds it: of all comparisons the closest.
fn decision(outcome: GateOutcome) -> GateDecision {
    let closest = outcome
        .checks
        .iter()
        .min_by(|a, b| a.margin().total_cmp(&b.margin()));
    GateDecision {
        rule: outcome.rule.clone(),
        value: closest.and_then(|check| check.value),
        threshold: closest.map_or(0.0, |check| check.needed),
        passed: outcome.passed,
        reason: outcome.reason,
    }
}
