//! `run_service.proto`: submissions, and runs, tasks and workers as clients see them.

use super::run::{CYCLES_MAX, RUN_NAME_CHARS_MAX, overrides};
use super::{
    InvalidMessage, Result, at_least_1, digest, digest_text, enumeration, id, list, nested, optional,
    optional_digest, optional_id, required, text, text_for_people, unless_zero, up_to,
};
use crate::ids::{Cycle, RunId, TaskId};
use crate::run::Stage;
use crate::task::TaskSpec;
use crate::view::{
    CycleCuration, CycleGate, ResumeRun, RunDetails, RunView, StageCount, SubjectScores, SubmitRun,
    SubmitTask, TaskView, WorkerView,
};
use crate::wire;

impl TryFrom<wire::SubmitRunRequest> for SubmitRun {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SubmitRunRequest) -> Result<Self> {
        Ok(Self {
            request: id("request_id", &wire.request_id)?,
            spec: required("spec", wire.spec)?,
        })
    }
}

impl From<SubmitRun> for wire::SubmitRunRequest {
    fn from(submit: SubmitRun) -> Self {
        Self {
            request_id: submit.request.into(),
            spec: Some(submit.spec.into()),
        }
    }
}

impl TryFrom<wire::SubmitTaskRequest> for SubmitTask {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SubmitTaskRequest) -> Result<Self> {
        let spec: TaskSpec = required("spec", wire.spec)?;
        let name = if wire.name.is_empty() {
            match spec.stage() {
                Stage::Train => "train",
                Stage::Infer => "infer",
                Stage::Judge => "judge",
                Stage::Synthesize => "synthesize",
            }
            .to_owned()
        } else {
            text("name", wire.name, RUN_NAME_CHARS_MAX)?
        };
        Ok(Self {
            request: id("request_id", &wire.request_id)?,
            name,
            spec,
            budget: nested("budget", wire.budget.unwrap_or_default())?,
        })
    }
}

impl From<SubmitTask> for wire::SubmitTaskRequest {
    fn from(submit: SubmitTask) -> Self {
        Self {
            request_id: submit.request.into(),
            name: submit.name,
            spec: Some(submit.spec.into()),
            budget: Some(submit.budget.into()),
        }
    }
}

impl TryFrom<wire::ResumeRunRequest> for ResumeRun {
    type Error = InvalidMessage;
    fn try_from(wire: wire::ResumeRunRequest) -> Result<Self> {
        let cycles_max = unless_zero(wire.cycles_max);
        Ok(Self {
            run: id("run_id", &wire.run_id)?,
            budget: optional("budget", wire.budget)?,
            service_llm: optional("service_llm", wire.service_llm)?,
            judge_llm: optional("judge_llm", wire.judge_llm)?,
            cycles_max: cycles_max
                .map(|cycles| up_to("cycles_max", cycles, CYCLES_MAX))
                .transpose()?,
            overrides: overrides(wire.overrides)?,
        })
    }
}

impl From<ResumeRun> for wire::ResumeRunRequest {
    fn from(resume: ResumeRun) -> Self {
        Self {
            run_id: resume.run.into(),
            budget: resume.budget.map(Into::into),
            service_llm: resume.service_llm.map(Into::into),
            judge_llm: resume.judge_llm.map(Into::into),
            cycles_max: resume.cycles_max.unwrap_or_default(),
            overrides: resume.overrides,
        }
    }
}

impl TryFrom<wire::Run> for RunView {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Run) -> Result<Self> {
        Ok(Self {
            run: id("run_id", &wire.run_id)?,
            name: text("name", wire.name, RUN_NAME_CHARS_MAX)?,
            status: enumeration::<wire::RunStatus, _>("status", wire.status)?,
            reason: (!wire.reason.is_empty()).then(|| text_for_people(wire.reason)),
            cycle: Cycle(wire.cycle),
            stages: list("stages", wire.stages)?,
            cost: required("cost", wire.cost)?,
            report: optional_digest("report_digest", &wire.report_digest)?,
            adapter: optional_digest("adapter_digest", &wire.adapter_digest)?,
            submitted_at_ms: wire.submitted_at_ms,
            ending: wire
                .ending
                .map(|ending| enumeration::<wire::RunStatus, _>("ending", ending))
                .transpose()?,
        })
    }
}

impl From<RunView> for wire::Run {
    fn from(run: RunView) -> Self {
        Self {
            run_id: run.run.into(),
            name: run.name,
            status: wire::RunStatus::from(run.status).into(),
            reason: run.reason.unwrap_or_default(),
            cycle: run.cycle.0,
            stages: run.stages.into_iter().map(Into::into).collect(),
            cost: Some(run.cost.into()),
            report_digest: digest_text(run.report),
            adapter_digest: digest_text(run.adapter),
            submitted_at_ms: run.submitted_at_ms,
            ending: run.ending.map(|ending| wire::RunStatus::from(ending).into()),
        }
    }
}

impl TryFrom<wire::StageCount> for StageCount {
    type Error = InvalidMessage;
    fn try_from(wire: wire::StageCount) -> Result<Self> {
        if wire.n_done > wire.n_total {
            return Err(InvalidMessage::new("n_done", "at most n_total", wire.n_done));
        }
        Ok(Self {
            stage: enumeration::<wire::Stage, _>("stage", wire.stage)?,
            n_done: wire.n_done,
            n_total: wire.n_total,
        })
    }
}

impl From<StageCount> for wire::StageCount {
    fn from(count: StageCount) -> Self {
        Self {
            stage: wire::Stage::from(count.stage).into(),
            n_done: count.n_done,
            n_total: count.n_total,
        }
    }
}

impl TryFrom<wire::GetRunResponse> for RunDetails {
    type Error = InvalidMessage;
    fn try_from(wire: wire::GetRunResponse) -> Result<Self> {
        Ok(Self {
            run: required("run", wire.run)?,
            spec: optional("spec", wire.spec)?,
            scores: list("scores", wire.scores)?,
            gates: list("gates", wire.gates)?,
            curations: list("curations", wire.curations)?,
        })
    }
}

impl From<RunDetails> for wire::GetRunResponse {
    fn from(details: RunDetails) -> Self {
        Self {
            run: Some(details.run.into()),
            spec: details.spec.map(Into::into),
            scores: details.scores.into_iter().map(Into::into).collect(),
            gates: details.gates.into_iter().map(Into::into).collect(),
            curations: details.curations.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::CycleCuration> for CycleCuration {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CycleCuration) -> Result<Self> {
        Ok(Self {
            cycle: Cycle(at_least_1("cycle", wire.cycle)?),
            manifest: digest("manifest_digest", &wire.manifest_digest)?,
        })
    }
}

impl From<CycleCuration> for wire::CycleCuration {
    fn from(curation: CycleCuration) -> Self {
        Self {
            cycle: curation.cycle.0,
            manifest_digest: curation.manifest.to_string(),
        }
    }
}

impl TryFrom<wire::SubjectScored> for SubjectScores {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SubjectScored) -> Result<Self> {
        Ok(Self {
            cycle: Cycle(wire.cycle),
            subject: required("subject", wire.subject)?,
            scores: required("scores", wire.scores)?,
        })
    }
}

impl From<SubjectScores> for wire::SubjectScored {
    fn from(scored: SubjectScores) -> Self {
        Self {
            cycle: scored.cycle.0,
            subject: Some(scored.subject.into()),
            scores: Some(scored.scores.into()),
        }
    }
}

impl TryFrom<wire::GateDecided> for CycleGate {
    type Error = InvalidMessage;
    fn try_from(wire: wire::GateDecided) -> Result<Self> {
        Ok(Self {
            cycle: Cycle(at_least_1("cycle", wire.cycle)?),
            decision: required("decision", wire.decision)?,
        })
    }
}

impl From<CycleGate> for wire::GateDecided {
    fn from(gate: CycleGate) -> Self {
        Self {
            cycle: gate.cycle.0,
            decision: Some(gate.decision.into()),
        }
    }
}

impl TryFrom<wire::Task> for TaskView {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Task) -> Result<Self> {
        Ok(Self {
            run: id("run_id", &wire.run_id)?,
            task: id("task_id", &wire.task_id)?,
            spec: required("spec", wire.spec)?,
            status: enumeration::<wire::TaskStatus, _>("status", wire.status)?,
            n_attempts: wire.n_attempts,
            worker: optional_id("worker_id", &wire.worker_id)?,
            result: optional("result", wire.result)?,
            failures: list("failures", wire.failures)?,
            progress: optional("progress", wire.progress)?,
        })
    }
}

impl From<TaskView> for wire::Task {
    fn from(task: TaskView) -> Self {
        Self {
            run_id: task.run.into(),
            task_id: task.task.into(),
            spec: Some(task.spec.into()),
            status: wire::TaskStatus::from(task.status).into(),
            n_attempts: task.n_attempts,
            worker_id: task.worker.map(Into::into).unwrap_or_default(),
            result: task.result.map(Into::into),
            failures: task.failures.into_iter().map(Into::into).collect(),
            progress: task.progress.map(Into::into),
        }
    }
}

impl TryFrom<wire::Worker> for WorkerView {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Worker) -> Result<Self> {
        super::short_list("running", wire.running.len())?;
        Ok(Self {
            worker: id("worker_id", &wire.worker_id)?,
            device: text_for_people(wire.device),
            running: wire
                .running
                .iter()
                .map(|text| run_and_task(text))
                .collect::<Result<_>>()?,
            draining: wire.draining,
        })
    }
}

fn run_and_task(text: &str) -> Result<(RunId, TaskId)> {
    let (run, task) = text
        .split_once('/')
        .ok_or_else(|| InvalidMessage::new("running", "run/task", text))?;
    Ok((id("running", run)?, id("running", task)?))
}

impl From<WorkerView> for wire::Worker {
    fn from(worker: WorkerView) -> Self {
        Self {
            worker_id: worker.worker.into(),
            device: worker.device,
            running: worker
                .running
                .iter()
                .map(|(run, task)| format!("{run}/{task}"))
                .collect(),
            draining: worker.draining,
        }
    }
}
