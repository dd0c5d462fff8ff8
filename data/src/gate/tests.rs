use super::*;
use crate::score::tests::verdict;
use crate::verdict::Verdict;

/// A subject whose answers to `prompts` prompts score around `score`, 4 answers each.
fn subject(prompts: u32, score: u8) -> Judged {
    let verdicts: Vec<Verdict> = (0..prompts)
        .flat_map(|prompt| {
            (0..4).map(move |k| verdict(prompt, k, 0, score - (prompt % 3) as u8, score - (k % 2) as u8))
        })
        .collect();
    Judged::new(&verdicts, 70.0)
}

#[test]
fn a_model_close_to_the_service_passes_and_the_sentence_says_how_close() {
    let outcome = evaluate(&GateRule::default(), &subject(200, 90), &subject(200, 95));
    assert!(outcome.passed, "{}", outcome.reason);
    assert_eq!(outcome.checks.len(), 4);
    assert_eq!(
        outcome.rule,
        "lower 95 % bound of local/service ≥ 0.9 on similarity and precision (mean and coverage, coverage score 70)"
    );
    assert_eq!(
        outcome.reason,
        "In the closest of 4 comparisons the local model reaches 94.7 % of the service LLM's mean of similarity (at \
         least 94.7 % with 95 % confidence); 90.0 % is needed."
    );
}

#[test]
fn a_weaker_model_fails_and_the_worst_number_is_named() {
    let outcome = evaluate(&GateRule::default(), &subject(200, 72), &subject(200, 95));
    assert!(!outcome.passed);
    assert!(
        outcome
            .reason
            .starts_with("In the worst of 4 comparisons the local model reaches "),
        "{}",
        outcome.reason
    );
    assert!(
        outcome.reason.ends_with("90.0 % is needed (2 of 4 fall short)."),
        "{}",
        outcome.reason
    );
}

#[test]
fn the_papers_rule_looks_at_the_local_model_alone() {
    let nobody = Judged::new(&[], 70.0);
    let outcome = evaluate(&GateRule::paper(), &subject(5, 96), &nobody);
    assert!(outcome.passed, "{}", outcome.reason);
    let outcome = evaluate(&GateRule::paper(), &subject(5, 85), &nobody);
    assert_eq!(
        outcome.reason,
        "In the worst of 4 comparisons the mean of similarity is 84.2; 90.0 is needed (2 of 4 fall short)."
    );
}

#[test]
fn a_missing_number_never_passes() {
    let nobody = Judged::new(&[], 70.0);
    for (local, service) in [
        (&nobody, &subject(9, 90)),
        (&subject(9, 90), &nobody),
        (&subject(1, 90), &subject(1, 90)),
    ] {
        let outcome = evaluate(&GateRule::default(), local, service);
        assert!(!outcome.passed);
        assert!(
            outcome.reason.contains("at least two prompts"),
            "{}",
            outcome.reason
        );
    }
    assert!(!evaluate(&GateRule::paper(), &nobody, &nobody).passed);
    let nothing = GateRule::Relative {
        floor: 0.0,
        statistics: Vec::new(),
    };
    assert!(!evaluate(&nothing, &subject(9, 90), &subject(9, 90)).passed);
    let nan = GateRule::Absolute {
        similarity_mean: f64::NAN,
        precision_mean: f64::NAN,
        coverage: 0.0,
    };
    assert!(!evaluate(&nan, &subject(9, 90), &nobody).passed);
}

#[test]
fn a_model_that_the_judge_cannot_read_does_not_pass() {
    let mut verdicts: Vec<Verdict> = (0..20).map(|prompt| verdict(prompt, 0, 0, 95, 95)).collect();
    verdicts.extend((20..22).map(|prompt| verdict(prompt, 0, 0, 0, 0)));
    let local = Judged::new(&verdicts, 70.0);
    let outcome = evaluate(&GateRule::default(), &local, &subject(22, 95));
    assert!(!outcome.passed);
    assert!(
        outcome.reason.contains("2 of 22 answers of the local model"),
        "{}",
        outcome.reason
    );
}

#[test]
fn a_rule_goes_out_and_comes_back() {
    for rule in [GateRule::default(), GateRule::paper()] {
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<GateRule>(&json).unwrap(), rule);
    }
    assert!(
        serde_json::from_str::<GateRule>(
            r#"{"kind":"absolute","similarity_mean":90,"precision_mean":90,"coverage":1,"x":1}"#
        )
        .is_err()
    );
}

#[test]
fn thresholds_that_differ_are_each_held_against_their_own_metric() {
    let rule = GateRule::Absolute {
        similarity_mean: 80.0,
        precision_mean: 95.0,
        coverage: 0.5,
    };
    let nobody = Judged::new(&[], 70.0);
    let outcome = evaluate(&rule, &subject(6, 92), &nobody);
    assert_eq!(
        outcome.rule,
        "mean similarity ≥ 80, mean precision ≥ 95, and coverage ≥ 0.5 on both (coverage score 70)"
    );
    let passed: Vec<bool> = outcome.checks.iter().map(|check| check.passed).collect();
    assert_eq!(passed, [true, false, true, true]);
    assert_eq!(
        outcome.reason,
        "In the worst of 4 comparisons the mean of precision is 91.5; 95.0 is needed (1 of 4 fall short)."
    );
}

#[test]
fn a_service_that_covers_nothing_is_the_reason_that_is_given() {
    let outcome = evaluate(&GateRule::default(), &subject(9, 60), &subject(9, 60));
    assert!(!outcome.passed);
    assert_eq!(
        outcome.reason,
        "The coverage of similarity cannot be compared: the service LLM's own coverage is (nearly) 0 at a coverage \
         score of 70; lower gate.coverage_score."
    );
    let missing: Vec<_> = outcome.checks.iter().map(|check| check.missing).collect();
    let near_zero = Some(Missing::ServiceNearZero);
    assert_eq!(missing, [None, None, near_zero, near_zero]);
}

#[test]
fn a_threshold_of_nothing_is_never_the_closest() {
    let rule = GateRule::Absolute {
        similarity_mean: 50.0,
        precision_mean: 50.0,
        coverage: 0.0,
    };
    let nobody = Judged::new(&[], 70.0);
    let outcome = evaluate(&rule, &subject(5, 60), &nobody);
    assert!(
        outcome.passed && outcome.reason.contains("mean of similarity"),
        "{}",
        outcome.reason
    );
}

#[test]
fn full_coverage_of_few_prompts_does_not_pass() {
    let outcome = evaluate(&GateRule::default(), &subject(15, 95), &subject(15, 95));
    assert!(!outcome.passed);
    assert!(
        outcome.reason.contains("coverage of similarity"),
        "{}",
        outcome.reason
    );
}
