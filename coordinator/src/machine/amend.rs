//! People's second thoughts: releasing a quarantined task and going on with an ended run.
//!
//! Invariant: what a run is (its models, its data, its settings) never changes; only limits and ways to reach a service do.

use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::TaskId;
use llamaduo_proto::run::{RunStatus, ServiceLlmSpec};
use llamaduo_proto::task::{Answerer, TaskSpec, TaskStatus};

use super::event::{Amendment, Refusal};
use super::run::{Task, Work};
use super::step::Step;

/// Tasks released in one step: two operations each, beside those of leases taken back, within a transaction's 128.
const RELEASED_PER_STEP_MAX: usize = 8;

impl Step {
    pub(super) fn retry_task(&mut self, id: &TaskId) -> Result<(), Refusal> {
        let unknown = || Refusal::UnknownTask {
            run: self.run.id.to_string(),
            task: id.clone(),
        };
        if self.run.tasks.get(id).ok_or_else(unknown)?.record.status != TaskStatus::Quarantined {
            return Err(Refusal::NotQuarantined { task: id.clone() });
        }
        if self.standing() != RunStatus::Running {
            self.revive();
        }
        self.release(id);
        Ok(())
    }

    fn release(&mut self, id: &TaskId) {
        if let Some(task) = self.task_mut(id) {
            task.record.status = TaskStatus::Ready;
            task.record.n_failed = 0;
            task.record.lost_on.clear();
            task.not_before = Duration::ZERO;
            self.emit(RunEventKind::TaskReleased { task: id.clone() });
        }
    }

    pub(super) fn resume(&mut self, amendment: Amendment) -> Result<(), Refusal> {
        if self.run.head.status == RunStatus::Passed {
            return Err(Refusal::Passed);
        }
        self.run.work = Arc::new(amend(&self.run.work, amendment)?);
        let cycles_max = self.run.spec().map_or(u32::MAX, |spec| spec.cycles_max);
        if self.run.head.status == RunStatus::GateNotReached && self.run.head.cycle.0 >= cycles_max {
            return Err(Refusal::NoCyclesLeft { cycles_max });
        }
        self.revive();
        Ok(())
    }

    /// Releases quarantined tasks of a run that goes on, as many as fit in one transaction; whether there were any. A
    /// quarantine ends its run, so those of a run that goes on are from before somebody revived it.
    pub(super) fn release_quarantined(&mut self) -> bool {
        if !self.run.is_open() {
            return false;
        }
        let is_quarantined = |(id, task): (&TaskId, &Arc<Task>)| {
            (task.record.status == TaskStatus::Quarantined).then(|| id.clone())
        };
        let quarantined: Vec<TaskId> = self
            .run
            .tasks
            .iter()
            .filter_map(is_quarantined)
            .take(RELEASED_PER_STEP_MAX)
            .collect();
        for id in &quarantined {
            self.release(id);
        }
        !quarantined.is_empty()
    }

    /// How the run has ended or is ending; `Running` where it does neither.
    fn standing(&self) -> RunStatus {
        let head = &self.run.head;
        head.ending.as_ref().map_or(head.status, |ending| ending.status)
    }

    /// Makes an ended or ending run go on, or one that runs go on under what was amended.
    fn revive(&mut self) {
        let was = self.standing();
        self.emit(RunEventKind::RunResumed { was });
        let head = &mut self.run.head;
        head.status = RunStatus::Running;
        head.ending = None;
        head.reason.clear();
        head.report = None;
        head.n_aggregate_failures = 0;
        self.run.aggregate_not_before = Duration::ZERO;
    }
}

fn amend(work: &Work, amendment: Amendment) -> Result<Work, Refusal> {
    let Amendment {
        budget,
        service_llm,
        judge_llm,
        cycles_max,
        overrides,
    } = amendment;
    let mut work = work.clone();
    match &mut work {
        Work::Single {
            budget: old, spec, ..
        } => {
            *old = budget.unwrap_or(*old);
            let new = match **spec {
                TaskSpec::Judge(_) => judge_llm.or(service_llm),
                TaskSpec::Train(_) | TaskSpec::Synthesize(_) | TaskSpec::Infer(_) => service_llm,
            };
            if let Some(service) = service_of(spec) {
                replace(service, new)?;
            }
        }
        Work::Migration(spec) => {
            spec.budget = budget.unwrap_or(spec.budget);
            if cycles_max.is_some_and(|new| new < spec.cycles_max) {
                return Err(Refusal::FixedField {
                    field: "cycles_max, other than to a larger number,",
                });
            }
            spec.cycles_max = cycles_max.unwrap_or(spec.cycles_max);
            let teacher_judges = spec.judge_llm == spec.service_llm;
            let new_judge = judge_llm.or_else(|| service_llm.clone().filter(|_| teacher_judges));
            replace(&mut spec.judge_llm, new_judge)?;
            replace(&mut spec.service_llm, service_llm)?;
            if !overrides.is_empty() {
                spec.overrides = overrides;
            }
        }
    }
    Ok(work)
}

/// The service that a task calls, if it calls one.
fn service_of(spec: &mut TaskSpec) -> Option<&mut ServiceLlmSpec> {
    match spec {
        TaskSpec::Judge(task) => Some(&mut task.judge_llm),
        TaskSpec::Synthesize(task) => Some(&mut task.service_llm),
        TaskSpec::Infer(task) => match &mut task.answerer {
            Answerer::Service { service_llm } => Some(service_llm),
            Answerer::Base { .. } | Answerer::Adapter { .. } => None,
        },
        TaskSpec::Train(_) => None,
    }
}

/// Whether `wanted` asks for the run that `stored` is: what a resume may change may differ, nothing else.
pub fn is_same_run(stored: &Work, wanted: &Work) -> bool {
    let (mut wanted, mut stored) = (wanted.clone(), stored.clone());
    match (&mut wanted, &mut stored) {
        (Work::Migration(wanted), Work::Migration(stored)) => {
            (wanted.budget, wanted.cycles_max) = (stored.budget, stored.cycles_max);
            wanted.overrides.clone_from(&stored.overrides);
            reach_as(&mut wanted.service_llm, &stored.service_llm);
            reach_as(&mut wanted.judge_llm, &stored.judge_llm);
        }
        (
            Work::Single { spec, budget, .. },
            Work::Single {
                spec: stored_spec,
                budget: stored_budget,
                ..
            },
        ) => {
            *budget = *stored_budget;
            if let (Some(service), Some(stored)) = (service_of(spec), service_of(stored_spec)) {
                reach_as(service, stored);
            }
        }
        _ => {}
    }
    wanted == stored
}

/// The same service LLM is reached as another specification says.
fn reach_as(wanted: &mut ServiceLlmSpec, stored: &ServiceLlmSpec) {
    if wanted.vendor == stored.vendor && wanted.model == stored.model {
        wanted.clone_from(stored);
    }
}

fn replace(old: &mut ServiceLlmSpec, new: Option<ServiceLlmSpec>) -> Result<(), Refusal> {
    let Some(new) = new else { return Ok(()) };
    if old.vendor != new.vendor || old.model != new.model {
        return Err(Refusal::FixedField {
            field: "vendor or model of a service LLM",
        });
    }
    *old = new;
    Ok(())
}
