//! `report.html`: one page that says in half a minute whether the run passed, by how much, at what cost, and what
//! happened in each cycle.
//!
//! Invariant: words of models and users reach the page only through the template engine's escaping.

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::csv::data_link;
use super::plots::Plot;
use super::{About, CycleReport, Named, Report, Status, SubjectReport, Who, chart};
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
    stand_ins: Option<&'static str>,
    tiles: Vec<Tile>,
    rows: Vec<SubjectRow>,
    cycles: Vec<CycleRow>,
    plots: Vec<PlotView<'a>>,
    facts: Vec<Fact>,
    floor: String,
    coverage_score: String,
}

/// A line of "The run".
#[derive(Serialize)]
struct Fact {
    name: &'static str,
    value: String,
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
        let (verdict, mood) = verdict(report.status, &report.about);
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
            stand_ins: report.about.stand_ins(),
            tiles: tiles(report),
            rows: report.subjects().into_iter().map(subject_row).collect(),
            cycles: report.cycles.iter().map(cycle_row).collect(),
            plots: plots.collect(),
            facts: facts(report),
            floor: floor(&report.about),
            coverage_score: chart::tick_label(report.about.coverage_score),
        }
    }
}

fn verdict(status: Status, about: &About) -> (&'static str, &'static str) {
    match status {
        Status::Running => ("Still running", "open"),
        // What a stand-in says of a model is worth nothing outside this program.
        Status::Passed if about.judge_stand_in => ("Passed, in the judgement of a stand-in", "good"),
        Status::Passed if about.stand_in => ("Passed, compared with a stand-in", "good"),
        Status::Passed => ("Passed: the local model may take over", "good"),
        Status::GateNotReached => ("Gate not reached", "bad"),
        Status::BudgetSpent => ("Budget spent before the gate was reached", "bad"),
        Status::ServiceFailed => ("The service LLM failed", "bad"),
        Status::Failed => ("The run failed", "bad"),
        Status::Cancelled => ("Cancelled", "open"),
    }
}

/// The cycle whose adapter is delivered, else the last graded one; the service beside it, what it cost, how long it
/// took.
fn tiles(report: &Report) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let graded = || {
        let cycles = report.cycles.iter().rev();
        cycles.filter_map(|cycle| Some((cycle, cycle.subject.as_ref()?)))
    };
    let delivered = graded().find(|(cycle, _)| Some(cycle.cycle) == report.about.adapter_cycle);
    if let Some((cycle, tuned)) = delivered.or_else(|| graded().next()) {
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
                    beside(&report.about.name_of(Who::Service), &report.service)
                ),
            });
        }
    }
    tiles.push(cost_tile(report));
    tiles.push(Tile {
        label: "time".to_owned(),
        value: duration(report.about.seconds),
        note: match report.cycles.len() {
            1 => format!("{TIME_SPAN} · 1 cycle"),
            cycles => format!("{TIME_SPAN} · {cycles} cycles"),
        },
    });
    tiles
}

/// What a run's time is counted over: nobody sees when a process that was killed has stopped.
pub const TIME_SPAN: &str = "from submission to end, pauses included";

fn cost_tile(report: &Report) -> Tile {
    let cost = &report.cost;
    let made_up = cost.usd.filter(|_| report.about.stand_ins().is_some());
    let tokens = cost.input_tokens.saturating_add(cost.output_tokens);
    let mut note = vec![
        format!("{} calls", thousands(cost.calls)),
        format!("{} tokens", thousands(tokens)),
    ];
    if made_up.is_some() {
        note.insert(0, "made-up price".to_owned());
    }
    if cost.unknown_calls > 0 {
        let calls = thousands(cost.unknown_calls);
        note.push(format!(
            "{calls} calls of unknown outcome may have been billed too"
        ));
    }
    Tile {
        label: "service LLM cost".to_owned(),
        value: cost.usd.map_or("unknown".to_owned(), dollars),
        note: note.join(" · "),
    }
}

/// What "The run" says.
fn facts(report: &Report) -> Vec<Fact> {
    let about = &report.about;
    let stand_in = |is: bool, model: &str| match is {
        true => format!("{model} (stand-in)"),
        false => model.to_owned(),
    };
    let mut facts = vec![("run", about.run.clone())];
    if about.submitted_at_ms > 0 {
        facts.push(("submitted", date(about.submitted_at_ms)));
    }
    facts.extend([
        ("time", format!("{}, {TIME_SPAN}", duration(about.seconds))),
        ("local model", about.local_model.clone()),
        ("its quantization", about.quantization.name().to_owned()),
        ("its matrix products", about.compute.name().to_owned()),
        ("service LLM", stand_in(about.stand_in, &about.service_model)),
        ("judge", stand_in(about.judge_stand_in, &about.judge_model)),
        (
            "coverage dataset",
            format!("{} train, {} test", about.train_samples, about.test_samples),
        ),
    ]);
    if let Some(t) = &about.training {
        let settings = format!(
            "LoRA rank {}, alpha {}, dropout {}; {} epochs at learning rate {}, {} rows a step of at most {} tokens; \
             loss on {}, from {}",
            t.lora_rank,
            t.lora_alpha,
            t.lora_dropout,
            t.epochs,
            t.learning_rate,
            t.batch_rows,
            t.sequence_tokens,
            t.loss_on.replace('_', " "),
            t.train_from.replace('_', " ")
        );
        facts.push(("training", settings));
    }
    if let Some(cycle) = about.adapter_cycle {
        let choice = report.adapter_choice().map(|choice| format!(", {choice}"));
        let choice = choice.unwrap_or_default();
        facts.push(("adapter delivered", format!("of cycle {cycle}{choice}")));
    }
    facts.push(("seed", about.seed.to_string()));
    if !about.program_version.is_empty() {
        facts.push(("program", format!("llamaduo {}", about.program_version)));
    }
    facts
        .into_iter()
        .map(|(name, value)| Fact { name, value })
        .collect()
}

/// What the floor is.
fn floor(about: &About) -> String {
    let name = about.name_of(Who::Base);
    let form = match about.quantization {
        super::Quantization::None => "the form that is trained on",
        super::Quantization::Nf4 | super::Quantization::Nf4Single => "the 4-bit form that is trained on",
    };
    format!("“{name}” is the untuned model in {form}: the floor.")
}

/// Milliseconds since 1970 as a date of the Gregorian calendar.
fn date(ms: u64) -> String {
    let (minutes, days) = (ms / 60_000 % 1440, ms / 86_400_000);
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last of one.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    format!(
        "{year}-{month:02}-{day:02} {:02}:{:02} UTC",
        minutes / 60,
        minutes % 60
    )
}

fn subject_row(Named { who, name, subject }: Named<'_>) -> SubjectRow {
    let cells = Metric::ALL.into_iter().flat_map(|metric| {
        let (score, _) = subject.metric(metric);
        [mean_cell(score), coverage_cell(score)]
    });
    SubjectRow {
        trained: matches!(who, Who::Cycle(_)),
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

/// A count in groups of three digits.
pub fn thousands(count: u64) -> String {
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
