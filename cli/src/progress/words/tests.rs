use expect_test::expect;
use llamaduo_proto::Digest;
use llamaduo_proto::ids::{AttemptNumber, WorkerId};
use llamaduo_proto::run::{CurationCounts, GateDecision};
use llamaduo_proto::task::{InferOutput, JudgeOutput, SynthesizeOutput, TaskResult, TrainOutput};

use super::*;

fn task(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn done_event(name: &str, stage: Stage, subject: Option<Subject>, output: TaskOutput) -> RunEventKind {
    let result = TaskResult {
        manifest: Digest::of(b""),
        output,
    };
    RunEventKind::TaskDone {
        task: task(name),
        stage,
        cycle: Cycle(1),
        subject,
        result,
    }
}

fn lease_expired() -> Failure {
    Failure {
        kind: FailureKind::LeaseExpired,
        message: "no heartbeat for 15 s".to_owned(),
        attempt: AttemptNumber(2),
        worker: WorkerId::new("w").unwrap(),
    }
}

fn metric(mean: Option<f64>, coverage: Option<f64>) -> MetricScore {
    MetricScore {
        mean,
        interval: None,
        coverage,
    }
}

fn told(events: &[RunEventKind]) -> String {
    let told: Vec<String> = events.iter().filter_map(sentence).collect();
    told.join("\n")
}

#[test]
fn events_of_tasks_read_like_this() {
    let train = TrainOutput {
        n_samples: 1234,
        n_tokens: 45678,
        n_steps: 30,
        loss_first: 2.5,
        loss_last: 0.51,
        seconds: 187.4,
    };
    let digest = Digest::of(b"");
    let infer = InferOutput {
        responses: digest,
        n_responses: 32,
        n_tokens: 1900,
        seconds: 9.5,
    };
    let judge = JudgeOutput {
        verdicts: digest,
        n_graded: 63,
        n_unparsed: 1,
    };
    let synthesize = SynthesizeOutput {
        samples: digest,
        n_raw: 40,
        n_malformed: 3,
    };
    let adapter = Some(Subject::Adapter(Cycle(1)));
    let events = [
        RunEventKind::CycleStarted {
            cycle: Cycle(1),
            n_samples: 40,
        },
        RunEventKind::AttemptStarted {
            task: task("c01-train"),
            stage: Stage::Train,
            cycle: Cycle(1),
            attempt: AttemptNumber(2),
            worker: WorkerId::new("w").unwrap(),
        },
        RunEventKind::AttemptFailed {
            task: task("c01-train"),
            stage: Stage::Train,
            cycle: Cycle(1),
            failure: lease_expired(),
            retry_in_ms: Some(1500),
        },
        done_event("c01-train", Stage::Train, None, TaskOutput::Train(train)),
        done_event("c01-infer-000", Stage::Infer, adapter, TaskOutput::Infer(infer)),
        done_event("c01-judge-000", Stage::Judge, adapter, TaskOutput::Judge(judge)),
        done_event(
            "c01-synthesize-000",
            Stage::Synthesize,
            None,
            TaskOutput::Synthesize(synthesize),
        ),
    ];
    expect![[r#"
        cycle 1: training on 40 samples
          c01-train on w, attempt 2
          c01-train lost its lease on w (attempt 2): no heartbeat for 15 s; next try in 1.5 s
          c01-train done: 1,234 samples, 45,678 tokens a pass, 30 steps, loss 2.500 to 0.510, 3 min 07 s
          c01-infer-000 done: 32 responses of tuned, cycle 1, 1,900 tokens, 200 tokens/s
          c01-judge-000 done: 63 verdicts of tuned, cycle 1, 1 unparsed
          c01-synthesize-000 done: 40 raw pairs, 3 malformed"#]]
    .assert_eq(&told(&events));
}

#[test]
fn events_of_a_run_read_like_this() {
    let none = metric(None, None);
    let events = [
        RunEventKind::RunSubmitted {
            name: "tickets".to_owned(),
        },
        RunEventKind::CycleStarted {
            cycle: Cycle(0),
            n_samples: 0,
        },
        RunEventKind::SubjectScored {
            cycle: Cycle(0),
            subject: Subject::Service,
            scores: Scores {
                similarity: metric(Some(91.25), Some(0.975)),
                precision: metric(Some(88.0), Some(1.0)),
                n_verdicts: 63,
                n_unparsed: 1,
            },
        },
        RunEventKind::SubjectScored {
            cycle: Cycle(0),
            subject: Subject::Base(Quantization::Nf4Double),
            scores: Scores {
                similarity: none,
                precision: none,
                n_verdicts: 0,
                n_unparsed: 0,
            },
        },
        RunEventKind::GateDecided {
            cycle: Cycle(1),
            decision: GateDecision {
                rule: "r".to_owned(),
                value: Some(0.7),
                threshold: 0.9,
                passed: false,
                reason: "0.70 is below 0.90".to_owned(),
            },
        },
        RunEventKind::Curated {
            cycle: Cycle(1),
            counts: CurationCounts {
                n_raw: 200,
                n_kept: 150,
                n_duplicates: 30,
                n_filtered: 12,
                n_contaminated: 8,
            },
            n_samples_next: 1190,
        },
        RunEventKind::RunEnded {
            status: RunStatus::Passed,
            reason: "the gate was passed".to_owned(),
            report: None,
        },
    ];
    expect![[r#"
        run "tickets" begins
        cycle 0: measuring the floor (the untuned base) and the ceiling (the service LLM)
        service LLM: similarity 91.2 (98 % covered), precision 88.0 (100 % covered), 1 reply unparsed
        base, NF4: similarity not graded, precision not graded
        gate after cycle 1: not passed; 0.70 is below 0.90
        curation: 200 raw pairs, 150 kept, 30 duplicates, 12 filtered, 8 contaminated; the next cycle trains on 1,190
        run ended, passed: the gate was passed"#]].assert_eq(&told(&events));
}

#[test]
fn progress_of_unknown_length_shows_no_total() {
    let mut report = Progress {
        n_done: 3,
        n_total: 0,
        unit: "steps".to_owned(),
        detail: String::new(),
    };
    assert_eq!(progress(&task("c01-train"), &report), "  c01-train: 3 steps");
    report.n_total = 9;
    report.detail = "loss 1.5".to_owned();
    assert_eq!(
        progress(&task("c01-train"), &report),
        "  c01-train: 3/9 steps loss 1.5"
    );
}

#[test]
fn amounts() {
    assert_eq!(grouped(0), "0");
    assert_eq!(grouped(999), "999");
    assert_eq!(counted(1, "reply", "replies"), "1 reply");
    assert_eq!(counted(1000, "reply", "replies"), "1,000 replies");
    assert_eq!(grouped(1_234_567), "1,234,567");
    assert_eq!(seconds(59.94), "59.9 s");
    assert_eq!(seconds(187.4), "3 min 07 s");
    let mut spent = Cost {
        n_calls: 1200,
        nano_usd: 1_230_000_000,
        ..Cost::default()
    };
    assert_eq!(cost(&spent), "1,200 calls, $1.23");
    spent.n_calls_unpriced = 1;
    spent.n_calls_unknown = 2;
    assert_eq!(cost(&spent), "1,200 calls, 2 of unknown outcome, price unknown");
}
