//! Going on with a run that is there, in this process or at a coordinator.
//!
//! Invariant: what a run is never changes; only limits and ways to reach a service do.

use llamaduo_proto::ids::RunId;
use llamaduo_proto::run::{RunSpec, RunStatus};
use llamaduo_proto::view::ResumeRun;

use crate::client::Client;
use crate::config::changes;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::progress::words::counted;

/// What became of the wish to go on with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum GoneOn {
    /// It goes on, or goes on under what holds now.
    Resumed,
    /// It was running under the same settings.
    RunsAlready,
    /// It had passed.
    Passed,
    /// It used all its cycles.
    CyclesUsed,
    /// Curation kept no new pair in one of its cycles, so that more of them would train on the same data.
    NothingNew,
}

/// Why a run of which curation kept nothing is not gone on with.
pub(in crate::commands) const NOTHING_NEW: &str = "curation kept none of the pairs that were synthesized for it, so more cycles would train on the same data";

/// The `--set` options of `then` and, over them, those `given` now; tells which of then hold.
pub(in crate::commands) fn with_remembered(
    then: &[String],
    given: &[String],
    output: &Output,
) -> Vec<String> {
    let kept = changes::kept(then, given);
    if !kept.is_empty() {
        output.line(&format!(
            "as this run was given before: --set {}",
            kept.join(" --set ")
        ));
    }
    let kept = kept.into_iter().map(str::to_owned);
    kept.chain(given.iter().cloned()).collect()
}

/// `wanted` with what a resume may change as in `stored`: limits, the ways to the service LLMs and what the report only
/// compares with. Where it is not `stored` then, it is another run.
pub(in crate::commands) fn comparable(stored: &RunSpec, wanted: &RunSpec) -> RunSpec {
    let mut comparable = wanted.clone();
    comparable.budget = stored.budget;
    comparable.cycles_max = stored.cycles_max;
    comparable.gate.compared = stored.gate.compared;
    comparable.overrides.clone_from(&stored.overrides);
    for (theirs, ours) in [
        (&mut comparable.service_llm, &stored.service_llm),
        (&mut comparable.judge_llm, &stored.judge_llm),
    ] {
        let (vendor, model) = (theirs.vendor, theirs.model.clone());
        theirs.clone_from(ours);
        (theirs.vendor, theirs.model) = (vendor, model);
    }
    comparable
}

/// A run may be given more cycles, never fewer: what it did with them stays done. `otherwise` says what to do about a run
/// that has done enough.
pub(in crate::commands) fn refuse_fewer_cycles(
    run: &str,
    allowed: u32,
    wanted: u32,
    otherwise: &str,
) -> Result<()> {
    if allowed <= wanted {
        return Ok(());
    }
    let may_use = counted(allowed.into(), "cycle", "cycles");
    Err(Error::Usage(format!(
        "{run} may use {may_use}, and run.cycles_max is {wanted} now: a run can be given more cycles, not fewer; set \
         run.cycles_max to {allowed} or more, or {otherwise}"
    )))
}

/// A run that ended short goes on, and one that goes on does so under the limits and on the ways to the service LLMs
/// that hold now.
pub(in crate::commands) async fn go_on(client: &Client, run: &RunId, spec: &RunSpec) -> Result<GoneOn> {
    let details = client.run(run).await?;
    let stored = details.spec.as_ref();
    let more_cycles = spec.cycles_max > stored.map_or(0, |stored| stored.cycles_max);
    let is_other = |stored: &RunSpec| {
        (stored.budget, stored.cycles_max) != (spec.budget, spec.cycles_max)
            || stored.service_llm != spec.service_llm
            || stored.judge_llm != spec.judge_llm
    };
    // One that is being wound up counts as one that has ended.
    let left_as = match details.run.ending.unwrap_or(details.run.status) {
        RunStatus::Passed => Some(GoneOn::Passed),
        RunStatus::Running => (!stored.is_some_and(is_other)).then_some(GoneOn::RunsAlready),
        RunStatus::GateNotReached if details.run.cycle.0 < stored.map_or(0, |stored| stored.cycles_max) => {
            Some(GoneOn::NothingNew)
        }
        RunStatus::GateNotReached => (!more_cycles).then_some(GoneOn::CyclesUsed),
        RunStatus::BudgetSpent | RunStatus::ServiceFailed | RunStatus::Cancelled | RunStatus::Failed => None,
    };
    if let Some(left_as) = left_as {
        return Ok(left_as);
    }
    let resume = ResumeRun {
        run: run.clone(),
        budget: Some(spec.budget),
        service_llm: Some(spec.service_llm.clone()),
        judge_llm: Some(spec.judge_llm.clone()),
        cycles_max: Some(spec.cycles_max),
        overrides: spec.overrides.clone(),
    };
    client.resume(resume).await?;
    Ok(GoneOn::Resumed)
}
