//! The plots of the report, each with the table it was drawn from: scores here, what the stages came to in `stages`.
//!
//! Invariant: a plot shows nothing that its table lacks.

mod stages;

use super::chart::{Anchor, Drawing, Panel, tick_label};
use super::csv::{Table, cell};
use super::{CycleReport, Named, Report, SubjectReport, Who, bounds};
use crate::score::{Interval, Metric, Statistic};

/// A plot, ready for the page and for a file of its own.
#[derive(Debug)]
pub(super) struct Plot {
    /// File name without extension.
    pub(super) name: &'static str,
    /// What it shows, as a heading.
    pub(super) title: &'static str,
    /// How to read it, in a sentence.
    pub(super) caption: String,
    /// For the page.
    pub(super) inline: String,
    /// For a file.
    pub(super) svg: String,
    /// The numbers.
    pub(super) csv: String,
}

const WIDTH: f64 = 880.0;

/// Every plot that `report` has numbers for.
pub(super) fn all(report: &Report) -> Vec<Plot> {
    let plots = [
        scores(report, Statistic::Mean),
        scores(report, Statistic::Coverage),
        distributions(report),
        stages::losses(report),
        stages::curation(report),
        stages::cost(report),
    ];
    plots.into_iter().flatten().collect()
}

fn plot(
    name: &'static str,
    title: &'static str,
    caption: String,
    drawing: &Drawing,
    table: Table,
) -> Option<Plot> {
    let (inline, svg, csv) = (drawing.inline(), drawing.standalone(), table.finish());
    Some(Plot {
        name,
        title,
        caption,
        inline,
        svg,
        csv,
    })
}

fn value(subject: &SubjectReport, metric: Metric, statistic: Statistic) -> (Option<f64>, Option<Interval>) {
    let (score, _) = subject.metric(metric);
    match statistic {
        Statistic::Mean => (score.mean, score.mean_interval),
        Statistic::Coverage => (
            score.coverage.map(|share| 100.0 * share),
            score.coverage_interval.map(percent),
        ),
    }
}

fn percent(interval: Interval) -> Interval {
    Interval {
        low: 100.0 * interval.low,
        high: 100.0 * interval.high,
    }
}

fn scores(report: &Report, statistic: Statistic) -> Option<Plot> {
    let subjects = report.subjects();
    if subjects.is_empty() {
        return None;
    }
    // The table has coverage as the share that report.json has, the plot in per cent.
    let mut table = Table::new(&["subject", "metric", statistic.name(), "low", "high"]);
    for Named { name, subject, .. } in &subjects {
        for metric in Metric::ALL {
            let (score, _) = subject.metric(metric);
            let (estimate, interval) = match statistic {
                Statistic::Mean => (score.mean, score.mean_interval),
                Statistic::Coverage => (score.coverage, score.coverage_interval),
            };
            let (low, high) = bounds(interval);
            table.row([
                name.clone(),
                metric.name().to_owned(),
                cell(estimate),
                cell(low),
                cell(high),
            ]);
        }
    }
    let mut drawing = Drawing::new(WIDTH, 300.0, &format!("{} per cycle", statistic.name()));
    for (index, metric) in Metric::ALL.into_iter().enumerate() {
        let left = 44.0 + index as f64 * 446.0;
        let panel = Panel {
            x: (left, left + 285.0),
            y: (40.0, 258.0),
            x_values: (0.5, report.cycles.len().max(1) as f64 + 0.5),
            y_values: (0.0, 100.0),
        };
        score_panel(&mut drawing, &panel, report, metric, statistic);
    }
    let zeta = report.about.coverage_score;
    let ceiling = report.about.name_of(Who::Service);
    match statistic {
        Statistic::Mean => plot(
            "scores",
            "Mean score per cycle",
            format!(
                "Dots: the tuned model with its 95 % interval over prompts. Bands: the untuned base (floor) and the fresh \
                 answers of the {ceiling} itself (ceiling)."
            ),
            &drawing,
            table,
        ),
        Statistic::Coverage => plot(
            "coverage",
            "Coverage per cycle",
            format!(
                "Share of answers, in per cent, whose mean score reaches {}.",
                tick_label(zeta)
            ),
            &drawing,
            table,
        ),
    }
}

fn score_panel(drawing: &mut Drawing, panel: &Panel, report: &Report, metric: Metric, statistic: Statistic) {
    drawing.text("heading", (panel.x.0, 20.0), Anchor::Start, metric.name());
    panel.grid(drawing, &[0.0, 25.0, 50.0, 75.0, 100.0]);
    let mut labels = Vec::new();
    let ceiling = if report.about.stand_in {
        "stand-in"
    } else {
        "service"
    };
    for (class, name, subject) in [
        ("floor", "base", &report.base),
        ("ceiling", ceiling, &report.service),
    ] {
        let Some((Some(estimate), interval)) = subject.as_ref().map(|s| value(s, metric, statistic)) else {
            continue;
        };
        let y = panel.y_of(estimate);
        if let Some(interval) = interval {
            let (top, bottom) = (panel.y_of(interval.high), panel.y_of(interval.low));
            drawing.rect(
                &format!("{class} band"),
                (panel.x.0, top),
                (panel.x.1 - panel.x.0, bottom - top),
                "",
            );
        }
        drawing.line(&format!("{class} dashed"), (panel.x.0, y), (panel.x.1, y));
        labels.push((y, class, format!("{name} {estimate:.1}")));
    }
    let mut points = Vec::new();
    for (position, cycle) in (1..).zip(&report.cycles) {
        let x = panel.x_of(f64::from(position));
        drawing.text(
            "tick",
            (x, panel.y.1 + 20.0),
            Anchor::Middle,
            &cycle_label(cycle, report.cycles.len()),
        );
        let Some((Some(estimate), interval)) = cycle.subject.as_ref().map(|s| value(s, metric, statistic))
        else {
            continue;
        };
        let y = panel.y_of(estimate);
        if let Some(Interval { low, high }) = interval {
            drawing.line("whisker", (x, panel.y_of(low)), (x, panel.y_of(high)));
        }
        points.push((x, y, format!("cycle {}: {estimate:.1}", cycle.cycle)));
        if position as usize == report.cycles.len() {
            labels.push((y, "local", format!("tuned {estimate:.1}")));
        }
    }
    drawing.polyline(
        "local",
        &points.iter().map(|(x, y, _)| (*x, *y)).collect::<Vec<_>>(),
    );
    for (x, y, title) in &points {
        drawing.dot("local", (*x, *y), title);
    }
    for (y, class, text) in spread(labels, 16.0) {
        drawing.text(class, (panel.x.1 + 8.0, y + 4.0), Anchor::Start, &text);
    }
}

/// What an axis with this many cycles says of one: every cycle of a few, every fifth of many.
fn cycle_label(cycle: &CycleReport, cycles: usize) -> String {
    match cycles {
        0..=4 => format!("cycle {}", cycle.cycle),
        5..=12 => cycle.cycle.to_string(),
        _ if cycle.cycle.is_multiple_of(5) => cycle.cycle.to_string(),
        _ => String::new(),
    }
}

/// Moves labels down just so far that none lies on another.
fn spread(mut labels: Vec<(f64, &str, String)>, distance: f64) -> Vec<(f64, &str, String)> {
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut last = f64::NEG_INFINITY;
    for label in &mut labels {
        label.0 = label.0.max(last + distance);
        last = label.0;
    }
    labels
}

fn distributions(report: &Report) -> Option<Plot> {
    let subjects = report.subjects();
    if subjects.is_empty() {
        return None;
    }
    let mut table = Table::new(&["subject", "metric", "score_above", "score_to", "answers"]);
    let row_height = 74.0;
    let mut drawing = Drawing::new(
        WIDTH,
        66.0 + row_height * subjects.len() as f64,
        "score distributions",
    );
    for (index, metric) in Metric::ALL.into_iter().enumerate() {
        drawing.text(
            "heading",
            (210.0 + index as f64 * 340.0, 20.0),
            Anchor::Start,
            metric.name(),
        );
    }
    for (row, Named { who, name, subject }) in subjects.iter().enumerate() {
        let top = 34.0 + row as f64 * row_height;
        let class = match who {
            Who::Service => "ceiling",
            Who::Base | Who::BaseUnquantized => "floor",
            Who::Cycle(_) => "local",
        };
        drawing.text("label", (190.0, top + 42.0), Anchor::End, name);
        for (index, metric) in Metric::ALL.into_iter().enumerate() {
            let (_, bins) = subject.metric(metric);
            for (tenth, count) in bins.iter().enumerate() {
                let (from, to) = (10 * tenth, 10 * tenth + 10);
                table.row([
                    name.clone(),
                    metric.name().to_owned(),
                    from.to_string(),
                    to.to_string(),
                    count.to_string(),
                ]);
            }
            histogram(
                &mut drawing,
                (210.0 + index as f64 * 340.0, top),
                class,
                bins,
                row + 1 == subjects.len(),
            );
        }
    }
    plot(
        "distributions",
        "Score distributions",
        "How many answers have a mean score in each tenth of 1 to 100; every row has its own height."
            .to_owned(),
        &drawing,
        table,
    )
}

fn histogram(drawing: &mut Drawing, corner: (f64, f64), class: &str, bins: &[u64; 10], with_axis: bool) {
    let (bar, height) = (30.0, 52.0);
    let most = bins.iter().copied().max().unwrap_or(0).max(1) as f64;
    let base = corner.1 + 62.0;
    for (tenth, count) in bins.iter().enumerate() {
        let x = corner.0 + bar * tenth as f64;
        let bar_height = height * *count as f64 / most;
        let title = format!("{} to {}: {count} answers", 10 * tenth, 10 * tenth + 10);
        drawing.rect(
            class,
            (x + 1.0, base - bar_height),
            (bar - 2.0, bar_height),
            &title,
        );
        if *count > 0 {
            drawing.text(
                "note",
                (x + bar / 2.0, base - bar_height - 3.0),
                Anchor::Middle,
                &count.to_string(),
            );
        }
    }
    drawing.line("axis", (corner.0, base), (corner.0 + 10.0 * bar, base));
    if with_axis {
        for (tenth, text) in [(0.0, "1"), (5.0, "50"), (10.0, "100")] {
            drawing.text(
                "tick",
                (corner.0 + tenth * bar, base + 18.0),
                Anchor::Middle,
                text,
            );
        }
    }
}
