use std::sync::Arc;

use llamaduo_data::score::Judged;
use llamaduo_data::verdict::{Assessment, Judgement, Outcome, Score};
use llamaduo_data::{Message, Provenance, Role, Sample, ServiceCall, Verdict};
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{CurationSettings, Gate, GateRule};

use super::{curate, gate, report, score};
use crate::machine::Run;
use crate::machine::tests::world::World;

fn verdict(prompt_index: u32, m: u32, scores: Option<(f64, f64)>) -> Verdict {
    let assessment = |score| Assessment {
        score: Score::try_from(score).expect("1 to 100"),
        reason: String::new(),
    };
    let outcome = match scores {
        Some((similarity, precision)) => Outcome::Graded(Judgement {
            similarity: assessment(similarity),
            precision: assessment(precision),
        }),
        None => Outcome::Unparsed {
            raw: "?".to_owned(),
            why: "no JSON".to_owned(),
        },
    };
    let call = ServiceCall {
        id: format!("{prompt_index}-{m}"),
        prompt_hash: String::new(),
        model: String::new(),
        input_tokens: 1,
        output_tokens: 1,
        cost: None,
    };
    Verdict {
        prompt_index,
        k: 0,
        m,
        outcome,
        call,
    }
}

fn judged(similarity: f64, precision: f64) -> Judged {
    let verdicts: Vec<Verdict> = (0..40)
        .map(|prompt| verdict(prompt, 0, Some((similarity, precision))))
        .collect();
    Judged::new(&verdicts, 70.0)
}

#[test]
fn scores_count_what_was_read_apart_from_what_was_not() {
    let judged = Judged::new(
        &[
            verdict(0, 0, Some((80.0, 60.0))),
            verdict(1, 0, Some((60.0, 60.0))),
            verdict(1, 1, None),
        ],
        70.0,
    );
    let scores = score::scores(&judged);
    assert_eq!((scores.n_verdicts, scores.n_unparsed), (2, 1));
    assert_eq!(
        (scores.similarity.mean, scores.similarity.coverage),
        (Some(70.0), Some(0.5))
    );
    assert_eq!(
        (scores.precision.mean, scores.precision.coverage),
        (Some(60.0), Some(0.0))
    );
}

#[test]
fn absolute_thresholds_may_differ_by_metric() {
    let service = judged(95.0, 95.0);
    for (similarity, precision, expected) in [(85.0, 75.0, true), (79.0, 90.0, false), (90.0, 71.0, false)] {
        let rule = GateRule::Absolute {
            similarity_mean_min: 80.0,
            precision_mean_min: 72.0,
            coverage_min: 0.9,
        };
        let outcome = gate::evaluate(&rule, &judged(similarity, precision), &service);
        assert_eq!(
            outcome.passed, expected,
            "{similarity}, {precision}: {}",
            outcome.reason
        );
        assert_eq!(outcome.checks.len(), 4, "mean and coverage of both metrics");
    }
}

#[test]
fn the_relative_gate_compares_with_the_service() {
    let service = judged(90.0, 90.0);
    let rule = GateRule::Relative { ratio_min: 0.9 };
    assert!(gate::evaluate(&rule, &judged(88.0, 88.0), &service).passed);
    let short = gate::evaluate(&rule, &judged(88.0, 75.0), &service);
    assert!(!short.passed);
}

#[test]
fn the_reason_names_the_threshold_that_was_missed() {
    let rule = GateRule::Absolute {
        similarity_mean_min: 80.0,
        precision_mean_min: 72.0,
        coverage_min: 0.9,
    };
    let outcome = gate::evaluate(&rule, &judged(79.0, 71.0), &judged(95.0, 95.0));
    assert_eq!(
        outcome.reason,
        "In the worst of 4 comparisons the mean of precision is 71.0; 72.0 is needed (2 of 4 fall short)."
    );
}

#[test]
fn the_report_compares_with_the_rule_that_the_run_was_given() {
    let relative = GateRule::Relative { ratio_min: 0.8 };
    let absolute = GateRule::Absolute {
        similarity_mean_min: 60.0,
        precision_mean_min: 60.0,
        coverage_min: 0.0,
    };
    let mut gate = Gate {
        rule: relative,
        coverage_score: 70.0,
        compared: Some(absolute),
    };
    let (local, service) = (judged(65.0, 65.0), judged(90.0, 90.0));
    let other = |gate: &Gate| llamaduo_data::gate::evaluate(&gate::other_rule(gate), &local, &service);
    assert!(other(&gate).passed, "the run's own thresholds");
    gate.compared = None;
    assert!(!other(&gate).passed, "the paper's");
}

/// A run of three cycles, none of which passed; `values` are what its gates compared, and with what.
fn run_with_gates(values: [(f64, f64); 3]) -> Run {
    let mut world = World::migration(9);
    world.do_all();
    let mut run = world.run;
    for (cycle, (value, threshold)) in (1..).zip(values) {
        let record = run.cycles.get_mut(&Cycle(cycle)).expect("three cycles");
        let gate = Arc::make_mut(record).gate.as_mut().expect("decided");
        (gate.value, gate.threshold, gate.passed) = (Some(value), threshold, false);
    }
    run
}

#[test]
fn the_best_adapter_is_the_one_closest_to_its_threshold_whatever_the_unit() {
    // A mean of 60 of 90, a coverage of 0.85 of 0.9, a coverage of 0.1 of 0.9.
    let run = run_with_gates([(60.0, 90.0), (0.85, 0.9), (0.1, 0.9)]);
    assert_eq!(run.best_cycle(), Some(Cycle(2)));
    assert_eq!(run.best_adapter(), run.adapter(Cycle(2)));
    let run = run_with_gates([(80.0, 90.0), (0.1, 0.9), (0.2, 0.9)]);
    assert_eq!(run.best_cycle(), Some(Cycle(1)));
}

#[test]
fn examples_show_the_worst_answers_first() {
    let score = |prompt| match prompt {
        13 => Some((2.0, 1.0)),
        // A poor similarity beside a good precision is a better answer.
        4 => Some((20.0, 90.0)),
        29 => Some((20.0, 20.0)),
        _ => Some((95.0, 95.0)),
    };
    let verdicts: Vec<Verdict> = (0..30).map(|prompt| verdict(prompt, 0, score(prompt))).collect();
    let judged = Judged::new(&verdicts, 70.0);
    let chosen = report::examples::chosen(30, Some(&judged));
    assert_eq!(chosen[..3], [(13, true), (29, true), (4, true)]);
    assert_eq!(chosen[3..], [(0, false), (10, false), (20, false)]);
    let without: Vec<u32> = report::examples::chosen(30, None)
        .iter()
        .map(|(prompt, _)| *prompt)
        .collect();
    assert_eq!(without, [0, 5, 10, 15, 20, 25]);
    assert_eq!(report::examples::chosen(2, None).len(), 2);
    assert_eq!(report::examples::chosen(0, None), []);
}

#[test]
fn keys_that_all_train_responses_share_are_required_of_new_ones() {
    let sample = |response: &str| {
        let messages = vec![
            Message::new(Role::User, "ask"),
            Message::new(Role::Assistant, response),
        ];
        Sample::new(messages, Provenance::Coverage { line: 1 }).expect("a valid sample")
    };
    let existing = [
        sample("{\"team\": 1, \"priority\": 2}"),
        sample(" {\"priority\": 1, \"other\": 3} "),
    ];
    assert_eq!(curate::shared_keys(&existing), ["priority"]);
    assert!(curate::shared_keys(&[sample("no JSON")]).is_empty());
    let settings = CurationSettings {
        response_json: true,
        near_duplicate_jaccard: 0.5,
        ..Default::default()
    };
    let config = curate::config(&settings, &existing);
    assert_eq!(config.near_duplicates.jaccard_min, 0.5);
    assert!(matches!(
        config.rules.response_form,
        llamaduo_data::curate::rules::ResponseForm::JsonObject { required_keys, .. } if required_keys == ["priority"]
    ));
}

#[test]
fn curation_has_one_set_of_defaults() {
    use llamaduo_data::curate::CurationConfig;
    let config = curate::config(&CurationSettings::default(), &[]);
    let own = CurationConfig::default();
    assert_eq!(config.contamination, own.contamination);
    assert_eq!(config.novelty, own.novelty);
    assert_eq!(config.near_duplicates, own.near_duplicates);
}
