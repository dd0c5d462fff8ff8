//! Artifacts as real tasks would give them back, made up from the task alone.

use std::collections::BTreeMap;

use llamaduo_artifacts::Directory;
use llamaduo_data::synthesis::{Candidate, Malformed};
use llamaduo_data::verdict::{Assessment, Judgement, Outcome, Score};
use llamaduo_data::{Message, NanoUsd, Provenance, Response, Role, Sample, ServiceCall, Verdict, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::manifest::{Manifest, ManifestKind};
use llamaduo_proto::run::{CoverageDataset, GateRule, RunSpec, Subject};
use llamaduo_proto::task::*;

/// Words that make prompts differ enough for curation.
const WORDS: [&str; 16] = [
    "invoice", "router", "password", "delivery", "refund", "keyboard", "mailbox", "holiday", "printer",
    "contract", "account", "webhook", "battery", "receipt", "calendar", "firewall",
];

fn prompt(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut word = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    };
    format!(
        "{} {} {} {} {} {} number{seed}",
        word(),
        word(),
        word(),
        word(),
        word(),
        word()
    )
}

fn sample(seed: u64, provenance: Provenance) -> Sample {
    let messages = vec![
        Message::new(Role::User, prompt(seed)),
        Message::new(Role::Assistant, format!("{{\"n\": {seed}}}")),
    ];
    Sample::new(messages, provenance).expect("a valid sample")
}

fn call(id: &str) -> ServiceCall {
    ServiceCall {
        id: id.to_owned(),
        prompt_hash: "0".repeat(64),
        model: "teacher".to_owned(),
        input_tokens: 10,
        output_tokens: 5,
        cost: Some(NanoUsd(1_000)),
    }
}

/// A migration of 12 train and 6 test pairs, stored.
pub(super) fn spec(artifacts: &Directory) -> RunSpec {
    let rows = |from: u64, n: u64| {
        let samples: Vec<Sample> = (from..from + n)
            .map(|i| sample(i, Provenance::Coverage { line: i + 1 }))
            .collect();
        artifacts
            .put(jsonl::write(&samples).expect("JSON").as_bytes())
            .expect("stored")
    };
    let mut spec = crate::machine::tests::world::spec();
    spec.coverage = CoverageDataset {
        train: rows(0, 12),
        test: rows(100, 6),
        n_train: 12,
        n_test: 6,
    };
    spec.infer.prompts_per_task = 3;
    // Six prompts all covered bound the coverage at 0.61; the first cycle's adapter covers none.
    spec.gate.rule = GateRule::Relative { ratio_min: 0.6 };
    spec.gate.coverage_score = 75.0;
    spec.synthesis.samples_per_cycle = 8;
    spec.synthesis.pairs_per_call = 2;
    spec.synthesis.calls_per_task = 2;
    spec.synthesis.curation.novelty_rouge_l = 1.0;
    spec
}

/// How good a subject's answers are: the adapter of the second cycle is as good as the service.
fn score_of(subject: Subject) -> f64 {
    match subject {
        Subject::Base(_) => 30.0,
        Subject::Service => 90.0,
        Subject::Adapter(cycle) => 50.0 + 20.0 * f64::from(cycle.0.min(2)),
    }
}

fn manifest(
    artifacts: &Directory,
    kind: ManifestKind,
    files: &[(&str, Digest)],
    parents: Vec<Digest>,
) -> Digest {
    let files: BTreeMap<String, Digest> = files
        .iter()
        .map(|(name, digest)| ((*name).to_owned(), *digest))
        .collect();
    let bytes = serde_json::to_vec(&Manifest { kind, files, parents }).expect("JSON");
    artifacts.put(&bytes).expect("stored")
}

/// Does a task without doing it.
pub(super) fn result_of(artifacts: &Directory, task: &TaskSpec) -> TaskResult {
    match task {
        TaskSpec::Train(task) => train(artifacts, task),
        TaskSpec::Infer(task) => infer(artifacts, task),
        TaskSpec::Judge(task) => judge(artifacts, task),
        TaskSpec::Synthesize(task) => synthesize(artifacts, task),
    }
}

fn train(artifacts: &Directory, task: &TrainTask) -> TaskResult {
    let log = artifacts
        .put(b"{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"loss\": 1.5}\n")
        .expect("stored");
    let weights = artifacts
        .put(format!("adapter {}", task.cycle.0).as_bytes())
        .expect("stored");
    let files = [("train_log.jsonl", log), ("adapter_model.safetensors", weights)];
    let manifest = manifest(artifacts, ManifestKind::Adapter, &files, task.data.clone());
    let output = TrainOutput {
        n_samples: 12,
        n_tokens: 1_000,
        n_steps: 2,
        loss_first: 2.5,
        loss_last: 1.5,
        seconds: 0.1,
    };
    TaskResult {
        manifest,
        output: TaskOutput::Train(output),
    }
}

fn infer(artifacts: &Directory, task: &InferTask) -> TaskResult {
    let subject = task.answerer.subject(task.cycle);
    let mut rows = Vec::new();
    for prompt_index in task.first_prompt..task.first_prompt + task.n_prompts {
        for k in 0..task.settings.responses_per_prompt {
            let id = format!("infer-{prompt_index}-{k}");
            let call = (subject == Subject::Service).then(|| call(&id));
            let text = format!("{subject:?} answers {prompt_index}/{k}");
            rows.push(Response {
                prompt_index,
                sample: None,
                k,
                text,
                tokens: 4,
                complete: true,
                logprobs: None,
                call,
            });
        }
    }
    let responses = artifacts
        .put(jsonl::write(&rows).expect("JSON").as_bytes())
        .expect("stored");
    let files = [("responses.jsonl", responses)];
    let manifest = manifest(artifacts, ManifestKind::Responses, &files, vec![task.test]);
    let n_responses = rows.len() as u32;
    TaskResult {
        manifest,
        output: TaskOutput::Infer(InferOutput {
            responses,
            n_responses,
            n_tokens: 24,
            seconds: 0.1,
        }),
    }
}

fn judge(artifacts: &Directory, task: &JudgeTask) -> TaskResult {
    let subject = task.subject.expect("a run says whose responses it judges");
    let text = String::from_utf8(artifacts.get(&task.responses).expect("stored")).expect("text");
    let responses: Vec<Response> = jsonl::read("responses", &text).expect("rows");
    let mut rows = Vec::new();
    for Response { prompt_index, k, .. } in responses {
        for m in 0..task.settings.gradings_per_response {
            // Scores differ a little by prompt, so that intervals are not empty.
            let score = score_of(subject) + f64::from(prompt_index % 3);
            let assessment = || Assessment {
                score: Score::try_from(score).expect("1 to 100"),
                reason: "because".to_owned(),
            };
            let outcome = Outcome::Graded(Judgement {
                similarity: assessment(),
                precision: assessment(),
            });
            let id = format!("judge-{subject:?}-{prompt_index}-{k}-{m}");
            rows.push(Verdict {
                prompt_index,
                k,
                m,
                outcome,
                call: call(&id),
            });
        }
    }
    let verdicts = artifacts
        .put(jsonl::write(&rows).expect("JSON").as_bytes())
        .expect("stored");
    let manifest = manifest(
        artifacts,
        ManifestKind::Verdicts,
        &[("verdicts.jsonl", verdicts)],
        vec![task.responses],
    );
    let n_graded = rows.len() as u32;
    TaskResult {
        manifest,
        output: TaskOutput::Judge(JudgeOutput {
            verdicts,
            n_graded,
            n_unparsed: 0,
        }),
    }
}

fn synthesize(artifacts: &Directory, task: &SynthesizeTask) -> TaskResult {
    let mut rows = Vec::new();
    for number in task.first_call..task.first_call + task.n_calls {
        let id = format!("synthesize-{}-{number}", task.cycle.0);
        let call = call(&id);
        let seed = 1_000 * u64::from(task.cycle.0) + 10 * u64::from(number);
        let fresh = Provenance::Synthetic {
            parents: vec![],
            call,
        };
        rows.push(Candidate::Sample(sample(seed, fresh.clone())));
        // A near copy of a test pair, which curation must catch, and an item that is none.
        rows.push(Candidate::Sample(sample(100 + u64::from(number) % 6, fresh)));
        rows.push(Candidate::Malformed(Malformed {
            text: "{".to_owned(),
            why: "broken off".to_owned(),
        }));
    }
    let samples = artifacts
        .put(jsonl::write(&rows).expect("JSON").as_bytes())
        .expect("stored");
    let files = [("samples.jsonl", samples)];
    let manifest = manifest(artifacts, ManifestKind::RawSamples, &files, vec![task.train]);
    let output = SynthesizeOutput {
        samples,
        n_raw: rows.len() as u32,
        n_malformed: task.n_calls,
    };
    TaskResult {
        manifest,
        output: TaskOutput::Synthesize(output),
    }
}
