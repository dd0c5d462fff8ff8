//! The plots of what the stages came to: training losses, curation, cost.
//!
//! Invariant: colours that mean base, tuned model or service LLM elsewhere mean the same here or are not used.

use super::super::chart::{Anchor, Drawing, Panel, tick_label, ticks};
use super::super::csv::{Table, cell};
use super::super::page::thousands;
use super::super::{CostPart, Report};
use super::{Plot, WIDTH, plot};

/// Names that fit beside each other above the losses.
const LEGEND_MAX: usize = 8;

/// Loss by step, a line for each cycle.
pub(super) fn losses(report: &Report) -> Option<Plot> {
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
        y: (32.0, 250.0),
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
    let stride = curves.len().div_ceil(LEGEND_MAX);
    for (row, (cycle, curve)) in curves.iter().enumerate() {
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
        // Curves end wherever their training did, so their names stand above the plot and not at their ends.
        if row % stride == 0 {
            let x = panel.x.0 + 92.0 * (row / stride) as f64;
            drawing.line(class, (x, 14.0), (x + 18.0, 14.0));
            drawing.text(class, (x + 24.0, 18.0), Anchor::Start, &format!("cycle {cycle}"));
        }
    }
    let caption = "Mean loss of each optimizer step, in nats per token.".to_owned();
    plot("loss", "Training loss", caption, &drawing, table)
}

/// What became of synthesized pairs, a bar for each cycle.
pub(super) fn curation(report: &Report) -> Option<Plot> {
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

/// What was spent, a bar for each cycle and stage.
pub(super) fn cost(report: &Report) -> Option<Plot> {
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
        let tokens = thousands(part.input_tokens.saturating_add(part.output_tokens));
        let cost = part
            .cost
            .map_or("price unknown".to_owned(), |cost| cost.to_string());
        let text = format!("{cost} · {} calls · {tokens} tokens", thousands(part.calls));
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
    let unit = match (priced, report.about.stand_ins()) {
        (true, None) => "In dollars.",
        (true, Some(_)) => "In dollars, at a stand-in's made-up price.",
        (false, _) => "In tokens, because not every price is known.",
    };
    let caption = format!(
        "{unit} A call counts where it was made first: equal answers to a prompt are graded once, so that a later cycle \
         may need fewer calls than it has gradings."
    );
    plot(
        "cost",
        "Where the service LLM's cost went",
        caption,
        &drawing,
        table,
    )
}
