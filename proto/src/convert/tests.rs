//! Valid values survive the wire; broken messages are refused by the field's path; nothing panics.

mod draw;

use std::fmt::Debug;

use proptest::prelude::*;
use prost::Message;

use self::draw::Draw;
use super::*;
use crate::run::{CurationSettings, Quantization, RunSpec};
use crate::{event, session, task, view, wire};

/// Sends a value over the wire's bytes and back.
fn assert_survives<D, W>(value: D)
where
    D: Clone + Debug + PartialEq + Into<W> + TryFrom<W, Error = InvalidMessage>,
    W: Message + Default,
{
    let sent: W = value.clone().into();
    let received = W::decode(sent.encode_to_vec().as_slice()).expect("prost reads what it wrote");
    assert_eq!(D::try_from(received), Ok(value));
}

/// Damages the bytes of a valid message; what prost still reads is refused or read, and survives from then on.
fn assert_damage_is_harmless<D, W>(value: D, draw: &mut Draw)
where
    D: Clone + Debug + PartialEq + Into<W> + TryFrom<W, Error = InvalidMessage>,
    W: Message + Default,
{
    let valid = value.into().encode_to_vec();
    for _ in 0..8 {
        let mut bytes = valid.clone();
        for _ in 0..1 + draw.below(4) {
            let at = draw.below(bytes.len() as u64) as usize;
            bytes[at] = draw.below(256) as u8;
        }
        bytes.truncate(bytes.len() - draw.below(3) as usize);
        if let Ok(received) = W::decode(bytes.as_slice())
            && let Ok(value) = D::try_from(received)
        {
            assert_survives::<D, W>(value);
        }
    }
}

proptest! {
    #[test]
    fn values_survive_the_wire(seed in any::<u64>()) {
        let mut draw = Draw::new(seed);
        assert_survives::<RunSpec, wire::RunSpec>(draw.run_spec());
        assert_survives::<task::TaskSpec, wire::TaskSpec>(draw.task_spec());
        assert_survives::<task::TaskResult, wire::TaskResult>(draw.task_result());
        assert_survives::<event::RunEvent, wire::Event>(draw.event());
        assert_survives::<session::FromWorker, wire::AttachRequest>(draw.message_from_worker());
        assert_survives::<session::ToWorker, wire::AttachResponse>(draw.message_to_worker());
        assert_survives::<session::Completion, wire::CompleteAttemptRequest>(draw.completion());
        assert_survives::<session::BeginCall, wire::BeginCallRequest>(draw.begin_call());
        assert_survives::<session::CallLeave, wire::BeginCallResponse>(draw.call_leave());
        assert_survives::<session::EndCall, wire::EndCallRequest>(draw.end_call());
        assert_survives::<view::SubmitTask, wire::SubmitTaskRequest>(draw.submit_task());
        assert_survives::<view::ResumeRun, wire::ResumeRunRequest>(draw.resume_run());
        assert_survives::<view::RunDetails, wire::GetRunResponse>(draw.run_details());
        assert_survives::<view::TaskView, wire::Task>(draw.task_view());
        assert_survives::<view::WorkerView, wire::Worker>(draw.worker_view());
    }

    #[test]
    fn damaged_messages_do_no_harm(seed in any::<u64>()) {
        let mut draw = Draw::new(seed);
        let draw = &mut draw;
        assert_damage_is_harmless::<RunSpec, wire::RunSpec>(draw.run_spec(), draw);
        assert_damage_is_harmless::<task::TaskSpec, wire::TaskSpec>(draw.task_spec(), draw);
        assert_damage_is_harmless::<event::RunEvent, wire::Event>(draw.event(), draw);
        assert_damage_is_harmless::<session::FromWorker, wire::AttachRequest>(draw.message_from_worker(), draw);
        assert_damage_is_harmless::<session::ToWorker, wire::AttachResponse>(draw.message_to_worker(), draw);
        assert_damage_is_harmless::<session::EndCall, wire::EndCallRequest>(draw.end_call(), draw);
        assert_damage_is_harmless::<view::RunDetails, wire::GetRunResponse>(draw.run_details(), draw);
    }

    /// Store records are JSON of domain types.
    #[test]
    fn values_survive_json(seed in any::<u64>()) {
        let mut draw = Draw::new(seed);
        let spec = draw.run_spec();
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<RunSpec>(&json).unwrap(), spec);
        let event = draw.event();
        let json = serde_json::to_string(&event).unwrap();
        prop_assert_eq!(serde_json::from_str::<event::RunEvent>(&json).unwrap(), event);
    }
}

fn refused(break_it: impl Fn(&mut wire::RunSpec)) -> String {
    let mut message = Draw::new(7).run_spec().into();
    break_it(&mut message);
    RunSpec::try_from(message).unwrap_err().field
}

/// Breaks a spec.
type Break = fn(&mut wire::RunSpec);

/// Which field is refused, and what breaks it.
const BROKEN: &[(&str, Break)] = &[
    ("name", |m| m.name.clear()),
    ("name", |m| m.name = "n".repeat(81)),
    ("name", |m| m.name = "a\u{7}b".to_owned()),
    ("topic", |m| m.topic = "t".repeat(4_001)),
    ("local_model", |m| m.local_model = None),
    ("local_model.reference", |m| {
        m.local_model.as_mut().unwrap().reference.clear()
    }),
    ("local_model.quantization", |m| {
        m.local_model.as_mut().unwrap().quantization = 99
    }),
    ("local_model.compute", |m| {
        m.local_model.as_mut().unwrap().compute = 99
    }),
    ("service_llm", |m| m.service_llm = None),
    ("service_llm.vendor", |m| {
        m.service_llm.as_mut().unwrap().vendor = 0
    }),
    ("service_llm.model", |m| {
        m.service_llm.as_mut().unwrap().model.clear()
    }),
    ("service_llm.base_url", |m| {
        m.service_llm.as_mut().unwrap().base_url = "ftp://x".to_owned()
    }),
    ("service_llm.temperature", |m| {
        m.service_llm.as_mut().unwrap().temperature = Some(f32::NAN)
    }),
    ("service_llm.output_usd_per_mtok", |m| {
        let llm = m.service_llm.as_mut().unwrap();
        (llm.input_usd_per_mtok, llm.output_usd_per_mtok) = (Some(1.0), None);
    }),
    ("judge_llm.tokens_max", |m| {
        m.judge_llm.as_mut().unwrap().tokens_max = 0
    }),
    ("coverage.test_digest", |m| {
        m.coverage.as_mut().unwrap().test_digest = "AB".repeat(32)
    }),
    ("coverage.n_test", |m| m.coverage.as_mut().unwrap().n_test = 0),
    ("train.lora_rank", |m| m.train.as_mut().unwrap().lora_rank = 0),
    ("train.lora_dropout", |m| {
        m.train.as_mut().unwrap().lora_dropout = 1.0
    }),
    ("train.learning_rate", |m| {
        m.train.as_mut().unwrap().learning_rate = f32::INFINITY
    }),
    ("train.epochs", |m| m.train.as_mut().unwrap().epochs = -1.0),
    ("infer.top_p", |m| m.infer.as_mut().unwrap().top_p = 1.5),
    ("infer.temperature", |m| {
        m.infer.as_mut().unwrap().temperature = -0.5
    }),
    ("infer.min_p", |m| m.infer.as_mut().unwrap().min_p = 1.0),
    ("infer.repetition_penalty", |m| {
        m.infer.as_mut().unwrap().repetition_penalty = -1.0
    }),
    ("infer.stop", |m| {
        m.infer.as_mut().unwrap().stop = vec!["a".to_owned(); 17]
    }),
    ("infer.stop", |m| {
        m.infer.as_mut().unwrap().stop = vec![String::new()]
    }),
    ("infer.stop", |m| {
        m.infer.as_mut().unwrap().stop = vec!["a".repeat(1_001)]
    }),
    ("judge.gradings_per_response", |m| {
        m.judge.as_mut().unwrap().gradings_per_response = 1_001
    }),
    ("judge.prompt_digest", |m| {
        m.judge.as_mut().unwrap().prompt_digest = "x".to_owned()
    }),
    ("synthesis.samples_per_cycle", |m| {
        m.synthesis.as_mut().unwrap().samples_per_cycle = 0
    }),
    ("synthesis.curation.prompt_words_min", |m| {
        m.synthesis.as_mut().unwrap().curation = Some(wire::CurationSettings {
            prompt_words_min: 9,
            prompt_words_max: 8,
            ..Default::default()
        });
    }),
    ("gate.rule", |m| m.gate.as_mut().unwrap().rule = None),
    ("gate.relative.ratio_min", |m| {
        let rule = wire::gate::Rule::Relative(wire::RelativeGate { ratio_min: 1.6 });
        m.gate.as_mut().unwrap().rule = Some(rule);
    }),
    ("cycles_max", |m| m.cycles_max = 0),
    ("overrides", |m| m.overrides = vec![String::new()]),
    ("overrides", |m| m.overrides = vec!["a=1".to_owned(); 65]),
    ("overrides", |m| m.overrides = vec!["a".repeat(100_001)]),
];

#[test]
fn a_broken_run_spec_is_refused_by_the_path_of_its_field() {
    for (field, break_it) in BROKEN {
        assert_eq!(refused(break_it), *field);
    }
}

#[test]
fn a_stage_with_too_many_tasks_is_refused() {
    let field = refused(|m| {
        m.coverage.as_mut().unwrap().n_test = 10_001;
        m.infer.as_mut().unwrap().prompts_per_task = 1;
    });
    assert!(field.starts_with("infer.prompts_per_task"), "{field}");
    let field = refused(|m| {
        let synthesis = m.synthesis.as_mut().unwrap();
        (synthesis.samples_per_cycle, synthesis.pairs_per_call) = ((1 << 20) + 1, 1);
        synthesis.calls_per_task = 1_000;
    });
    assert!(field.starts_with("synthesis.samples_per_cycle"), "{field}");
}

#[test]
fn absent_fields_get_the_documented_defaults() {
    let mut message: wire::RunSpec = Draw::new(7).run_spec().into();
    message.judge_llm = None;
    message.budget = None;
    message.topic.clear();
    let llm = message.service_llm.as_mut().unwrap();
    (llm.concurrency_max, llm.timeout_ms, llm.json_schema) = (0, 0, None);
    message.local_model.as_mut().unwrap().quantization = 0;
    message.synthesis.as_mut().unwrap().curation = None;
    message.gate.as_mut().unwrap().coverage_score = 0.0;
    let infer = message.infer.as_mut().unwrap();
    (infer.top_p, infer.top_k, infer.prompts_per_task, infer.batch_max) = (0.0, 0, 0, 0);
    (infer.min_p, infer.repetition_penalty) = (0.0, 0.0);

    let spec = RunSpec::try_from(message).unwrap();
    assert_eq!(spec.judge_llm, spec.service_llm);
    assert_eq!(spec.budget, crate::run::Budget::default());
    assert_eq!(
        (spec.service_llm.concurrency_max, spec.service_llm.timeout_ms),
        (4, 600_000)
    );
    assert!(spec.service_llm.json_schema);
    assert_eq!(spec.local_model.quantization, Quantization::Nf4Double);
    assert_eq!(spec.synthesis.curation, CurationSettings::default());
    assert_eq!(spec.gate.coverage_score, 70.0);
    assert_eq!((spec.infer.top_p, spec.infer.top_k), (None, None));
    assert_eq!((spec.infer.prompts_per_task, spec.infer.batch_max), (8, 32));
    assert_eq!((spec.infer.min_p, spec.infer.repetition_penalty), (None, None));
}

#[test]
fn infer_settings_stored_before_they_had_all_fields_are_the_same_settings() {
    let stored = r#"{"responses_per_prompt":2,"temperature":0.5,"top_p":null,"top_k":null,"tokens_max":16,"prompts_per_task":4,"batch_max":8}"#;
    let settings: crate::run::InferSettings = serde_json::from_str(stored).unwrap();
    assert_eq!((settings.stop.len(), settings.logprobs), (0, false));
    assert_eq!(serde_json::to_string(&settings).unwrap(), stored);
}

#[test]
fn a_subject_must_fit_the_rest_of_its_infer_task() {
    let mut draw = Draw::new(3);
    let adapter = draw.infer_task(1);
    let mut message: wire::InferTask = adapter.into();
    message.adapter_digest.clear();
    assert_eq!(
        task::InferTask::try_from(message.clone()).unwrap_err().field,
        "adapter_digest"
    );
    message.subject = Some(wire::Subject {
        subject: Some(wire::subject::Subject::Service(true)),
    });
    assert_eq!(
        task::InferTask::try_from(message.clone()).unwrap_err().field,
        "local_model"
    );

    let mut message: wire::InferTask = draw.infer_task(1).into();
    message.cycle += 1;
    assert_eq!(task::InferTask::try_from(message).unwrap_err().field, "subject");
}

#[test]
fn a_worker_of_another_protocol_is_told_what_to_do() {
    let mut hello: wire::Hello = Draw::new(1).hello().into();
    hello.protocol_version = 2;
    let error = session::Hello::try_from(hello).unwrap_err();
    assert_eq!(error.field, "protocol_version");
    assert!(error.to_string().contains("same release"), "{error}");
}

#[test]
fn a_long_text_for_people_is_cut_between_characters() {
    let cut = text_for_people("é".repeat(3_000));
    assert_eq!(cut.chars().count(), PEOPLE_TEXT_CHARS_MAX);
}

#[test]
fn pages_have_a_default_and_a_limit() {
    assert_eq!(page_size(0), Ok(100));
    assert_eq!(page_size(1_000), Ok(1_000));
    assert_eq!(page_size(1_001).unwrap_err().field, "page_size");
}
