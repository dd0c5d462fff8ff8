//! What comes next: derived anew after every event from what is done so far.
//!
//! Invariant: `advance` is level-triggered. It looks at the whole run, creates the tasks that should exist and names the
//! aggregates that should be computed, so that a lost message or a restart can delay a run but never strand it.

use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{GateRule, RunSpec, RunStatus, Subject};
use llamaduo_proto::task::TaskStatus;

use super::event::{Action, Aggregate, Aggregated};
use super::run::{Curation, CycleRecord, Head, Now, Rules, Run, Scored, Task, TaskKind, TaskRecord, Work};
use super::spec::{infer_shards, subjects, synthesis_shards};
use super::step::Step;

impl Run {
    /// A run as it is submitted, with its first tasks.
    pub fn submitted(
        id: llamaduo_proto::ids::RunId,
        request: llamaduo_proto::ids::RequestId,
        work: Work,
        rules: Rules,
        now: Now,
    ) -> (Self, Vec<Action>) {
        let head = Head {
            request,
            submitted_at_ms: now.time_ms,
            status: RunStatus::Running,
            reason: String::new(),
            report: None,
            cycle: Cycle(0),
            n_events: 0,
            ending: None,
            n_aggregate_failures: 0,
        };
        let mut run = Self {
            id,
            work: Arc::new(work),
            head,
            cycles: std::collections::BTreeMap::new(),
            tasks: std::collections::BTreeMap::new(),
            journal: Vec::new(),
            rules,
            last_tick: now.clock,
            aggregate_not_before: Duration::ZERO,
        };
        let name = run.work.name().to_owned();
        run.record(now, RunEventKind::RunSubmitted { name });
        let mut step = Step {
            run,
            actions: Vec::new(),
            now,
        };
        match &*Arc::clone(&step.run.work) {
            Work::Migration(spec) => step.start_cycle(spec, Cycle(0)),
            Work::Single { .. } => step.create(Cycle(0), TaskKind::Single),
        }
        step.advance();
        (step.run, step.actions)
    }
}

impl Step {
    pub(super) fn advance(&mut self) {
        if self.run.has_ended() {
            return;
        }
        if self.run.is_open() {
            match &*Arc::clone(&self.run.work) {
                Work::Migration(spec) => self.advance_migration(spec),
                Work::Single { .. } => {
                    if self
                        .run
                        .tasks
                        .values()
                        .all(|task| task.record.status == TaskStatus::Done)
                    {
                        self.end(RunStatus::Passed, "the task is done");
                    }
                }
            }
        }
        if self.run.is_open() {
            self.actions.push(Action::Place);
        } else {
            self.wind_up();
        }
    }

    /// The last steps of a run: no leases, then the report, then the end.
    fn wind_up(&mut self) {
        let has_leases = self.run.tasks.values().any(|task| task.lease.is_some());
        if has_leases {
            return;
        }
        match &*self.run.work {
            Work::Migration(_) => self.aggregate(Aggregate::Report),
            Work::Single { .. } => self.finish(None),
        }
    }

    /// Ends the run.
    pub(super) fn finish(&mut self, report: Option<Digest>) {
        let Some(ending) = self.run.head.ending.take() else {
            return;
        };
        let (status, reason) = (ending.status, ending.reason);
        self.run.head.status = status;
        self.run.head.reason.clone_from(&reason);
        self.run.head.report = report;
        self.emit(RunEventKind::RunEnded {
            status,
            reason,
            report,
        });
    }

    fn advance_migration(&mut self, spec: &RunSpec) {
        let cycle = self.run.head.cycle;
        if cycle > Cycle(0) {
            if self.run.adapter(cycle).is_none() {
                return;
            }
            self.create_infer_tasks(spec, cycle);
        }
        self.create_judge_tasks(spec, cycle);
        let record = self.run.cycles.get(&cycle).cloned().unwrap_or_default();
        let is_scored = |subject: &Subject| record.scores.iter().any(|scored| scored.subject == *subject);
        let unscored: Vec<Subject> = subjects(spec, cycle)
            .into_iter()
            .filter(|subject| !is_scored(subject))
            .collect();
        for &subject in &unscored {
            if self.is_judged(spec, cycle, subject) {
                self.aggregate(Aggregate::Score { cycle, subject });
            }
        }
        if !unscored.is_empty() {
            return;
        }
        if cycle == Cycle(0) {
            match unreadable(spec, &record.scores) {
                Some(reason) => self.end(RunStatus::ServiceFailed, &reason),
                None => self.start_cycle(spec, Cycle(1)),
            }
            return;
        }
        match &record.gate {
            None => self.aggregate(Aggregate::Gate { cycle }),
            Some(gate) if gate.passed => self.end(RunStatus::Passed, &gate.reason),
            Some(gate) if cycle.0 >= spec.cycles_max => {
                let used = match spec.cycles_max {
                    1 => "its only cycle was used".to_owned(),
                    n => format!("all {n} cycles were used"),
                };
                let reason = format!("{used}: {}", gate.reason);
                self.end(RunStatus::GateNotReached, &reason);
            }
            Some(_) => self.advance_synthesis(spec, cycle, record.curation),
        }
    }

    fn advance_synthesis(&mut self, spec: &RunSpec, cycle: Cycle, curation: Option<Curation>) {
        let shards = synthesis_shards(spec);
        for shard in 0..shards.n {
            self.create(cycle, TaskKind::Synthesize { shard });
        }
        match curation {
            Some(curation) if curation.counts.n_kept == 0 => {
                let n_raw = curation.counts.n_raw;
                let reason = format!(
                    "curation kept none of {n_raw} synthesized pairs, so another cycle would train on the same data"
                );
                self.end(RunStatus::GateNotReached, &reason);
            }
            Some(_) => self.start_cycle(spec, Cycle(cycle.0 + 1)),
            None => {
                if (0..shards.n).all(|shard| self.is_done(cycle, TaskKind::Synthesize { shard })) {
                    self.aggregate(Aggregate::Curate { cycle });
                }
            }
        }
    }

    fn start_cycle(&mut self, spec: &RunSpec, cycle: Cycle) {
        let n_samples = if cycle == Cycle(0) {
            0
        } else {
            self.run.training_data(spec, cycle).1
        };
        self.run.head.cycle = cycle;
        self.run.cycles.insert(
            cycle,
            Arc::new(CycleRecord {
                n_samples,
                ..CycleRecord::default()
            }),
        );
        self.emit(RunEventKind::CycleStarted { cycle, n_samples });
        if cycle == Cycle(0) {
            self.create_infer_tasks(spec, cycle);
        } else {
            self.create(cycle, TaskKind::Train);
        }
    }

    fn create_infer_tasks(&mut self, spec: &RunSpec, cycle: Cycle) {
        for subject in subjects(spec, cycle) {
            for shard in 0..infer_shards(spec).n {
                self.create(cycle, TaskKind::Infer { subject, shard });
            }
        }
    }

    /// One for each finished infer task.
    fn create_judge_tasks(&mut self, spec: &RunSpec, cycle: Cycle) {
        for subject in subjects(spec, cycle) {
            for shard in 0..infer_shards(spec).n {
                if self.is_done(cycle, TaskKind::Infer { subject, shard }) {
                    self.create(cycle, TaskKind::Judge { subject, shard });
                }
            }
        }
    }

    /// Creates a task unless it exists.
    fn create(&mut self, cycle: Cycle, kind: TaskKind) {
        // Tasks of a run are far fewer than 2^32, and this only orders a list.
        let order = self.run.tasks.len() as u32;
        self.run.tasks.entry(kind.id(cycle)).or_insert_with(|| {
            let record = TaskRecord {
                cycle,
                kind,
                order,
                status: TaskStatus::Ready,
                n_attempts: 0,
                n_failed: 0,
                lost_on: Vec::new(),
                batch_halvings: 0,
                failures: Vec::new(),
                result: None,
                ended: None,
            };
            Arc::new(Task::new(record))
        });
    }

    fn is_done(&self, cycle: Cycle, kind: TaskKind) -> bool {
        self.run
            .tasks
            .get(&kind.id(cycle))
            .is_some_and(|task| task.record.status == TaskStatus::Done)
    }

    fn is_judged(&self, spec: &RunSpec, cycle: Cycle, subject: Subject) -> bool {
        (0..infer_shards(spec).n).all(|shard| self.is_done(cycle, TaskKind::Judge { subject, shard }))
    }

    fn aggregate(&mut self, aggregate: Aggregate) {
        if self.now.clock >= self.run.aggregate_not_before {
            self.actions.push(Action::Aggregate(aggregate));
        }
    }

    /// Takes over what an aggregate came to; what is known already stays.
    pub(super) fn aggregated(&mut self, aggregated: Aggregated) {
        self.run.head.n_aggregate_failures = 0;
        match aggregated {
            Aggregated::Scored {
                cycle,
                subject,
                scores,
            } => {
                let Some(record) = self.cycle_mut(cycle) else {
                    return;
                };
                if record.scores.iter().all(|scored| scored.subject != subject) {
                    record.scores.push(Scored {
                        subject,
                        scores: scores.clone(),
                    });
                    self.emit(RunEventKind::SubjectScored {
                        cycle,
                        subject,
                        scores,
                    });
                }
            }
            Aggregated::Gated { cycle, decision } => {
                let Some(record) = self.cycle_mut(cycle) else {
                    return;
                };
                if record.gate.is_none() {
                    record.gate = Some(decision.clone());
                    self.emit(RunEventKind::GateDecided { cycle, decision });
                }
            }
            Aggregated::Curated {
                cycle,
                counts,
                manifest,
                samples,
            } => {
                let Some(record) = self.cycle_mut(cycle) else {
                    return;
                };
                if record.curation.is_none() {
                    record.curation = Some(Curation {
                        counts,
                        manifest,
                        samples,
                    });
                    let next = Cycle(cycle.0 + 1);
                    let n_samples_next = self
                        .run
                        .spec()
                        .map_or(0, |spec| self.run.training_data(spec, next).1);
                    self.emit(RunEventKind::Curated {
                        cycle,
                        counts,
                        n_samples_next,
                    });
                }
            }
            Aggregated::Reported { manifest } => {
                if self.run.tasks.values().all(|task| task.lease.is_none()) {
                    self.finish(Some(manifest));
                }
            }
        }
    }

    fn cycle_mut(&mut self, cycle: Cycle) -> Option<&mut CycleRecord> {
        self.run.cycles.get_mut(&cycle).map(Arc::make_mut)
    }
}

/// Why no cycle could pass after cycle 0 was scored: none of the judge's replies could be read, or, where the gate
/// compares with the service LLM, none of those about its answers. To train would be for nothing.
fn unreadable(spec: &RunSpec, scores: &[Scored]) -> Option<String> {
    let is_unreadable = |scored: &&Scored| scored.scores.n_verdicts == 0 && 0 < scored.scores.n_unparsed;
    let n_replies: u32 = scores
        .iter()
        .filter(is_unreadable)
        .map(|scored| scored.scores.n_unparsed)
        .sum();
    let compares = matches!(spec.gate.rule, GateRule::Relative { .. });
    let is_ceiling_unreadable = scores
        .iter()
        .filter(is_unreadable)
        .any(|scored| scored.subject == Subject::Service);
    let about = if !scores.is_empty() && scores.iter().all(|scored| is_unreadable(&scored)) {
        ""
    } else if compares && is_ceiling_unreadable {
        " about the service LLM's own answers, which the gate compares with,"
    } else {
        return None;
    };
    Some(format!(
        "none of the judge's {n_replies} replies{about} could be read as a grade, so no cycle could pass; look at them in \
         cycles/0/verdicts.jsonl, then begin a new run with another judge.model, or with a judge.prompt that says the form of \
         the reply"
    ))
}
