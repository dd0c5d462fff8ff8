use expect_test::{expect, expect_file};

use super::*;
use crate::gate::{GateRule, evaluate};
use crate::score::tests::verdict;
use crate::verdict::Verdict;

/// A subject's answers to 20 prompts around `level`, spread by a fixed pattern.
fn judged(level: u32) -> Judged {
    let verdicts: Vec<Verdict> = (0..20u32)
        .flat_map(|prompt| (0..4).map(move |k| (prompt, k)))
        .map(|(prompt, k)| {
            let swing = (prompt * 7 + k * 5) % 19;
            let score = |offset: u32| (level + offset + swing).saturating_sub(10).clamp(1, 100) as u8;
            verdict(
                prompt,
                k,
                0,
                score(0),
                if (prompt, k) == (3, 1) { 0 } else { score(4) },
            )
        })
        .collect();
    Judged::new(&verdicts, 70.0)
}

fn cycle(number: u32, level: u32, synthesis: Option<SynthesisReport>) -> CycleReport {
    let (judged, service) = (judged(level), judged(92));
    let curve = (1..=30u32).map(|step| LossPoint {
        step: u64::from(step),
        loss: 0.2 + 2.4 / f64::from(step * number),
    });
    let curve: Vec<LossPoint> = curve.collect();
    CycleReport {
        cycle: number,
        train: Some(TrainReport {
            samples: 60 * u64::from(number),
            tokens: 9_000 * u64::from(number),
            loss_first: curve[0].loss,
            loss_last: curve[29].loss,
            seconds: 75.0 * f64::from(number),
            curve,
        }),
        subject: Some(SubjectReport::new(&judged)),
        gate: Some(evaluate(&GateRule::default(), &judged, &service)),
        other_gates: vec![evaluate(&GateRule::paper(), &judged, &service)],
        synthesis,
    }
}

fn report() -> Report {
    let counts = CurationCounts {
        raw: 120,
        malformed: 4,
        duplicates: 6,
        filtered: 3,
        contaminated: 5,
        near_duplicates: 9,
        not_novel: 3,
        kept: 90,
    };
    let cycles = vec![cycle(1, 72, Some(counts.into())), cycle(2, 90, None)];
    let part = |cycle, stage: &str, calls| CostPart {
        cycle,
        stage: stage.to_owned(),
        calls,
        input_tokens: calls * 400,
        output_tokens: calls * 80,
        cost: Some(NanoUsd(calls * 80_000)),
    };
    let answer = |subject: &str, text: &str, score: f64| ExampleAnswer {
        subject: subject.to_owned(),
        text: text.to_owned(),
        similarity: Some(score),
        precision: Some(score),
        reasons: vec![
            format!("the answer agrees in {score:.0} of 100"),
            "all keys are there".to_owned(),
        ],
    };
    Report {
        status: Status::Passed,
        reason: cycles[1].gate.as_ref().unwrap().reason.clone(),
        about: About {
            run: "run-7".to_owned(),
            task: "support-ticket triage".to_owned(),
            local_model: "SmolLM2-135M-Instruct".to_owned(),
            service_model: "stand-in-1".to_owned(),
            judge_model: "stand-in-1".to_owned(),
            stand_in: true,
            seed: 7,
            train_samples: 60,
            test_samples: 20,
            responses_per_prompt: 4,
            judgings_per_response: 1,
            coverage_score: 70.0,
            seconds: 502.0,
        },
        base: Some(SubjectReport::new(&judged(22))),
        base_unquantized: Some(SubjectReport::new(&judged(24))),
        service: Some(SubjectReport::new(&judged(92))),
        cycles,
        cost: CostReport::new(vec![
            part(0, "infer", 80),
            part(0, "judge", 240),
            part(1, "judge", 80),
            part(1, "synthesize", 30),
            part(2, "judge", 80),
        ]),
        examples: vec![Example {
            prompt_index: 3,
            prompt: "Hi, I was charged <b>twice</b> & nobody answers </pre><script>alert(1)</script>"
                .to_owned(),
            reference: r#"{"category":"billing","priority":"high"}"#.to_owned(),
            answers: vec![
                answer("service LLM", r#"{"category":"billing","priority":"high"}"#, 98.0),
                answer(
                    "base (NF4)",
                    "I am sorry to hear that. Please contact your bank.",
                    20.0,
                ),
                answer("cycle 1", r#"{"category":"billing","priority":"low"}"#, 75.5),
                answer("cycle 2", r#"{"category":"billing","priority":"high"}"#, 97.0),
            ],
        }],
    }
}

fn small() -> Report {
    let mut report = report();
    report.examples.clear();
    report.base_unquantized = None;
    report.cycles.truncate(1);
    report.cycles[0].train.as_mut().unwrap().curve.truncate(2);
    report.cost = CostReport::new(vec![CostPart {
        cost: None,
        ..report.cost.parts[0].clone()
    }]);
    report
}

#[test]
fn report_json_reads_so() {
    expect_file!["snapshots/report.json"].assert_eq(&small().to_json().unwrap());
}

#[test]
fn report_json_comes_back() {
    let report = report();
    assert_eq!(
        serde_json::from_str::<Report>(&report.to_json().unwrap()).unwrap(),
        report
    );
}

#[test]
fn the_page_reads_so() {
    let html = small().render().unwrap().html;
    // The style sheet is not what this test is about.
    let body = html.split_once("<body>").unwrap().1;
    expect_file!["snapshots/report.html"].assert_eq(body);
}

#[test]
fn every_plot_has_its_numbers() {
    let files = report().render().unwrap().files;
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let expected: Vec<String> = ["scores", "coverage", "distributions", "loss", "curation", "cost"]
        .iter()
        .flat_map(|name| [format!("plots/{name}.svg"), format!("plots/{name}.csv")])
        .collect();
    assert_eq!(names, expected);
    let (_, csv) = files
        .iter()
        .find(|(name, _)| name == "plots/curation.csv")
        .unwrap();
    expect![[r#"
        cycle,ending,samples
        1,kept,90
        1,duplicate,6
        1,near duplicate,9
        1,not novel,3
        1,malformed,4
        1,rule broken,3
        1,too close to test,5
    "#]]
    .assert_eq(csv);
}

#[test]
fn words_of_models_cannot_become_markup() {
    let html = report().render().unwrap().html;
    assert!(!html.contains("<script"), "a prompt became a script");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;&#x2f;script&gt;"));
}

#[test]
fn the_page_needs_no_other_file() {
    let html = report().render().unwrap().html;
    for outside in ["src=", "url(", "@import", "http://", "https://", "<link"] {
        assert!(!html.contains(outside), "the page reaches for {outside}");
    }
}

#[test]
fn a_run_that_ended_before_anything_was_graded_still_has_a_report() {
    let report = Report {
        status: Status::ServiceFailed,
        reason: "the service LLM refused the key".to_owned(),
        about: About::default(),
        base: None,
        base_unquantized: None,
        service: None,
        cycles: vec![CycleReport {
            cycle: 1,
            train: None,
            subject: None,
            gate: None,
            other_gates: Vec::new(),
            synthesis: None,
        }],
        cost: CostReport::default(),
        examples: Vec::new(),
    };
    let rendered = report.render().unwrap();
    assert!(rendered.files.is_empty());
    assert!(rendered.html.contains("The service LLM failed") && rendered.html.contains("refused the key"));
    assert_eq!(serde_json::from_str::<Report>(&rendered.json).unwrap(), report);
}

#[test]
fn numbers_that_are_no_numbers_break_nothing() {
    let mut report = report();
    report.about.seconds = f64::INFINITY;
    report.cycles[0].train.as_mut().unwrap().curve[3].loss = f64::NAN;
    let rendered = report.render().unwrap();
    assert!(
        rendered
            .files
            .iter()
            .all(|(name, text)| name.ends_with("csv") || !text.contains("NaN"))
    );
}

#[test]
fn cost_is_unknown_when_any_price_is() {
    let mut parts = report().cost.parts;
    assert!((CostReport::new(parts.clone()).usd.unwrap() - 510.0 * 80e-6).abs() < 1e-12);
    parts[1].cost = None;
    let cost = CostReport::new(parts);
    assert_eq!((cost.usd, cost.calls), (None, 510));
}

#[test]
fn what_synthesis_brought_adds_up() {
    let synthesis = report().cycles[0].synthesis.unwrap();
    assert_eq!(
        synthesis.raw,
        synthesis.kept + synthesis.duplicates + synthesis.filtered + synthesis.contaminated
    );
}
