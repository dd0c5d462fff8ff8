use expect_test::expect;
use serde_json::json;

use super::*;

fn subject(mean: f64, coverage: f64) -> Value {
    let metric =
        json!({"mean": mean, "mean_interval": null, "coverage": coverage, "coverage_interval": null});
    json!({
        "similarity": metric,
        "precision": metric,
        "verdicts": 20,
        "unparsed": 1,
        "ungraded_responses": 0,
        "distribution": {"similarity": vec![0; 10], "precision": vec![0; 10]},
    })
}

fn report() -> Value {
    let mut first = subject(61.25, 0.4);
    let gate = json!({"rule": "r", "checks": [], "passed": false, "reason": "too low"});
    for (key, value) in [
        ("cycle", json!(1)),
        ("train", Value::Null),
        ("gate", gate),
        ("other_gates", json!([])),
        ("synthesis", Value::Null),
    ] {
        first[key] = value;
    }
    let mut second = first.clone();
    second["cycle"] = json!(2);
    second["gate"]["passed"] = json!(true);
    json!({
        "status": "passed",
        "reason": "both metrics reach 0.9",
        "about": {
            "run": "r", "task": "t", "local_model": "m", "service_model": "s", "judge_model": "j", "stand_in": true, "judge_stand_in": true,
            "seed": 0, "train_samples": 40, "test_samples": 10, "responses_per_prompt": 1,
            "judgings_per_response": 2, "coverage_score": 70.0, "seconds": 412.0,
        },
        "base": subject(12.5, 0.0),
        "base_unquantized": null,
        "service": subject(93.0, 1.0),
        "cycles": [first, second],
        "cost": {"calls": 1234, "input_tokens": 56789, "output_tokens": 4321, "usd": 0.0123, "unknown_calls": 3, "parts": []},
        "examples": [],
    })
}

#[test]
fn a_report_reads_like_this() {
    expect![[r#"
                                      similarity  covered  precision  covered
        base (NF4)                          12.5      0 %       12.5      0 %
        service LLM (stand-in)              93.0    100 %       93.0    100 %
        tuned, cycle 1                      61.2     40 %       61.2     40 %  not passed
        tuned, cycle 2                      61.2     40 %       61.2     40 %  passed

        passed: both metrics reach 0.9
        1,234 calls, 56,789 tokens in, 4,321 out, $0.0123 at a made-up price; 6 min 52 s from submission to end, pauses included
        3 calls of unknown outcome may have been billed too
        report: out/report.html"#]]
    .assert_eq(&report_text(&report(), Path::new("out")));
}

#[test]
fn what_is_unknown_is_called_unknown() {
    let mut report = report();
    report["cost"]["usd"] = Value::Null;
    report["base"]["similarity"]["mean"] = Value::Null;
    let text = report_text(&report, Path::new("out"));
    assert!(text.contains("price unknown"), "{text}");
    assert!(
        text.lines()
            .any(|line| line.starts_with("base (NF4)") && line.contains('-')),
        "{text}"
    );
}

#[test]
fn a_report_of_another_version_is_printed_as_it_is() {
    assert_eq!(
        report_text(&json!({"status": "new"}), Path::new("out")),
        r#"{"status":"new"}"#
    );
}
