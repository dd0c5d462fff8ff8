//! Events, scores and amounts in words.
//!
//! Invariant: pure; the same event always reads the same.

use llamaduo_data::NanoUsd;
pub(crate) use llamaduo_data::report::thousands as grouped;
use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::{Cycle, TaskId};
use llamaduo_proto::run::{Cost, MetricScore, Quantization, RunStatus, Scores, Stage, Subject};
use llamaduo_proto::task::{Failure, FailureKind, Progress, TaskOutput};

/// What to tell about an event; `None` for progress.
pub(crate) fn sentence(kind: &RunEventKind) -> Option<String> {
    Some(match kind {
        RunEventKind::RunSubmitted { name } => format!("run \"{name}\" begins"),
        RunEventKind::RunResumed {
            was: RunStatus::Running,
        } => "the run goes on under the limits and service LLMs given now".to_owned(),
        RunEventKind::RunResumed { was } => format!("the run goes on; it had ended before: {}", status(*was)),
        RunEventKind::CycleStarted { cycle: Cycle(0), .. } => {
            "cycle 0: measuring the floor (the untuned base) and the ceiling (the service LLM)".to_owned()
        }
        RunEventKind::CycleStarted { cycle, n_samples } => {
            format!(
                "cycle {}: training on {}",
                cycle.0,
                counted(u64::from(*n_samples), "sample", "samples")
            )
        }
        RunEventKind::AttemptStarted {
            task,
            attempt,
            worker,
            ..
        } => match attempt.0 {
            1 => format!("  {task} on {worker}"),
            n => format!("  {task} on {worker}, attempt {n}"),
        },
        RunEventKind::AttemptFailed {
            task,
            failure,
            retry_in_ms,
            ..
        } => failed(task, failure, *retry_in_ms),
        RunEventKind::TaskDone {
            task,
            subject,
            result,
            ..
        } => {
            format!("  {task} done: {}", done(*subject, &result.output))
        }
        RunEventKind::TaskQuarantined { task, failure, .. } => {
            format!("  {task} given up: {}", failure.message)
        }
        RunEventKind::TaskReleased { task } => format!("  {task} released for another try"),
        RunEventKind::SubjectScored {
            subject, scores: s, ..
        } => format!("{}: {}", subject_name(*subject), scores(s)),
        RunEventKind::GateDecided { .. } => return gate(kind).map(|gate| gate.whole),
        RunEventKind::Curated {
            counts,
            n_samples_next,
            ..
        } => format!(
            "curation: {}, {} kept, {}, {} filtered, {} contaminated; the next cycle trains on {}",
            counted(u64::from(counts.n_raw), "raw pair", "raw pairs"),
            grouped(u64::from(counts.n_kept)),
            counted(u64::from(counts.n_duplicates), "duplicate", "duplicates"),
            counts.n_filtered,
            counts.n_contaminated,
            grouped(u64::from(*n_samples_next)),
        ),
        RunEventKind::RunEnded {
            status: s, reason, ..
        } => format!("run ended, {}: {reason}", status(*s)),
        RunEventKind::AttemptProgress { .. } => return None,
    })
}

/// A gate's decision, with its reason and without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) verdict: String,
    pub(crate) whole: String,
}

/// Of an event that is such a decision.
pub(crate) fn gate(kind: &RunEventKind) -> Option<Gate> {
    let RunEventKind::GateDecided { cycle, decision } = kind else {
        return None;
    };
    let passed = if decision.passed { "passed" } else { "not passed" };
    let verdict = format!("gate after cycle {}: {passed}", cycle.0);
    let whole = format!("{verdict}; {}", decision.reason);
    Some(Gate { verdict, whole })
}

fn failed(task: &TaskId, failure: &Failure, retry_in_ms: Option<u64>) -> String {
    let kind = match failure.kind {
        FailureKind::Retryable | FailureKind::Permanent => "failed",
        FailureKind::OutOfMemory => "ran out of memory",
        FailureKind::Cancelled => "was cancelled",
        FailureKind::WorkerLost => "lost its worker",
        FailureKind::LeaseExpired => "lost its lease",
        FailureKind::CorruptInput => "found its input damaged",
        FailureKind::ServiceRefused => "cannot use the service LLM",
        FailureKind::ServiceUnavailable => "is held up by the service LLM",
        FailureKind::BudgetSpent => "stopped at the budget",
        FailureKind::Released => "was given back",
    };
    let next = match retry_in_ms {
        Some(ms) => format!("; next try in {:.1} s", ms as f64 / 1000.0),
        None => String::new(),
    };
    // Why the others had to stop is told by the event that ended them all.
    let reason = match failure.kind {
        FailureKind::Cancelled | FailureKind::Released => String::new(),
        _ => format!(": {}", failure.message),
    };
    format!(
        "  {task} {kind} on {} (attempt {}){reason}{next}",
        failure.worker, failure.attempt.0
    )
}

fn done(subject: Option<Subject>, output: &TaskOutput) -> String {
    let who = subject.map_or_else(String::new, |subject| format!(" of {}", subject_name(subject)));
    match output {
        TaskOutput::Train(train) => format!(
            "{}, {} a pass, {}, loss {:.3} to {:.3}, {}",
            counted(u64::from(train.n_samples), "sample", "samples"),
            counted(train.n_tokens, "token", "tokens"),
            counted(u64::from(train.n_steps), "step", "steps"),
            train.loss_first,
            train.loss_last,
            seconds(train.seconds),
        ),
        TaskOutput::Infer(infer) => {
            let rate = infer.n_tokens as f64 / infer.seconds.max(1e-3);
            format!(
                "{}{who}, {}, {rate:.0} tokens/s",
                counted(u64::from(infer.n_responses), "response", "responses"),
                counted(infer.n_tokens, "token", "tokens")
            )
        }
        TaskOutput::Judge(judge) => {
            let graded = counted(u64::from(judge.n_graded), "verdict", "verdicts");
            format!("{graded}{who}, {} unparsed", judge.n_unparsed)
        }
        TaskOutput::Synthesize(synthesize) => {
            let raw = counted(u64::from(synthesize.n_raw), "raw pair", "raw pairs");
            format!("{raw}, {} malformed", synthesize.n_malformed)
        }
    }
}

/// Progress of one task on one line.
pub(crate) fn progress(task: &TaskId, progress: &Progress) -> String {
    format!("  {task}: {}", amount(progress))
}

/// How far a task is: `12/40 steps loss 1.2`.
pub(crate) fn amount(progress: &Progress) -> String {
    let of = match progress.n_total {
        0 => String::new(),
        total => format!("/{total}"),
    };
    format!("{}{of} {} {}", progress.n_done, progress.unit, progress.detail)
        .trim_end()
        .to_owned()
}

/// Who answers, for people.
pub(crate) fn subject_name(subject: Subject) -> String {
    match subject {
        Subject::Base(Quantization::None) => "base, file values".to_owned(),
        Subject::Base(Quantization::Nf4) => "base, NF4 single".to_owned(),
        Subject::Base(Quantization::Nf4Double) => "base, NF4".to_owned(),
        Subject::Service => "service LLM".to_owned(),
        Subject::Adapter(cycle) => format!("tuned, cycle {}", cycle.0),
    }
}

/// Both metrics of a subject.
pub(crate) fn scores(scores: &Scores) -> String {
    let metric = |metric: &MetricScore| match (metric.mean, metric.coverage) {
        (Some(mean), Some(coverage)) => format!("{mean:.1} ({:.0} % covered)", coverage * 100.0),
        _ => "not graded".to_owned(),
    };
    let unparsed = match scores.n_unparsed {
        0 => String::new(),
        n => format!(", {} unparsed", counted(n.into(), "reply", "replies")),
    };
    format!(
        "similarity {}, precision {}{unparsed}",
        metric(&scores.similarity),
        metric(&scores.precision)
    )
}

/// How a run stands, for people.
pub(crate) fn status(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Running => "running",
        RunStatus::Passed => "passed",
        RunStatus::GateNotReached => "gate not reached",
        RunStatus::BudgetSpent => "budget spent",
        RunStatus::ServiceFailed => "service failed",
        RunStatus::Cancelled => "cancelled",
        RunStatus::Failed => "failed",
    }
}

/// A stage, for people.
pub(crate) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Train => "train",
        Stage::Infer => "infer",
        Stage::Judge => "judge",
        Stage::Synthesize => "synthesize",
    }
}

/// What was spent. A sum with a call of unknown price in it is unknown.
pub(crate) fn cost(cost: &Cost) -> String {
    let usd = if cost.n_calls_unpriced == 0 {
        NanoUsd(cost.nano_usd).to_string()
    } else {
        "price unknown".to_owned()
    };
    let unknown = match cost.n_calls_unknown {
        0 => String::new(),
        n => format!(", {n} of unknown outcome"),
    };
    format!("{}{unknown}, {usd}", counted(cost.n_calls, "call", "calls"))
}

/// `1 call`, `12,345 calls`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// `45.2 s`, `3 min 07 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    format!("{} min {:02} s", whole / 60, whole % 60)
}

#[cfg(test)]
mod tests;
