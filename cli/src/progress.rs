//! A run's events as people see them: bars on a terminal, plain lines elsewhere.
//!
//! Invariant: every durable event is told once, in order; progress is only ever an estimate of the present.

pub(crate) mod words;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::TaskId;
use llamaduo_proto::run::Cost;
use llamaduo_proto::task::Progress as TaskProgress;
use llamaduo_proto::view::{RunView, StageCount};

use crate::output::Output;

/// Between two lines about the progress of one task where there are no bars: a log stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Where a run stands as a whole, for its bar.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overall {
    pub(crate) cycle: u32,
    pub(crate) n_done: u64,
    pub(crate) n_total: u64,
    pub(crate) cost: Cost,
}

impl Overall {
    /// As a snapshot of the run says.
    pub(crate) fn of(run: &RunView) -> Self {
        let sum =
            |count: fn(&StageCount) -> u32| run.stages.iter().map(|stage| u64::from(count(stage))).sum();
        Self {
            cycle: run.cycle.0,
            n_done: sum(|stage| stage.n_done),
            n_total: sum(|stage| stage.n_total),
            cost: run.cost,
        }
    }
}

/// Shows one run.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    bars: Option<Bars>,
    last_lines: HashMap<TaskId, Instant>,
    /// Decided and not told yet: what follows says how.
    gate: Option<words::Gate>,
}

#[derive(Debug)]
struct Bars {
    multi: MultiProgress,
    /// Absent where a single task is all there is.
    run: Option<ProgressBar>,
    tasks: HashMap<TaskId, ProgressBar>,
}

impl Progress {
    /// Nothing is shown until the first event.
    pub(crate) fn new(output: &Output, name: &str) -> Self {
        let run = output.bars().map(|multi| {
            let run = multi.add(ProgressBar::no_length().with_style(style(RUN_TEMPLATE)));
            run.set_prefix(name.to_owned());
            run.enable_steady_tick(Duration::from_millis(250));
            run
        });
        Self::with(output, run)
    }

    /// Of a run that is one task, whose own bar says everything.
    pub(crate) fn of_one_task(output: &Output) -> Self {
        Self::with(output, None)
    }

    fn with(output: &Output, run: Option<ProgressBar>) -> Self {
        let bars = output.bars().map(|multi| Bars {
            multi: multi.clone(),
            run,
            tasks: HashMap::new(),
        });
        Self {
            output: output.clone(),
            bars,
            last_lines: HashMap::new(),
            gate: None,
        }
    }

    /// Tells one event, and shows how far it brought the run.
    pub(crate) fn event(&mut self, event: &RunEvent) {
        self.tell(&event.kind);
        self.show(&event.kind);
    }

    /// Tells one event in a line. The reason of a run's end is left to the outcome that is printed next, also where it is
    /// the last gate's.
    fn tell(&mut self, kind: &RunEventKind) {
        if matches!(kind, RunEventKind::AttemptProgress { .. }) {
            return;
        }
        if let Some(gate) = self.gate.take() {
            let is_last = matches!(kind, RunEventKind::RunEnded { .. });
            self.output
                .line(if is_last { &gate.verdict } else { &gate.whole });
        }
        match kind {
            RunEventKind::GateDecided { .. } => self.gate = words::gate(kind),
            RunEventKind::RunEnded { status, .. } => {
                self.output
                    .line(&format!("run ended: {}", words::status(*status)));
            }
            kind => {
                if let Some(sentence) = words::sentence(kind) {
                    self.output.line(&sentence);
                }
            }
        }
    }

    /// Shows how far an event brought the run, without telling of it.
    pub(crate) fn show(&mut self, kind: &RunEventKind) {
        match kind {
            RunEventKind::AttemptStarted { task, .. } => self.task_bar(task),
            RunEventKind::AttemptProgress { task, progress, .. } => self.task_progress(task, progress),
            RunEventKind::AttemptFailed { task, .. }
            | RunEventKind::TaskDone { task, .. }
            | RunEventKind::TaskQuarantined { task, .. } => self.end_task(task),
            RunEventKind::RunEnded { .. } => self.end(),
            RunEventKind::RunSubmitted { .. }
            | RunEventKind::RunResumed { .. }
            | RunEventKind::CycleStarted { .. }
            | RunEventKind::TaskReleased { .. }
            | RunEventKind::SubjectScored { .. }
            | RunEventKind::GateDecided { .. }
            | RunEventKind::Curated { .. } => {}
        }
    }

    /// Whether bars are shown: else nobody sees the run as a whole.
    pub(crate) fn has_bars(&self) -> bool {
        self.bars.is_some()
    }

    /// Moves the run's bar.
    pub(crate) fn overall(&self, overall: &Overall) {
        if let Some(run) = self.bars.as_ref().and_then(|bars| bars.run.as_ref()) {
            move_to(run, overall.n_done, overall.n_total);
            run.set_message(format!(
                "cycle {} · {}",
                overall.cycle,
                words::cost(&overall.cost)
            ));
        }
    }

    /// Takes the bars away.
    pub(crate) fn end(&mut self) {
        if let Some(gate) = self.gate.take() {
            self.output.line(&gate.whole);
        }
        if let Some(bars) = self.bars.take() {
            bars.tasks.values().for_each(ProgressBar::finish_and_clear);
            bars.run.iter().for_each(ProgressBar::finish_and_clear);
        }
    }

    fn task_bar(&mut self, task: &TaskId) {
        if let Some(bars) = &mut self.bars {
            bars.tasks.entry(task.clone()).or_insert_with(|| {
                let bar = ProgressBar::no_length().with_style(style(TASK_TEMPLATE));
                bar.set_prefix(task.to_string());
                match &bars.run {
                    Some(run) => bars.multi.insert_before(run, bar),
                    None => bars.multi.add(bar),
                }
            });
        }
    }

    fn task_progress(&mut self, task: &TaskId, progress: &TaskProgress) {
        self.task_bar(task);
        match &self.bars {
            Some(bars) => {
                if let Some(bar) = bars.tasks.get(task) {
                    move_to(bar, progress.n_done, progress.n_total);
                    bar.set_message(format!("{} {}", progress.unit, progress.detail));
                }
            }
            None => {
                let now = Instant::now();
                let last = self.last_lines.entry(task.clone()).or_insert(now);
                if now.duration_since(*last) >= LINE_INTERVAL {
                    *last = now;
                    self.output.line(&words::progress(task, progress));
                }
            }
        }
    }

    fn end_task(&mut self, task: &TaskId) {
        self.last_lines.remove(task);
        if let Some(bar) = self.bars.as_mut().and_then(|bars| bars.tasks.remove(task)) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// A bar whose end is not known yet is empty, where one of no length would be full.
fn move_to(bar: &ProgressBar, n_done: u64, n_total: u64) {
    if n_total > 0 {
        bar.set_length(n_total);
    }
    bar.set_position(n_done);
}

const RUN_TEMPLATE: &str = "{spinner} {prefix} {bar:24} {pos}/{len} tasks · {msg} · {elapsed}";
const TASK_TEMPLATE: &str = "  {prefix:30!} {bar:16} {pos}/{len} {wide_msg}";

fn style(template: &str) -> ProgressStyle {
    // The templates are constants that a test renders; the plain bar is a fallback that loses only looks.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▌░")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_of_unknown_length_is_empty() {
        let bar = ProgressBar::no_length();
        let share = |bar: &ProgressBar| {
            let mut share = 1.0;
            bar.update(|state| share = state.fraction());
            share
        };
        move_to(&bar, 0, 0);
        assert_eq!(share(&bar), 0.0);
        move_to(&bar, 1, 4);
        assert_eq!(share(&bar), 0.25);
    }

    #[test]
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(RUN_TEMPLATE).is_ok());
        assert!(ProgressStyle::with_template(TASK_TEMPLATE).is_ok());
    }
}
