use super::*;
use crate::sample::ServiceCall;
use crate::verdict::Outcome;

/// A verdict with these scores, or an unreadable one for 0.
pub(crate) fn verdict(prompt_index: u32, k: u32, m: u32, similarity: u8, precision: u8) -> Verdict {
    let assessment = |score: u8| format!("{{\"score\":{score},\"reason\":\"\"}}");
    let reply = format!(
        "{{\"similarity_assessment\":{},\"precision_assessment\":{}}}",
        assessment(similarity),
        assessment(precision)
    );
    let call = ServiceCall {
        id: String::new(),
        prompt_hash: String::new(),
        model: String::new(),
        input_tokens: 0,
        output_tokens: 0,
        cost: None,
    };
    Verdict {
        prompt_index,
        k,
        m,
        outcome: Outcome::from_reply(&reply),
        call,
    }
}

#[test]
fn equations_five_to_seven_by_hand() {
    let verdicts = [
        verdict(0, 0, 0, 60, 90),
        verdict(0, 0, 1, 80, 90), // s̄ = 70 and 90
        verdict(0, 1, 0, 60, 10),
        verdict(0, 1, 1, 79, 30), // 69.5 and 20
        verdict(1, 0, 0, 100, 100),
        verdict(1, 1, 0, 90, 50),
    ];
    let judged = Judged::new(&verdicts, 70.0);
    let scores = judged.scores();
    assert_eq!(scores.similarity.mean, Some((70.0 + 69.5 + 100.0 + 90.0) / 4.0));
    assert_eq!(scores.similarity.coverage, Some(0.75));
    assert_eq!(scores.precision.mean, Some((90.0 + 20.0 + 100.0 + 50.0) / 4.0));
    assert_eq!(scores.precision.coverage, Some(0.5));
    assert_eq!(
        (scores.verdicts, scores.unparsed, scores.prompts, scores.responses),
        (6, 0, 2, 4)
    );
    assert_eq!(
        judged.histogram(Metric::Similarity),
        [0, 0, 0, 0, 0, 0, 2, 0, 1, 1]
    );
}

#[test]
fn unreadable_verdicts_are_counted_and_enter_no_mean() {
    let verdicts = [
        verdict(0, 0, 0, 80, 80),
        verdict(0, 0, 1, 0, 80),
        verdict(1, 0, 0, 0, 0),
        verdict(2, 0, 0, 60, 60),
    ];
    let judged = Judged::new(&verdicts, 70.0);
    let scores = judged.scores();
    assert_eq!(scores.similarity.mean, Some(70.0));
    assert_eq!(
        (scores.verdicts, scores.unparsed, scores.ungraded_responses),
        (4, 2, 1)
    );
    assert_eq!((scores.prompts, scores.responses), (2, 3));
    assert_eq!(judged.responses()[1].similarity, None);
}

#[test]
fn a_verdict_told_twice_counts_once() {
    let judged = Judged::new(&[verdict(0, 0, 0, 80, 80), verdict(0, 0, 0, 20, 20)], 70.0);
    assert_eq!(judged.scores().similarity.mean, Some(80.0));
    assert_eq!(judged.scores().verdicts, 1);
}

#[test]
fn nothing_graded_is_nothing_and_not_zero() {
    let scores = Judged::new(&[], 70.0).scores();
    assert_eq!(scores.similarity.mean, None);
    assert_eq!(scores.similarity.coverage_interval, None);
    let ratio = ratio(
        &Judged::new(&[], 70.0),
        &Judged::new(&[], 70.0),
        Metric::Precision,
        Statistic::Mean,
    );
    assert_eq!(
        ratio,
        Ratio {
            value: None,
            interval: None,
            prompts: 0
        }
    );
}

#[test]
fn the_ratio_uses_the_prompts_that_both_were_graded_on() {
    let half = |prompt: u32| 40 + prompt as u8;
    let mut local: Vec<Verdict> = (0..6)
        .map(|prompt| verdict(prompt, 0, 0, half(prompt), 50))
        .collect();
    let mut service: Vec<Verdict> = (0..6)
        .map(|prompt| verdict(prompt, 0, 0, 2 * half(prompt), 50))
        .collect();
    local.push(verdict(9, 0, 0, 1, 1));
    service.push(verdict(7, 0, 0, 100, 100));
    let (local, service) = (Judged::new(&local, 70.0), Judged::new(&service, 70.0));
    let ratio = ratio(&local, &service, Metric::Similarity, Statistic::Mean);
    assert_eq!((ratio.value, ratio.prompts), (Some(0.5), 6));
    // Every prompt has the same ratio, so there is nothing to be unsure of.
    let interval = ratio.interval.unwrap();
    assert!(
        (interval.low - 0.5).abs() < 1e-6 && (interval.high - 0.5).abs() < 1e-6,
        "{interval:?}"
    );
}
