//! A run's report as a table for the terminal.
//!
//! Invariant: every number comes from `report.json`; nothing is computed here.

use std::path::Path;

use llamaduo_data::report::{CycleReport, Report, SubjectReport, TIME_SPAN, Who};
use llamaduo_data::score::MetricScore;
use serde_json::Value;

use crate::progress::words::{grouped, seconds};

/// `report.json` for people; as it is when it is of another version.
pub(crate) fn report_text(report: &Value, directory: &Path) -> String {
    match serde_json::from_value::<Report>(report.clone()) {
        Ok(report) => text(&report, directory),
        Err(_) => report.to_string(),
    }
}

fn text(report: &Report, directory: &Path) -> String {
    let fixed = [
        (Who::BaseUnquantized, &report.base_unquantized),
        (Who::Base, &report.base),
        (Who::Service, &report.service),
    ];
    let mut lines: Vec<String> = fixed
        .iter()
        .filter_map(|(who, subject)| Some(row(&report.about.name_of(*who), subject.as_ref()?, "")))
        .collect();
    lines.extend(report.cycles.iter().filter_map(cycle_row));
    if !lines.is_empty() {
        let head = ["similarity", "covered", "precision", "covered"];
        lines.insert(
            0,
            format!(
                "{:28}  {:>10}  {:>7}  {:>9}  {:>7}",
                "", head[0], head[1], head[2], head[3]
            ),
        );
        lines.push(String::new());
    }
    lines.push(format!("{}: {}", status(report), report.reason));
    let cost = report.cost.usd.map_or_else(
        || "price unknown".to_owned(),
        |usd| match report.about.stand_ins() {
            Some(_) => format!("${usd:.4} at a made-up price"),
            None => format!("${usd:.4}"),
        },
    );
    lines.push(format!(
        "{} calls, {} tokens in, {} out, {cost}; {} {TIME_SPAN}",
        grouped(report.cost.calls),
        grouped(report.cost.input_tokens),
        grouped(report.cost.output_tokens),
        seconds(report.about.seconds),
    ));
    if report.cost.unknown_calls > 0 {
        lines.push(format!(
            "{} calls of unknown outcome may have been billed too",
            grouped(report.cost.unknown_calls)
        ));
    }
    lines.push(format!("report: {}", directory.join("report.html").display()));
    if directory.join("adapter").is_dir() {
        let choice = report.adapter_choice().map(|choice| format!(", {choice}"));
        let choice = choice.unwrap_or_default();
        let cycle = report.about.adapter_cycle;
        let of = cycle.map_or_else(String::new, |cycle| format!(" (of cycle {cycle}{choice})"));
        lines.push(format!("adapter: {}{of}", directory.join("adapter").display()));
    }
    lines.join("\n")
}

fn cycle_row(cycle: &CycleReport) -> Option<String> {
    let gate = match &cycle.gate {
        Some(gate) if gate.passed => "passed",
        Some(_) => "not passed",
        None => "",
    };
    Some(row(
        &format!("tuned, cycle {}", cycle.cycle),
        cycle.subject.as_ref()?,
        gate,
    ))
}

fn row(name: &str, subject: &SubjectReport, gate: &str) -> String {
    let mean = |metric: &MetricScore| {
        metric
            .mean
            .map_or_else(|| "-".to_owned(), |mean| format!("{mean:.1}"))
    };
    let covered = |metric: &MetricScore| {
        metric
            .coverage
            .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
    };
    let (similarity, precision) = (&subject.similarity, &subject.precision);
    let line = format!(
        "{name:28}  {:>10}  {:>7}  {:>9}  {:>7}  {gate}",
        mean(similarity),
        covered(similarity),
        mean(precision),
        covered(precision),
    );
    line.trim_end().to_owned()
}

fn status(report: &Report) -> &'static str {
    use llamaduo_data::report::Status;
    match report.status {
        Status::Running => "running",
        Status::Passed => "passed",
        Status::GateNotReached => "gate not reached",
        Status::BudgetSpent => "budget spent",
        Status::ServiceFailed => "service failed",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests;
