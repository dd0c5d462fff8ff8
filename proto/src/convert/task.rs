//! `task.proto`: tasks, results, failures, progress.

use super::run::SYNTHESIS_CALLS_MAX;
use super::{
    InvalidMessage, Result, TOPIC_CHARS_MAX, at_least_1, digest, digest_text, digests, enumeration, id,
    nested, number, optional, optional_digest, optional_text, required, same_variants, text_for_people,
};
use crate::ids::{AttemptNumber, Cycle};
use crate::run::Subject;
use crate::task::{
    Answerer, Failure, FailureKind, InferOutput, InferTask, JudgeOutput, JudgeTask, Progress,
    SynthesizeOutput, SynthesizeTask, TaskOutput, TaskResult, TaskSpec, TaskStatus, TrainOutput, TrainTask,
};
use crate::wire;

same_variants!(
    TaskStatus,
    unspecified Err(InvalidMessage::unspecified("a status")),
    Ready, Running, Done, Quarantined, Cancelled
);
same_variants!(
    FailureKind,
    unspecified Ok(FailureKind::Permanent),
    Retryable, Permanent, OutOfMemory, Cancelled, WorkerLost, LeaseExpired, CorruptInput, ServiceRefused, ServiceUnavailable,
    BudgetSpent, Released
);

impl TryFrom<wire::TaskSpec> for TaskSpec {
    type Error = InvalidMessage;
    fn try_from(wire: wire::TaskSpec) -> Result<Self> {
        use wire::task_spec::Task;
        match wire.task.ok_or_else(|| InvalidMessage::absent("task"))? {
            Task::Train(task) => nested("train", task).map(Self::Train),
            Task::Infer(task) => nested("infer", task).map(Self::Infer),
            Task::Judge(task) => nested("judge", task).map(Self::Judge),
            Task::Synthesize(task) => nested("synthesize", task).map(Self::Synthesize),
        }
    }
}

impl From<TaskSpec> for wire::TaskSpec {
    fn from(spec: TaskSpec) -> Self {
        use wire::task_spec::Task;
        let task = match spec {
            TaskSpec::Train(task) => Task::Train(task.into()),
            TaskSpec::Infer(task) => Task::Infer(task.into()),
            TaskSpec::Judge(task) => Task::Judge(task.into()),
            TaskSpec::Synthesize(task) => Task::Synthesize(task.into()),
        };
        Self { task: Some(task) }
    }
}

impl TryFrom<wire::TrainTask> for TrainTask {
    type Error = InvalidMessage;
    fn try_from(wire: wire::TrainTask) -> Result<Self> {
        if wire.data_digests.is_empty() {
            return Err(InvalidMessage::absent("data_digests"));
        }
        Ok(Self {
            cycle: Cycle(at_least_1("cycle", wire.cycle)?),
            local_model: required("local_model", wire.local_model)?,
            data: digests("data_digests", &wire.data_digests)?,
            settings: required("settings", wire.settings)?,
            seed: wire.seed,
            init_adapter: optional_digest("init_adapter_digest", &wire.init_adapter_digest)?,
        })
    }
}

impl From<TrainTask> for wire::TrainTask {
    fn from(task: TrainTask) -> Self {
        Self {
            cycle: task.cycle.0,
            local_model: Some(task.local_model.into()),
            data_digests: task.data.iter().map(ToString::to_string).collect(),
            settings: Some(task.settings.into()),
            seed: task.seed,
            init_adapter_digest: digest_text(task.init_adapter),
        }
    }
}

impl TryFrom<wire::InferTask> for InferTask {
    type Error = InvalidMessage;
    fn try_from(wire: wire::InferTask) -> Result<Self> {
        let n_prompts = at_least_1("n_prompts", wire.n_prompts)?;
        if wire.first_prompt.checked_add(n_prompts).is_none() {
            return Err(InvalidMessage::new(
                "first_prompt",
                "a position in the test split",
                wire.first_prompt,
            ));
        }
        let subject: Subject = required("subject", wire.subject)?;
        let answerer = answerer(
            subject,
            wire.local_model,
            optional_digest("adapter_digest", &wire.adapter_digest)?,
            wire.service_llm,
        )?;
        let cycle = Cycle(wire.cycle);
        if answerer.subject(cycle) != subject {
            let expected = format!("{:?}, as the rest of the task says", answerer.subject(cycle));
            return Err(InvalidMessage::new("subject", &expected, format!("{subject:?}")));
        }
        Ok(Self {
            cycle,
            answerer,
            test: digest("test_digest", &wire.test_digest)?,
            first_prompt: wire.first_prompt,
            n_prompts,
            settings: required("settings", wire.settings)?,
            seed: wire.seed,
        })
    }
}

/// What a subject answers with: exactly the fields that belong to it.
fn answerer(
    subject: Subject,
    local_model: Option<wire::LocalModel>,
    adapter: Option<crate::Digest>,
    service_llm: Option<wire::ServiceLlm>,
) -> Result<Answerer> {
    let nothing = |field: &str, is_absent: bool| {
        if is_absent {
            Ok(())
        } else {
            Err(InvalidMessage::new(field, "nothing for this subject", "a value"))
        }
    };
    match subject {
        Subject::Base(_) => {
            nothing("adapter_digest", adapter.is_none())?;
            nothing("service_llm", service_llm.is_none())?;
            Ok(Answerer::Base {
                local_model: required("local_model", local_model)?,
            })
        }
        Subject::Adapter(_) => {
            nothing("service_llm", service_llm.is_none())?;
            let adapter = adapter.ok_or_else(|| InvalidMessage::absent("adapter_digest"))?;
            Ok(Answerer::Adapter {
                local_model: required("local_model", local_model)?,
                adapter,
            })
        }
        Subject::Service => {
            nothing("local_model", local_model.is_none())?;
            nothing("adapter_digest", adapter.is_none())?;
            Ok(Answerer::Service {
                service_llm: required("service_llm", service_llm)?,
            })
        }
    }
}

impl From<InferTask> for wire::InferTask {
    fn from(task: InferTask) -> Self {
        let subject = task.answerer.subject(task.cycle);
        let (local_model, adapter, service_llm) = match task.answerer {
            Answerer::Base { local_model } => (Some(local_model), None, None),
            Answerer::Adapter { local_model, adapter } => (Some(local_model), Some(adapter), None),
            Answerer::Service { service_llm } => (None, None, Some(service_llm)),
        };
        Self {
            cycle: task.cycle.0,
            subject: Some(subject.into()),
            local_model: local_model.map(Into::into),
            adapter_digest: digest_text(adapter),
            service_llm: service_llm.map(Into::into),
            test_digest: task.test.to_string(),
            first_prompt: task.first_prompt,
            n_prompts: task.n_prompts,
            settings: Some(task.settings.into()),
            seed: task.seed,
        }
    }
}

impl TryFrom<wire::JudgeTask> for JudgeTask {
    type Error = InvalidMessage;
    fn try_from(wire: wire::JudgeTask) -> Result<Self> {
        Ok(Self {
            cycle: Cycle(wire.cycle),
            subject: optional("subject", wire.subject)?,
            judge_llm: required("judge_llm", wire.judge_llm)?,
            test: digest("test_digest", &wire.test_digest)?,
            responses: digest("responses_digest", &wire.responses_digest)?,
            settings: required("settings", wire.settings)?,
        })
    }
}

impl From<JudgeTask> for wire::JudgeTask {
    fn from(task: JudgeTask) -> Self {
        Self {
            cycle: task.cycle.0,
            subject: task.subject.map(Into::into),
            judge_llm: Some(task.judge_llm.into()),
            test_digest: task.test.to_string(),
            responses_digest: task.responses.to_string(),
            settings: Some(task.settings.into()),
        }
    }
}

impl TryFrom<wire::SynthesizeTask> for SynthesizeTask {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SynthesizeTask) -> Result<Self> {
        let n_calls = at_least_1("n_calls", wire.n_calls)?;
        let n_calls_before_next = wire.first_call.checked_add(n_calls);
        if n_calls_before_next.is_none_or(|n| n > SYNTHESIS_CALLS_MAX) {
            let expected = format!("with n_calls at most {SYNTHESIS_CALLS_MAX}");
            return Err(InvalidMessage::new("first_call", &expected, wire.first_call));
        }
        Ok(Self {
            cycle: Cycle(wire.cycle),
            service_llm: required("service_llm", wire.service_llm)?,
            train: digest("train_digest", &wire.train_digest)?,
            first_call: wire.first_call,
            n_calls,
            settings: required("settings", wire.settings)?,
            topic: optional_text("topic", wire.topic, TOPIC_CHARS_MAX)?,
            seed: wire.seed,
        })
    }
}

impl From<SynthesizeTask> for wire::SynthesizeTask {
    fn from(task: SynthesizeTask) -> Self {
        Self {
            cycle: task.cycle.0,
            service_llm: Some(task.service_llm.into()),
            train_digest: task.train.to_string(),
            first_call: task.first_call,
            n_calls: task.n_calls,
            settings: Some(task.settings.into()),
            topic: task.topic,
            seed: task.seed,
        }
    }
}

impl TryFrom<wire::TaskResult> for TaskResult {
    type Error = InvalidMessage;
    fn try_from(wire: wire::TaskResult) -> Result<Self> {
        use wire::task_result::Result as Wire;
        let output = match wire.result.ok_or_else(|| InvalidMessage::absent("result"))? {
            Wire::Train(output) => nested("train", output).map(TaskOutput::Train),
            Wire::Infer(output) => nested("infer", output).map(TaskOutput::Infer),
            Wire::Judge(output) => nested("judge", output).map(TaskOutput::Judge),
            Wire::Synthesize(output) => nested("synthesize", output).map(TaskOutput::Synthesize),
        };
        Ok(Self {
            manifest: digest("manifest_digest", &wire.manifest_digest)?,
            output: output?,
        })
    }
}

impl From<TaskResult> for wire::TaskResult {
    fn from(result: TaskResult) -> Self {
        use wire::task_result::Result as Wire;
        let output = match result.output {
            TaskOutput::Train(output) => Wire::Train(output.into()),
            TaskOutput::Infer(output) => Wire::Infer(output.into()),
            TaskOutput::Judge(output) => Wire::Judge(output.into()),
            TaskOutput::Synthesize(output) => Wire::Synthesize(output.into()),
        };
        Self {
            manifest_digest: result.manifest.to_string(),
            result: Some(output),
        }
    }
}

fn seconds(value: f64) -> Result<f64> {
    number("seconds", value, "at least 0", |x| x >= 0.0)
}

impl TryFrom<wire::TrainResult> for TrainOutput {
    type Error = InvalidMessage;
    fn try_from(wire: wire::TrainResult) -> Result<Self> {
        let finite = |field: &str, loss: f64| number(field, loss, "a finite number", |_| true);
        Ok(Self {
            n_samples: wire.n_samples,
            n_tokens: wire.n_tokens,
            n_steps: wire.n_steps,
            loss_first: finite("loss_first", wire.loss_first)?,
            loss_last: finite("loss_last", wire.loss_last)?,
            seconds: seconds(wire.seconds)?,
        })
    }
}

impl From<TrainOutput> for wire::TrainResult {
    fn from(output: TrainOutput) -> Self {
        Self {
            n_samples: output.n_samples,
            n_tokens: output.n_tokens,
            n_steps: output.n_steps,
            loss_first: output.loss_first,
            loss_last: output.loss_last,
            seconds: output.seconds,
        }
    }
}

impl TryFrom<wire::InferResult> for InferOutput {
    type Error = InvalidMessage;
    fn try_from(wire: wire::InferResult) -> Result<Self> {
        Ok(Self {
            responses: digest("responses_digest", &wire.responses_digest)?,
            n_responses: wire.n_responses,
            n_tokens: wire.n_tokens,
            seconds: seconds(wire.seconds)?,
        })
    }
}

impl From<InferOutput> for wire::InferResult {
    fn from(output: InferOutput) -> Self {
        Self {
            responses_digest: output.responses.to_string(),
            n_responses: output.n_responses,
            n_tokens: output.n_tokens,
            seconds: output.seconds,
        }
    }
}

impl TryFrom<wire::JudgeResult> for JudgeOutput {
    type Error = InvalidMessage;
    fn try_from(wire: wire::JudgeResult) -> Result<Self> {
        Ok(Self {
            verdicts: digest("verdicts_digest", &wire.verdicts_digest)?,
            n_graded: wire.n_graded,
            n_unparsed: wire.n_unparsed,
        })
    }
}

impl From<JudgeOutput> for wire::JudgeResult {
    fn from(output: JudgeOutput) -> Self {
        Self {
            verdicts_digest: output.verdicts.to_string(),
            n_graded: output.n_graded,
            n_unparsed: output.n_unparsed,
        }
    }
}

impl TryFrom<wire::SynthesizeResult> for SynthesizeOutput {
    type Error = InvalidMessage;
    fn try_from(wire: wire::SynthesizeResult) -> Result<Self> {
        if wire.n_malformed > wire.n_raw {
            return Err(InvalidMessage::new(
                "n_malformed",
                "at most n_raw",
                wire.n_malformed,
            ));
        }
        Ok(Self {
            samples: digest("samples_digest", &wire.samples_digest)?,
            n_raw: wire.n_raw,
            n_malformed: wire.n_malformed,
        })
    }
}

impl From<SynthesizeOutput> for wire::SynthesizeResult {
    fn from(output: SynthesizeOutput) -> Self {
        Self {
            samples_digest: output.samples.to_string(),
            n_raw: output.n_raw,
            n_malformed: output.n_malformed,
        }
    }
}

impl TryFrom<wire::Failure> for Failure {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Failure) -> Result<Self> {
        Ok(Self {
            kind: enumeration::<wire::FailureKind, _>("kind", wire.kind)?,
            message: text_for_people(wire.message),
            attempt: AttemptNumber(at_least_1("attempt", wire.attempt)?),
            worker: id("worker_id", &wire.worker_id)?,
        })
    }
}

impl From<Failure> for wire::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            kind: wire::FailureKind::from(failure.kind).into(),
            message: failure.message,
            attempt: failure.attempt.0,
            worker_id: failure.worker.into(),
        }
    }
}

impl TryFrom<wire::Progress> for Progress {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Progress) -> Result<Self> {
        Ok(Self {
            n_done: wire.n_done,
            n_total: wire.n_total,
            unit: text_for_people(wire.unit),
            detail: text_for_people(wire.detail),
        })
    }
}

impl From<Progress> for wire::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            n_done: progress.n_done,
            n_total: progress.n_total,
            unit: progress.unit,
            detail: progress.detail,
        }
    }
}
