//! Scores fall with what is wrong, and nothing about a response can break the grading.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const REFERENCE: &str = "{\"category\":\"defect\",\"team\":\"repair\",\"priority\":\"high\",\"language\":\"de\",\"refund\":false,\"order\":null}";

/// (similarity, precision), averaged over the noise.
fn scores(reference: &str, response: &str) -> (f64, f64) {
    const N: u64 = 200;
    let sum = (0..N).map(|request| one_score(reference, response, request));
    let (similarity, precision) = sum.fold((0.0, 0.0), |sum, score| (sum.0 + score.0, sum.1 + score.1));
    (similarity / N as f64, precision / N as f64)
}

fn one_score(reference: &str, response: &str, request: u64) -> (f64, f64) {
    let verdict: Value = serde_json::from_str(&verdict(reference, response, 1, request)).unwrap();
    let score = |name: &str| verdict[name]["score"].as_f64().unwrap();
    (score("similarity_assessment"), score("precision_assessment"))
}

#[test]
fn scores_fall_with_what_is_wrong() {
    let one_wrong = REFERENCE.replace("high", "low");
    let two_wrong = one_wrong.replace("repair", "sales");
    let missing = REFERENCE.replace("\"team\":\"repair\",", "");
    let extra = REFERENCE.replace("{", "{\"mood\":\"bad\",");
    let wrapped = format!("Here you are: {REFERENCE} Anything else?");
    let cases = [
        ("equal", REFERENCE, (98.0..=100.0), (98.0..=100.0)),
        (
            "spaced",
            &REFERENCE.replace(':', ": "),
            (98.0..=100.0),
            (98.0..=100.0),
        ),
        (
            "case",
            &REFERENCE.replace("high", "High"),
            (90.0..=93.0),
            (88.5..=91.5),
        ),
        ("one wrong", &one_wrong, (82.0..=85.0), (78.0..=81.0)),
        ("two wrong", &two_wrong, (65.0..=68.5), (58.5..=62.0)),
        ("missing", &missing, (82.0..=85.0), (78.0..=81.0)),
        ("extra", &extra, (94.0..=96.0), (91.0..=93.0)),
        ("wrapped", &wrapped, (89.0..=91.0), (84.0..=86.0)),
        (
            "prose",
            "The customer has a defect lamp.",
            (1.0..=15.0),
            (1.0..=5.0),
        ),
        ("cut", &REFERENCE[..60], (1.0..=15.0), (1.0..=5.0)),
        ("empty", "", (1.0..=3.0), (1.0..=3.0)),
        ("other type", "[1, 2]", (1.0..=5.0), (1.0..=5.0)),
    ];
    for (name, response, similarity, precision) in cases {
        let found = scores(REFERENCE, response);
        println!("{name:>10}: similarity {:.1}, precision {:.1}", found.0, found.1);
        assert!(similarity.contains(&found.0), "{name}: {found:?}");
        assert!(precision.contains(&found.1), "{name}: {found:?}");
    }
}

#[test]
fn other_tasks_are_graded_by_shared_words() {
    let reference = "Paris is the capital of France.";
    assert!(scores(reference, reference).0 > 97.0);
    let half = scores(reference, "Paris is lovely in the spring.").0;
    assert!((40.0..=60.0).contains(&half), "{half}");
    assert!(scores(reference, "No idea").0 < 4.0);
}

#[test]
fn noise_depends_on_seed_and_request_alone() {
    assert_eq!(verdict(REFERENCE, "{}", 1, 2), verdict(REFERENCE, "{}", 1, 2));
    let different: std::collections::BTreeSet<String> = (0..50)
        .map(|request| verdict(REFERENCE, &REFERENCE.replace("high", "low"), 1, request))
        .collect();
    assert!(different.len() > 10);
}

proptest! {
    #[test]
    fn scores_are_always_from_1_to_100(reference in ".{0,80}", response in ".{0,80}", request: u64) {
        let (similarity, precision) = one_score(&reference, &response, request);
        prop_assert!((1.0..=100.0).contains(&similarity) && (1.0..=100.0).contains(&precision));
    }

    #[test]
    fn json_of_any_shape_is_graded(keys in proptest::collection::vec("[a-z]{1,3}", 0..6), request: u64) {
        let object: Map<String, Value> = keys.iter().map(|key| (key.clone(), Value::from(key.len()))).collect();
        let text = Value::Object(object).to_string();
        prop_assert!(one_score(&text, &text, request).0 >= 97.0);
        prop_assert!(one_score(REFERENCE, &text, request).0 <= 4.0);
    }
}
