//! The plots of the report, each with the table it was drawn from.

use super::chart::{Anchor, Drawing, Panel, tick_label, ticks};
use super::csv::{Table, cell};
use super::{CostPart, CycleReport, Report, SubjectReport, bounds};
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
        losses(report),
        curation(report),
        cost(report),
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
    let mut table = Table::new(&["subject", "metric", "value", "low", "high"]);
    for (name, subject) in &subjects {
        for metric in Metric::ALL {
            let (estimate, interval) = value(subject, metric, statistic);
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
    match statistic {
        Statistic::Mean => plot(
            "scores",
            "Mean score per cycle",
            "Dots: the tuned model with its 95 % interval over prompts. Bands: the untuned base (floor) and the service \
             LLM's own fresh answers (ceiling)."
                .to_owned(),
            &drawing,
            table,
        ),
        Statistic::Coverage => plot(
            "coverage",
            "Coverage per cycle",
            format!("Share of answers, in per cent, whose mean score reaches {}.", tick_label(zeta)),
            &drawing,
            table,
        ),
    }
}

fn score_panel(drawing: &mut Drawing, panel: &Panel, report: &Report, metric: Metric, statistic: Statistic) {
    drawing.text("heading", (panel.x.0, 20.0), Anchor::Start, metric.name());
    panel.grid(drawing, &[0.0, 25.0, 50.0, 75.0, 100.0]);
    let mut labels = Vec::new();
    for (class, name, subject) in [
        ("floor", "base", &report.base),
        ("ceiling", "service", &report.service),
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
    for (row, (name, subject)) in subjects.iter().enumerate() {
        let top = 34.0 + row as f64 * row_height;
        let class = match name.as_str() {
            "service LLM" => "ceiling",
            name if name.starts_with("base") => "floor",
            _ => "local",
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

fn losses(report: &Report) -> Option<Plot> {
    let curves: Vec<_> = report
        .cycles
        .iter()
        .filter_map(|cycle| Some((cycle.cycle, &cycle.train.as_ref()?.curve)))
        .filter(|(_, curve)| !curve.is_empty())
        .collect();
    let finite = || {
        curves
            .iter()
            .flat_map(|(_, curve)| curve.iter())
            .filter(|point| point.loss.is_finite())
    };
    let last = finite().map(|point| point.step).max()?;
    let ticks_y = ticks(finite().map(|point| point.loss).fold(0.0, f64::max));
    let mut table = Table::new(&["cycle", "step", "loss"]);
    let mut drawing = Drawing::new(WIDTH, 300.0, "training loss per step");
    let panel = Panel {
        x: (54.0, 790.0),
        y: (24.0, 250.0),
        x_values: (0.0, last as f64),
        y_values: (0.0, ticks_y.last().copied().unwrap_or(1.0)),
    };
    panel.grid(&mut drawing, &ticks_y);
    for tick in ticks(last as f64)
        .into_iter()
        .filter(|tick| *tick <= last as f64 && tick.fract() == 0.0)
    {
        drawing.text(
            "tick",
            (panel.x_of(tick), 270.0),
            Anchor::Middle,
            &tick_label(tick),
        );
    }
    drawing.text("note", (422.0, 292.0), Anchor::Middle, "optimizer step");
    let (mut labels, mut label_x) = (Vec::new(), panel.x.0);
    for (cycle, curve) in &curves {
        let class = ["line-0", "line-1", "line-2", "line-3", "line-4"][*cycle as usize % 5];
        let points: Vec<(f64, f64)> = curve
            .iter()
            .filter(|point| point.loss.is_finite())
            .map(|point| (panel.x_of(point.step as f64), panel.y_of(point.loss)))
            .collect();
        drawing.polyline(class, &points);
        for point in curve.iter() {
            table.row([cycle.to_string(), point.step.to_string(), point.loss.to_string()]);
        }
        if let Some((x, y)) = points.last() {
            labels.push((*y, class, format!("cycle {cycle}")));
            label_x = label_x.max(*x);
        }
    }
    for (y, class, text) in spread(labels, 16.0) {
        drawing.text(class, (label_x + 6.0, y + 4.0), Anchor::Start, &text);
    }
    let caption = "Mean loss of each optimizer step, in nats per token.".to_owned();
    plot("loss", "Training loss", caption, &drawing, table)
}

fn curation(report: &Report) -> Option<Plot> {
    let rows: Vec<_> = report
        .cycles
        .iter()
        .filter_map(|cycle| Some((cycle.cycle, cycle.synthesis.as_ref()?)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, synthesis)| synthesis.raw)
        .max()
        .filter(|raw| *raw > 0)?;
    let mut table = Table::new(&["cycle", "ending", "samples"]);
    let mut drawing = Drawing::new(WIDTH, 70.0 + 40.0 * rows.len() as f64, "what curation kept");
    let mut legend_x = 90.0;
    for (row, (cycle, synthesis)) in rows.iter().enumerate() {
        let y = 52.0 + 40.0 * row as f64;
        let parts = [
            ("kept", "kept", synthesis.kept),
            ("exact", "duplicate", synthesis.exact_duplicates),
            ("near", "near duplicate", synthesis.near_duplicates),
            ("known", "not novel", synthesis.not_novel),
            ("malformed", "malformed", synthesis.malformed),
            ("breach", "rule broken", synthesis.rule_breaches),
            ("leak", "too close to test", synthesis.contaminated),
        ];
        drawing.text("label", (80.0, y + 18.0), Anchor::End, &format!("cycle {cycle}"));
        let mut x = 90.0;
        for (class, name, count) in parts {
            let width = 720.0 * count as f64 / most as f64;
            drawing.rect(class, (x, y), (width, 26.0), &format!("{name}: {count}"));
            x += width;
            table.row([cycle.to_string(), name.to_owned(), count.to_string()]);
            if row == 0 {
                drawing.rect(class, (legend_x, 14.0), (12.0, 12.0), "");
                drawing.text("note", (legend_x + 17.0, 24.0), Anchor::Start, name);
                legend_x += 34.0 + 7.0 * name.len() as f64;
            }
        }
        let text = format!("{} of {}", synthesis.kept, synthesis.raw);
        drawing.text("note", (x + 6.0, y + 18.0), Anchor::Start, &text);
    }
    let caption = "What became of every item the service LLM wrote, after each cycle.".to_owned();
    plot(
        "curation",
        "What curation kept, and why not",
        caption,
        &drawing,
        table,
    )
}

fn cost(report: &Report) -> Option<Plot> {
    let parts = &report.cost.parts;
    // Without prices tokens are the best measure there is of what was spent.
    let priced = parts.iter().all(|part| part.cost.is_some());
    let amount = |part: &CostPart| match part.cost {
        Some(cost) if priced => cost.usd(),
        _ => (part.input_tokens + part.output_tokens) as f64,
    };
    let most = parts.iter().map(amount).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut table = Table::new(&["cycle", "stage", "calls", "input_tokens", "output_tokens", "usd"]);
    let mut drawing = Drawing::new(WIDTH, 20.0 + 30.0 * parts.len() as f64, "cost by stage");
    for (row, part) in parts.iter().enumerate() {
        let y = 8.0 + 30.0 * row as f64;
        let name = format!("cycle {}: {}", part.cycle, part.stage);
        drawing.text("label", (160.0, y + 16.0), Anchor::End, &name);
        let width = 400.0 * amount(part) / most;
        drawing.rect("local", (170.0, y), (width, 22.0), &name);
        let tokens = tick_label((part.input_tokens + part.output_tokens) as f64);
        let cost = part
            .cost
            .map_or("price unknown".to_owned(), |cost| cost.to_string());
        let text = format!("{cost} · {} calls · {tokens} tokens", part.calls);
        drawing.text("note", (176.0 + width, y + 16.0), Anchor::Start, &text);
        table.row([
            part.cycle.to_string(),
            part.stage.clone(),
            part.calls.to_string(),
            part.input_tokens.to_string(),
            part.output_tokens.to_string(),
            cell(part.cost.map(|cost| cost.usd())),
        ]);
    }
    let caption = if priced {
        "In dollars."
    } else {
        "In tokens, because not every price is known."
    };
    plot(
        "cost",
        "Where the service LLM's cost went",
        caption.to_owned(),
        &drawing,
        table,
    )
}
