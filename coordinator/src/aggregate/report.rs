//! The report on a run: what the data crate renders, filled from the run and its artifacts.
//!
//! Invariant: the report says only what artifacts and the store hold; what a run never reached is absent from it.

mod cost;
pub(super) mod examples;

use std::collections::BTreeMap;

use llamaduo_artifacts::Directory;
use llamaduo_data::gate;
use llamaduo_data::report::{
    About, Compute as Products, CycleReport, LossPoint, Quantization as Held, Report, Status, SubjectReport,
    SynthesisReport, TrainReport, Training,
};
use llamaduo_data::score::Judged;
use llamaduo_proto::Digest;
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::run::{
    Compute, Cost, LossOn, Quantization, RunSpec, RunStatus, Subject, TrainFrom, TrainSettings,
};
use llamaduo_proto::task::{TaskOutput, TrainOutput};

use super::gate::{evaluate, other_rule};
use super::{Error, inputs};
use crate::machine::{Run, TaskKind};

/// How the model of the service that ships with the program is called; its numbers say nothing of a real service.
const STAND_IN_PREFIX: &str = "stand-in";

/// Makes the report on `run` and gives its manifest.
pub(super) fn make(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cost: Cost,
    time_ms: u64,
) -> Result<Digest, Error> {
    let what = "the report";
    let report = report(artifacts, run, spec, cost, time_ms)?;
    let rendered = report.render().map_err(|source| Error::Encode { what, source })?;
    let own = [
        ("report.json".to_owned(), rendered.json),
        ("report.html".to_owned(), rendered.html),
    ];
    let mut files = BTreeMap::new();
    for (name, text) in own.into_iter().chain(rendered.files) {
        files.insert(name, inputs::store(artifacts, what, text.as_bytes())?);
    }
    let results = run
        .tasks_in_order()
        .into_iter()
        .filter_map(|(_, task)| task.record.result.as_ref());
    let curated = run
        .cycles
        .values()
        .filter_map(|record| record.curation.map(|curation| curation.manifest));
    let parents = [spec.coverage.train, spec.coverage.test].into_iter();
    let parents = parents
        .chain(results.map(|result| result.manifest))
        .chain(curated)
        .collect();
    inputs::store_manifest(
        artifacts,
        &Manifest {
            kind: ManifestKind::Report,
            files,
            parents,
        },
    )
}

/// The subjects that were judged, with their grades.
pub(super) type AllJudged = BTreeMap<(Cycle, Subject), Judged>;

fn report(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cost: Cost,
    time_ms: u64,
) -> Result<Report, Error> {
    let mut all: AllJudged = BTreeMap::new();
    for (cycle, record) in &run.cycles {
        for scored in &record.scores {
            let judged = inputs::judged(artifacts, run, spec, *cycle, scored.subject)?;
            all.insert((*cycle, scored.subject), judged);
        }
    }
    let subject = |subject| all.get(&(Cycle(0), subject)).map(SubjectReport::new);
    let quantization = spec.local_model.quantization;
    let unquantized =
        (quantization != Quantization::None).then(|| subject(Subject::Base(Quantization::None)));
    let cycles = run.cycles.keys().filter(|cycle| **cycle > Cycle(0));
    let cycles = cycles
        .map(|cycle| cycle_report(artifacts, run, spec, *cycle, &all))
        .collect::<Result<_, _>>()?;
    let ending = run.head.ending.as_ref();
    let about = about(run, spec, time_ms);
    let examples = examples::examples(artifacts, run, spec, &all, &about)?;
    Ok(Report {
        status: status(ending.map_or(run.head.status, |ending| ending.status)),
        reason: ending.map_or_else(|| run.head.reason.clone(), |ending| ending.reason.clone()),
        about,
        base: subject(Subject::Base(quantization)),
        base_unquantized: unquantized.flatten(),
        service: subject(Subject::Service),
        cycles,
        cost: cost::report(artifacts, run, cost)?,
        examples,
    })
}

fn status(status: RunStatus) -> Status {
    match status {
        RunStatus::Running => Status::Running,
        RunStatus::Passed => Status::Passed,
        RunStatus::GateNotReached => Status::GateNotReached,
        RunStatus::BudgetSpent => Status::BudgetSpent,
        RunStatus::ServiceFailed => Status::ServiceFailed,
        RunStatus::Cancelled => Status::Cancelled,
        RunStatus::Failed => Status::Failed,
    }
}

fn about(run: &Run, spec: &RunSpec, time_ms: u64) -> About {
    About {
        run: run.id.to_string(),
        task: if spec.topic.is_empty() {
            spec.name.clone()
        } else {
            spec.topic.clone()
        },
        local_model: spec.local_model.reference.clone(),
        service_model: spec.service_llm.model.clone(),
        judge_model: spec.judge_llm.model.clone(),
        quantization: match spec.local_model.quantization {
            Quantization::Nf4Double => Held::Nf4,
            Quantization::Nf4 => Held::Nf4Single,
            Quantization::None => Held::None,
        },
        compute: match spec.local_model.compute {
            Compute::F32 => Products::F32,
            Compute::Bf16 => Products::Bf16,
            Compute::Int16 => Products::Int16,
        },
        stand_in: spec.service_llm.model.starts_with(STAND_IN_PREFIX),
        judge_stand_in: spec.judge_llm.model.starts_with(STAND_IN_PREFIX),
        adapter_cycle: run.best_cycle().map(|cycle| cycle.0),
        training: Some(training(&spec.train)),
        seed: spec.seed,
        train_samples: spec.coverage.n_train.into(),
        test_samples: spec.coverage.n_test.into(),
        responses_per_prompt: spec.infer.responses_per_prompt.into(),
        judgings_per_response: spec.judge.gradings_per_response.into(),
        coverage_score: spec.gate.coverage_score,
        submitted_at_ms: run.head.submitted_at_ms,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        seconds: time_ms.saturating_sub(run.head.submitted_at_ms) as f64 / 1e3,
    }
}

fn training(settings: &TrainSettings) -> Training {
    // By way of its shortest decimal form, so that 0.002 stays 0.002 in 64 bits.
    let decimal = |x: f32| x.to_string().parse().unwrap_or(f64::from(x));
    Training {
        lora_rank: settings.lora_rank,
        lora_alpha: decimal(settings.lora_alpha),
        lora_dropout: decimal(settings.lora_dropout),
        epochs: decimal(settings.epochs),
        learning_rate: decimal(settings.learning_rate),
        batch_rows: settings.batch_rows,
        sequence_tokens: settings.sequence_tokens_max,
        loss_on: match settings.loss_on {
            LossOn::WholeSequence => "whole_sequence",
            LossOn::ResponseOnly => "response_only",
        }
        .to_owned(),
        train_from: match settings.train_from {
            TrainFrom::Base => "base",
            TrainFrom::LastAdapter => "last_adapter",
        }
        .to_owned(),
    }
}

fn cycle_report(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cycle: Cycle,
    all: &AllJudged,
) -> Result<CycleReport, Error> {
    let local = all.get(&(cycle, Subject::Adapter(cycle)));
    let service = all.get(&(Cycle(0), Subject::Service));
    let record = run.cycles.get(&cycle);
    let is_decided = record.is_some_and(|record| record.gate.is_some());
    let both = local.zip(service).filter(|_| is_decided);
    let curation = record.and_then(|record| record.curation);
    Ok(CycleReport {
        cycle: cycle.0,
        train: train_report(artifacts, run, spec, cycle)?,
        subject: local.map(SubjectReport::new),
        gate: both.map(|(local, service)| evaluate(&spec.gate.rule, local, service)),
        other_gates: both
            .map(|(local, service)| gate::evaluate(&other_rule(&spec.gate), local, service))
            .into_iter()
            .collect(),
        synthesis: match curation {
            Some(curation) => Some(synthesis_report(artifacts, &curation)?),
            None => None,
        },
    })
}

fn train_report(
    artifacts: &Directory,
    run: &Run,
    spec: &RunSpec,
    cycle: Cycle,
) -> Result<Option<TrainReport>, Error> {
    let task = run.tasks.get(&TaskKind::Train.id(cycle));
    let Some(result) = task.and_then(|task| task.record.result.as_ref()) else {
        return Ok(None);
    };
    let TaskOutput::Train(TrainOutput {
        n_samples,
        n_tokens,
        loss_first,
        loss_last,
        seconds,
        ..
    }) = result.output
    else {
        return Ok(None);
    };
    let curve: Vec<LossPoint> = match inputs::file_of(artifacts, &result.manifest, "train_log.jsonl")? {
        Some(log) => inputs::rows(artifacts, "a training log", &log)?,
        None => Vec::new(),
    };
    // Below 2^53 tokens times at most 10,000 epochs: exact enough for a report, and the cast saturates.
    let tokens = (n_tokens as f64 * f64::from(spec.train.epochs)).round() as u64;
    Ok(Some(TrainReport {
        samples: n_samples.into(),
        tokens,
        loss_first,
        loss_last,
        seconds,
        curve,
    }))
}

/// Counts the reasons anew from the dropped samples, since the run's record holds only their sums.
fn synthesis_report(
    artifacts: &Directory,
    curation: &crate::machine::Curation,
) -> Result<SynthesisReport, Error> {
    use llamaduo_data::curate::{CurationCounts, DropReason, Dropped};
    let Some(dropped) = inputs::file_of(artifacts, &curation.manifest, "dropped.jsonl")? else {
        return Err(Error::Missing {
            what: "the list of dropped samples",
        });
    };
    let dropped: Vec<Dropped> = inputs::rows(artifacts, "dropped samples", &dropped)?;
    let count =
        |of: fn(&DropReason) -> bool| dropped.iter().filter(|dropped| of(&dropped.reason)).count() as u64;
    let counts = CurationCounts {
        raw: curation.counts.n_raw.into(),
        kept: curation.counts.n_kept.into(),
        malformed: count(|reason| matches!(reason, DropReason::Malformed(_))),
        duplicates: count(|reason| matches!(reason, DropReason::Duplicate { .. })),
        filtered: count(|reason| matches!(reason, DropReason::Rule(_))),
        contaminated: count(|reason| matches!(reason, DropReason::Contaminated(_))),
        near_duplicates: count(|reason| matches!(reason, DropReason::NearDuplicate { .. })),
        not_novel: count(|reason| matches!(reason, DropReason::NotNovel { .. })),
    };
    Ok(counts.into())
}
