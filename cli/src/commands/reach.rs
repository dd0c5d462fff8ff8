//! What can be known of the service LLMs before anything starts: whether their keys are there, and whether anybody
//! listens.
//!
//! Invariant: nothing is sent to a service, and nothing is written anywhere.

use llamaduo_proto::run::{ApiKeySource, RunSpec, ServiceLlmSpec};
use llamaduo_proto::task::{Answerer, TaskSpec};
use llamaduo_worker::service_llm::check;
use serde_json::Value;

use crate::directory::RunDirectory;
use crate::error::{Error, Result};
use crate::output::Output;

/// A service LLM, and the section of the config that says how it is reached.
type Named<'a> = (&'static str, &'a ServiceLlmSpec);

/// Before a run in this process. A run that is gone on with may have hours of local work before it, so a service that
/// is away at the moment is only told of. Gives whether the run is over and only its outcome is left to print.
pub(super) async fn before_run(spec: &RunSpec, directory: &RunDirectory, output: &Output) -> Result<bool> {
    let record = directory.record()?;
    if let Some(record) = &record
        && is_over(
            directory,
            record.cycles_max.unwrap_or(record.spec.cycles_max),
            spec.cycles_max,
        )?
    {
        return Ok(true);
    }
    let services = services_of(spec);
    check_keys(&services)?;
    match check_listeners(&services).await {
        Err(Error::Service(message)) if record.is_some() => {
            output.line(&format!(
                "warning: {message}; the run goes on, and ends early if it is still away when it is needed"
            ));
        }
        checked => checked?,
    }
    Ok(false)
}

/// Before a run that workers elsewhere do: what this machine cannot reach they may.
pub(super) async fn from_here(spec: &RunSpec, output: &Output) {
    if let Err(error) = check_listeners(&services_of(spec)).await {
        output.line(&format!(
            "note: seen from this machine, {error}; the run is submitted, since its workers may reach it"
        ));
    }
}

fn services_of(spec: &RunSpec) -> [Named<'_>; 2] {
    [("service", &spec.service_llm), ("judge", &spec.judge_llm)]
}

/// Before a single task in this process.
pub(super) async fn before_task(spec: &TaskSpec) -> Result<()> {
    let service = match spec {
        TaskSpec::Judge(task) => ("judge", &task.judge_llm),
        TaskSpec::Synthesize(task) => ("service", &task.service_llm),
        TaskSpec::Infer(task) => match &task.answerer {
            Answerer::Service { service_llm } => ("service", service_llm),
            Answerer::Base { .. } | Answerer::Adapter { .. } => return Ok(()),
        },
        TaskSpec::Train(_) => return Ok(()),
    };
    check_keys(&[service])?;
    check_listeners(&[service]).await
}

/// Whether the run has ended and the same command will only print what it came to.
fn is_over(directory: &RunDirectory, cycles_before: u32, cycles_now: u32) -> Result<bool> {
    if !directory.has_ended()? {
        // A report that is there is of before it was gone on with.
        return Ok(false);
    }
    let report = directory.report()?;
    Ok(report.is_some_and(|report| is_final(&report, cycles_before, cycles_now)))
}

/// Whether a run with this report is gone on with by no command that gives it `cycles_now`.
fn is_final(report: &Value, cycles_before: u32, cycles_now: u32) -> bool {
    match report["status"].as_str() {
        Some("passed") => true,
        Some("gate_not_reached") => cycles_now <= cycles_before || kept_nothing(report),
        _ => false,
    }
}

/// Whether curation kept no new pair in the last cycle, for which more cycles are no help.
fn kept_nothing(report: &Value) -> bool {
    let last = report["cycles"].as_array().and_then(|cycles| cycles.last());
    last.is_some_and(|cycle| cycle["synthesis"]["kept"] == 0)
}

fn check_keys(services: &[Named<'_>]) -> Result<()> {
    let mut seen: Vec<&ApiKeySource> = Vec::new();
    for (section, spec) in services {
        if seen.contains(&&spec.api_key) {
            continue;
        }
        seen.push(&spec.api_key);
        check::key(spec).map_err(|problem| {
            Error::Usage(format!(
                "the service LLM {} cannot be called: {problem}; put the key there and give the same command again, or \
                 name another place with {section}.api_key_env or {section}.api_key_file",
                spec.model
            ))
        })?;
    }
    Ok(())
}

async fn check_listeners(services: &[Named<'_>]) -> Result<()> {
    let mut seen: Vec<&Option<String>> = Vec::new();
    let mut problems = Vec::new();
    for (section, spec) in services {
        if seen.contains(&&spec.base_url) {
            continue;
        }
        seen.push(&spec.base_url);
        if let Err(problem) = check::reachable(spec).await {
            problems.push(format!(
                "the service LLM {} ([{section}]) cannot be reached: {problem}",
                spec.model
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Service(problems.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_is_over_where_more_cycles_are_no_help() {
        let report = |status: &str, kept: Option<u64>| {
            let synthesis = kept.map(|kept| json!({"raw": 9, "kept": kept}));
            json!({"status": status, "cycles": [{"synthesis": {"kept": 5}}, {"synthesis": synthesis}]})
        };
        for (status, kept, cycles_now, expected) in [
            ("passed", None, 9, true),
            ("gate_not_reached", None, 2, true),
            ("gate_not_reached", None, 3, false),
            ("gate_not_reached", Some(0), 3, true),
            ("budget_spent", Some(0), 3, false),
            ("cancelled", None, 2, false),
        ] {
            let found = is_final(&report(status, kept), 2, cycles_now);
            assert_eq!(
                found, expected,
                "{status}, {kept:?} kept, {cycles_now} cycles now"
            );
        }
        assert!(!is_final(&json!({}), 2, 2));
    }
}
