//! What a run cost: the sums of the ledger, and which part of the run they went to.
//!
//! Invariant: the sums are the ledger's; the parts count each answered call once, where its rows were used first, so that
//! they may be smaller than the sums by what was paid for and not used.

use std::collections::{BTreeMap, BTreeSet};

use llamaduo_artifacts::Directory;
use llamaduo_data::report::{CostPart, CostReport};
use llamaduo_data::synthesis::Candidate;
use llamaduo_data::{NanoUsd, Provenance, ServiceCall};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{Cost, Stage, Subject};
use llamaduo_proto::task::TaskOutput;

use crate::aggregate::{Error, inputs};
use crate::machine::Run;

/// The report's part on cost.
pub(super) fn report(artifacts: &Directory, run: &Run, cost: Cost) -> Result<CostReport, Error> {
    let mut seen = BTreeSet::new();
    let mut parts: BTreeMap<(Cycle, Stage), CostPart> = BTreeMap::new();
    for (_, task) in run.tasks_in_order() {
        let (Some(result), cycle) = (&task.record.result, task.record.cycle) else {
            continue;
        };
        let (stage, subject) = run.stage(task);
        let calls = match &result.output {
            TaskOutput::Infer(output) if subject == Some(Subject::Service) => {
                let rows: Vec<llamaduo_data::Response> =
                    inputs::rows(artifacts, "responses", &output.responses)?;
                rows.into_iter().filter_map(|row| row.call).collect()
            }
            TaskOutput::Judge(output) => {
                let rows: Vec<llamaduo_data::Verdict> =
                    inputs::rows(artifacts, "verdicts", &output.verdicts)?;
                rows.into_iter().map(|row| row.call).collect()
            }
            TaskOutput::Synthesize(output) => {
                let rows: Vec<Candidate> = inputs::rows(artifacts, "synthesized items", &output.samples)?;
                rows.into_iter().filter_map(call_of).collect()
            }
            TaskOutput::Infer(_) | TaskOutput::Train(_) => Vec::new(),
        };
        for call in calls {
            if seen.insert(call.id.clone()) {
                add(
                    parts.entry((cycle, stage)).or_insert_with(|| empty(cycle, stage)),
                    &call,
                );
            }
        }
    }
    Ok(CostReport {
        calls: cost.n_calls,
        input_tokens: cost.input_tokens,
        output_tokens: cost.output_tokens,
        usd: (cost.n_calls_unpriced == 0).then(|| NanoUsd(cost.nano_usd).usd()),
        unknown_calls: cost.n_calls_unknown,
        parts: parts.into_values().collect(),
    })
}

fn call_of(candidate: Candidate) -> Option<ServiceCall> {
    match candidate {
        Candidate::Sample(sample) => match sample.provenance() {
            Provenance::Synthetic { call, .. } => Some(call.clone()),
            Provenance::Coverage { .. } => None,
        },
        Candidate::Malformed(_) => None,
    }
}

fn empty(cycle: Cycle, stage: Stage) -> CostPart {
    let stage = match stage {
        Stage::Train => "train",
        Stage::Infer => "infer",
        Stage::Judge => "judge",
        Stage::Synthesize => "synthesize",
    };
    CostPart {
        cycle: cycle.0,
        stage: stage.to_owned(),
        calls: 0,
        input_tokens: 0,
        output_tokens: 0,
        cost: Some(NanoUsd(0)),
    }
}

fn add(part: &mut CostPart, call: &ServiceCall) {
    part.calls += 1;
    part.input_tokens = part.input_tokens.saturating_add(call.input_tokens);
    part.output_tokens = part.output_tokens.saturating_add(call.output_tokens);
    part.cost = part
        .cost
        .zip(call.cost)
        .map(|(sum, cost)| sum.saturating_add(cost));
}
