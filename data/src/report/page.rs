//! `report.html`: one page that says in half a minute whether the run passed, by how much, at what cost, and what
//! happened in each cycle.
//!
//! Invariant: words of models and users reach the page only through the template engine's escaping.

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::csv::data_link;
use super::plots::Plot;
use super::{CycleReport, Report, Status, SubjectReport, chart};
use crate::Error;
use crate::gate::GateOutcome;
use crate::score::{Interval, Metric, MetricScore};

/// The page's name decides its escaping: HTML.
const TEMPLATE_NAME: &str = "report.html";

/// Renders the page.
pub(super) fn render(report: &Report, plots: &[Plot]) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let render_error = |source| Error::Render { source };
    environment
        .add_template(TEMPLATE_NAME, include_str!("page.html.jinja"))
        .map_err(render_error)?;
    let template = environment.get_template(TEMPLATE_NAME).map_err(render_error)?;
    template
        .render(Serde(&Page::new(report, plots)))
        .map_err(render_error)
}

/// Everything the template says, as it says it.
#[derive(Serialize)]
struct Page<'a> {
    report: &'a Report,
    chart_style: &'static str,
    verdict: &'static str,
    mood: &'static str,
    tiles: Vec<Tile>,
    rows: Vec<SubjectRow>,
    cycles: Vec<CycleRow>,
    plots: Vec<PlotView<'a>>,
    duration: String,
    coverage_score: String,
}

/// One of the large numbers at the top.
#[derive(Serialize)]
struct Tile {
    label: String,
    value: String,
    note: String,
}

/// A subject's line in the table of scores.
#[derive(Serialize)]
struct SubjectRow {
    name: String,
    trained: bool,
    cells: Vec<ScoreCell>,
    unparsed: String,
}

#[derive(Serialize)]
struct ScoreCell {
    value: String,
    interval: String,
}

/// A cycle in words.
#[derive(Serialize)]
struct CycleRow {
    cycle: u32,
    train: String,
    mood: &'static str,
    gates: Vec<GateView>,
    synthesis: String,
}

#[derive(Serialize)]
struct GateView {
    decides: bool,
    passed: bool,
    rule: String,
    reason: String,
    checks: Vec<CheckView>,
}

#[derive(Serialize)]
struct CheckView {
    name: String,
    estimate: String,
    value: String,
    needed: String,
    passed: bool,
}

#[derive(Serialize)]
struct PlotView<'a> {
    name: &'static str,
    title: &'static str,
    caption: &'a str,
    svg: &'a str,
    csv_link: String,
}

impl<'a> Page<'a> {
    fn new(report: &'a Report, plots: &'a [Plot]) -> Self {
        let (verdict, mood) = verdict(report.status);
        let plots = plots.iter().map(|plot| PlotView {
            name: plot.name,
            title: plot.title,
            caption: &plot.caption,
            svg: &plot.inline,
            csv_link: data_link(&plot.csv),
        });
        Self {
            report,
            chart_style: chart::STYLE,
            verdict,
            mood,
            tiles: tiles(report),
            rows: report
                .subjects()
                .into_iter()
                .map(|(name, subject)| subject_row(name, subject))
                .collect(),
            cycles: report.cycles.iter().map(cycle_row).collect(),
            plots: plots.collect(),
            duration: duration(report.about.seconds),
            coverage_score: chart::tick_label(report.about.coverage_score),
        }
    }
}

fn verdict(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Running => ("Still running", "open"),
        Status::Passed => ("Passed: the local model may take over", "good"),
        Status::GateNotReached => ("Gate not reached", "bad"),
        Status::BudgetSpent => ("Budget spent before the gate was reached", "bad"),
        Status::ServiceFailed => ("The service LLM failed", "bad"),
        Status::Failed => ("The run failed", "bad"),
        Status::Cancelled => ("Cancelled", "open"),
    }
}

/// The last cycle that was graded, the service beside it, what it cost, how long it took.
fn tiles(report: &Report) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let last = report
        .cycles
        .iter()
        .rev()
        .find_map(|cycle| Some((cycle, cycle.subject.as_ref()?)));
    if let Some((cycle, tuned)) = last {
        for metric in Metric::ALL {
            let mean = |subject: &SubjectReport| subject.metric(metric).0.mean;
            let beside = |name: &str, subject: &Option<SubjectReport>| {
                let mean = subject.as_ref().and_then(mean);
                mean.map_or(format!("{name} not graded"), |mean| format!("{name} {mean:.1}"))
            };
            tiles.push(Tile {
                label: format!("{} after cycle {}", metric.name(), cycle.cycle),
                value: one_decimal(mean(tuned)),
                note: format!(
                    "{} · {}",
                    beside("base", &report.base),
                    beside("service LLM", &report.service)
                ),
            });
        }
    }
    tiles.push(Tile {
        label: "service LLM cost".to_owned(),
        value: report.cost.usd.map_or("unknown".to_owned(), dollars),
        note: format!(
            "{} calls · {} tokens",
            thousands(report.cost.calls),
            thousands(report.cost.input_tokens.saturating_add(report.cost.output_tokens))
        ),
    });
    tiles.push(Tile {
        label: "time".to_owned(),
        value: duration(report.about.seconds),
        note: match report.cycles.len() {
            1 => "1 cycle".to_owned(),
            cycles => format!("{cycles} cycles"),
        },
    });
    tiles
}

fn subject_row(name: String, subject: &SubjectReport) -> SubjectRow {
    let cells = Metric::ALL.into_iter().flat_map(|metric| {
        let (score, _) = subject.metric(metric);
        [mean_cell(score), coverage_cell(score)]
    });
    SubjectRow {
        trained: name.starts_with("cycle"),
        name,
        cells: cells.collect(),
        unparsed: format!(
            "{} of {}",
            thousands(subject.unparsed),
            thousands(subject.verdicts)
        ),
    }
}

fn mean_cell(score: &MetricScore) -> ScoreCell {
    let interval = score
        .mean_interval
        .map(|Interval { low, high }| format!("{low:.1} to {high:.1}"));
    ScoreCell {
        value: one_decimal(score.mean),
        interval: interval.unwrap_or_default(),
    }
}

fn coverage_cell(score: &MetricScore) -> ScoreCell {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let interval = score
        .coverage_interval
        .map(|i| format!("{} to {}", percent(i.low), percent(i.high)));
    ScoreCell {
        value: score.coverage.map_or("–".to_owned(), percent),
        interval: interval.unwrap_or_default(),
    }
}

fn cycle_row(cycle: &CycleReport) -> CycleRow {
    let train = cycle
        .train
        .as_ref()
        .map_or("Not trained yet".to_owned(), |train| {
            format!(
                "Trained on {} samples ({} tokens) in {}; loss {:.3} → {:.3}",
                thousands(train.samples),
                thousands(train.tokens),
                duration(train.seconds),
                train.loss_first,
                train.loss_last
            )
        });
    let synthesis = cycle.synthesis.map_or(String::new(), |synthesis| {
        format!(
            "Synthesis: {} kept of {} written ({} duplicates, {} filtered, {} too close to a test prompt)",
            thousands(synthesis.kept),
            thousands(synthesis.raw),
            thousands(synthesis.duplicates),
            thousands(synthesis.filtered),
            thousands(synthesis.contaminated)
        )
    });
    let deciding = cycle.gate.iter().map(|gate| gate_view(gate, true));
    let others = cycle.other_gates.iter().map(|gate| gate_view(gate, false));
    CycleRow {
        cycle: cycle.cycle,
        train,
        mood: match &cycle.gate {
            None => "open",
            Some(gate) if gate.passed => "good",
            Some(_) => "bad",
        },
        gates: deciding.chain(others).collect(),
        synthesis,
    }
}

fn gate_view(gate: &GateOutcome, decides: bool) -> GateView {
    // Scores of 1 to 100 to one decimal, shares and ratios to three.
    let number = |value: Option<f64>| match value {
        None => "–".to_owned(),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    };
    let checks = gate.checks.iter().map(|check| CheckView {
        name: format!("{} of {}", check.statistic.name(), check.metric.name()),
        estimate: number(check.estimate),
        value: number(check.value),
        needed: number(Some(check.needed)),
        passed: check.passed,
    });
    GateView {
        decides,
        passed: gate.passed,
        rule: gate.rule.clone(),
        reason: gate.reason.clone(),
        checks: checks.collect(),
    }
}

fn one_decimal(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.1}"))
}

fn dollars(usd: f64) -> String {
    if usd == 0.0 || usd >= 1.0 {
        format!("${usd:.2}")
    } else {
        format!("${usd:.4}")
    }
}

fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(seconds: f64) -> String {
    // A negative or missing time becomes 0; the cast saturates.
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests;
