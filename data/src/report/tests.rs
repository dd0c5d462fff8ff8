use expect_test::{expect, expect_file};

use super::*;
use crate::gate::{GateRule, evaluate};
use crate::score::tests::verdict;
use crate::verdict::Verdict;

/// A subject's answers to 60 prompts around `level`, spread by a fixed pattern.
fn judged(level: u32) -> Judged {
    let verdicts: Vec<Verdict> = (0..60u32)
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

/// The sum of `parts`.
fn cost_of(parts: Vec<CostPart>) -> CostReport {
    let sum = |count: fn(&CostPart) -> u64| parts.iter().map(count).sum();
    let cost = parts
        .iter()
        .try_fold(NanoUsd(0), |sum, part| Some(sum.saturating_add(part.cost?)));
    CostReport {
        calls: sum(|part| part.calls),
        input_tokens: sum(|part| part.input_tokens),
        output_tokens: sum(|part| part.output_tokens),
        usd: cost.map(NanoUsd::usd),
        unknown_calls: 2,
        parts,
    }
}

fn about() -> About {
    About {
        run: "run-7".to_owned(),
        task: "support-ticket triage".to_owned(),
        local_model: "SmolLM2-135M-Instruct".to_owned(),
        service_model: "stand-in-1".to_owned(),
        judge_model: "stand-in-1".to_owned(),
        stand_in: true,
        judge_stand_in: true,
        quantization: Quantization::Nf4,
        compute: Compute::Bf16,
        adapter_cycle: Some(2),
        training: Some(Training {
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            epochs: 1.0,
            learning_rate: 0.002,
            batch_rows: 2,
            sequence_tokens: 512,
            loss_on: "response_only".to_owned(),
            train_from: "base".to_owned(),
        }),
        submitted_at_ms: 1_709_164_800_000,
        program_version: "0.1.0".to_owned(),
        seed: 7,
        train_samples: 60,
        test_samples: 60,
        responses_per_prompt: 4,
        judgings_per_response: 1,
        coverage_score: 70.0,
        seconds: 502.0,
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
        about: about(),
        base: Some(SubjectReport::new(&judged(22))),
        base_unquantized: Some(SubjectReport::new(&judged(24))),
        service: Some(SubjectReport::new(&judged(92))),
        cycles,
        cost: cost_of(vec![
            part(0, "infer", 80),
            part(0, "judge", 240),
            part(1, "judge", 80),
            part(1, "synthesize", 30),
            part(2, "judge", 80),
        ]),
        examples: vec![Example {
            prompt_index: 3,
            worst: true,
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
    report.cost = cost_of(vec![CostPart {
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
    // Answers may break after commas, by markup of ours alone.
    assert!(html.contains("&quot;billing&quot;,<wbr>&quot;priority&quot;"));
    assert!(!html.contains("&lt;wbr"));
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
fn calls_of_unknown_outcome_and_made_up_prices_are_said() {
    let mut report = report();
    let html = report.render().unwrap().html;
    assert!(html.contains("made-up price") && html.contains("2 calls of unknown outcome"));
    report.cost.unknown_calls = 0;
    (report.about.stand_in, report.about.judge_stand_in) = (false, false);
    let html = report.render().unwrap().html;
    assert!(!html.contains("made-up price") && !html.contains("unknown outcome"));
}

#[test]
fn a_stand_in_is_named_in_the_role_that_it_played() {
    let mut report = report();
    for (service, judge, verdict, notice) in [
        (
            true,
            true,
            "Passed, in the judgement of a stand-in",
            "Here the service LLM and the judge were a",
        ),
        (
            false,
            true,
            "Passed, in the judgement of a stand-in",
            "Here the judge was a",
        ),
        (
            true,
            false,
            "Passed, compared with a stand-in",
            "Here the service LLM was a",
        ),
        (false, false, "Passed: the local model may take over", ""),
    ] {
        (report.about.stand_in, report.about.judge_stand_in) = (service, judge);
        let rendered = report.render().unwrap();
        assert!(rendered.html.contains(&format!("<h1>{verdict}</h1>")));
        assert!(rendered.html.contains(notice));
        assert_eq!(rendered.html.contains("(stand-in)"), service || judge);
        let (_, csv) = &rendered.files[1];
        assert_eq!(csv.contains("service LLM (stand-in)"), service, "{csv}");
    }
}

#[test]
fn the_base_is_named_by_how_it_is_held() {
    let mut report = report();
    report.base_unquantized = None;
    report.examples.clear();
    for (quantization, name) in [
        (Quantization::Nf4, "base (NF4)"),
        (Quantization::Nf4Single, "base (NF4, float32 scales)"),
        (Quantization::None, "base (as its file holds it)"),
    ] {
        report.about.quantization = quantization;
        let rendered = report.render().unwrap();
        assert!(rendered.files[1].1.contains(name), "{}", rendered.files[1].1);
        let other = quantization == Quantization::None;
        assert_eq!(rendered.html.contains("NF4"), !other);
    }
}

#[test]
fn the_large_numbers_are_those_of_the_adapter_that_is_delivered() {
    let mut report = report();
    for (delivered, shown) in [
        (Some(1), "similarity after cycle 1"),
        (None, "similarity after cycle 2"),
    ] {
        report.about.adapter_cycle = delivered;
        let html = report.render().unwrap().html;
        assert!(html.contains(shown), "{delivered:?}");
        assert_eq!(
            html.contains("<dd>of cycle 1, the one nearest to passing"),
            delivered.is_some()
        );
    }
}

#[test]
fn it_says_how_the_delivered_adapter_was_chosen() {
    let mut report = report();
    let choice = |report: &Report| report.adapter_choice().unwrap_or("nothing").to_owned();
    assert_eq!(choice(&report), "the one that passed the gate");
    report.about.adapter_cycle = Some(1);
    assert!(choice(&report).starts_with("the one nearest to passing"));
    for cycle in &mut report.cycles {
        cycle.gate = None;
    }
    report.about.adapter_cycle = Some(2);
    assert!(choice(&report).starts_with("the newest"));
    report.cycles.remove(0);
    assert_eq!(choice(&report), "the only one");
    report.about.adapter_cycle = None;
    assert_eq!(choice(&report), "nothing");
}

#[test]
fn a_report_of_an_earlier_version_is_read() {
    let mut json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
    let about = json["about"].as_object_mut().unwrap();
    for name in [
        "quantization",
        "judge_stand_in",
        "adapter_cycle",
        "training",
        "submitted_at_ms",
        "program_version",
    ] {
        assert!(about.remove(name).is_some(), "{name}");
    }
    let part = json["cost"]["parts"][0].as_object_mut().unwrap();
    let cost = part.remove("nano_usd").unwrap();
    part.insert("cost".to_owned(), cost);
    json["cost"].as_object_mut().unwrap().remove("unknown_calls");
    let read: Report = serde_json::from_value(json).unwrap();
    assert_eq!(read.cost.parts, report().cost.parts);
    read.render().unwrap();
}

#[test]
fn coverage_has_one_unit_in_every_file() {
    let report = report();
    let files = report.render().unwrap().files;
    let (_, csv) = files
        .iter()
        .find(|(name, _)| name == "plots/coverage.csv")
        .unwrap();
    let mut rows = csv.lines();
    assert_eq!(rows.next(), Some("subject,metric,coverage,low,high"));
    for row in rows {
        for cell in row.rsplit(',').take(3) {
            let share: f64 = cell.parse().unwrap();
            assert!((0.0..=1.0).contains(&share), "{row}");
        }
    }
}

#[test]
fn what_synthesis_brought_adds_up() {
    let synthesis = report().cycles[0].synthesis.unwrap();
    assert_eq!(
        synthesis.raw,
        synthesis.kept + synthesis.duplicates + synthesis.filtered + synthesis.contaminated
    );
}
