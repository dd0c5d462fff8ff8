//! Ties, cut-offs and frequencies.

use proptest::prelude::*;

use super::*;

/// `uniform` is in `[0, 1)`.
fn chosen(spec: SampleSpec, logits: &[f32], seen: &[u32], uniform: f64) -> Option<u32> {
    let random = (uniform * (1u64 << RANDOM_BITS) as f64) as u64;
    let row = SampleRow { spec, random, seen };
    check(&[row], logits.len()).unwrap();
    let mut logits = logits.to_vec();
    for id in row.penalized(logits.len()) {
        let logit = &mut logits[id as usize];
        *logit = penalize(*logit, spec.repetition_penalty);
    }
    super::choose(&logits, spec, random)
}

fn choose(spec: SampleSpec, logits: &[f32], uniform: f64) -> u32 {
    chosen(spec, logits, &[], uniform).unwrap()
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    assert_eq!(choose(SampleSpec::GREEDY, &[0.0, 2.0, f32::NAN, 2.0], 0.9), 1);
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_no_token() {
    for logits in [[f32::NAN; 2], [f32::NEG_INFINITY; 2], [0.0, f32::INFINITY]] {
        let warm = SampleSpec {
            temperature: 0.4,
            ..SampleSpec::GREEDY
        };
        for sampling in [SampleSpec::GREEDY, warm] {
            assert_eq!(chosen(sampling, &logits, &[], 0.5), None);
        }
    }
}

#[test]
fn frequencies_follow_the_softmax_at_its_temperature() {
    let sampling = SampleSpec {
        temperature: 2.0,
        ..SampleSpec::GREEDY
    };
    let logits = [2.0, 0.0, -2.0];
    let weights: Vec<f64> = logits.iter().map(|logit| f64::exp(logit / 2.0)).collect();
    let n = 10_000;
    let mut counts = [0usize; 3];
    for i in 0..n {
        let logits = logits.map(|logit| logit as f32);
        counts[choose(sampling, &logits, (i as f64 + 0.5) / n as f64) as usize] += 1;
    }
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = weight / weights.iter().sum::<f64>();
        assert!((*count as f64 / n as f64 - expected).abs() < 1e-3, "{counts:?}");
    }
}

#[test]
fn cut_offs_keep_only_the_likeliest() {
    let logits = [1.0, 3.0, 2.0, 0.0];
    let base = SampleSpec {
        temperature: 1.0,
        ..SampleSpec::GREEDY
    };
    let reachable = |sampling: SampleSpec| {
        let mut ids: Vec<u32> = (0..1000)
            .map(|i| choose(sampling, &logits, f64::from(i) / 1000.0))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(reachable(base), [0, 1, 2, 3]);
    assert_eq!(reachable(SampleSpec { top_k: 2, ..base }), [1, 2]);
    assert_eq!(reachable(SampleSpec { top_p: 0.5, ..base }), [1]);
    assert_eq!(reachable(SampleSpec { min_p: 0.3, ..base }), [1, 2]);
}

#[test]
fn a_penalty_lowers_what_was_said() {
    let sampling = SampleSpec {
        repetition_penalty: 2.0,
        ..SampleSpec::GREEDY
    };
    for (logits, said) in [([3.0, 2.0], vec![0, 0, 9]), ([-1.0, -1.5], vec![0])] {
        assert_eq!(chosen(sampling, &logits, &said, 0.0), Some(1));
    }
}

/// What the settings say, done plainly over the whole vocabulary, as transformers does: the probability of each token.
/// `None` where a token lies so near to a cut-off that rounding decides.
fn plain_probabilities(sampling: SampleSpec, logits: &[f32], seen: &[u32]) -> Option<Vec<f64>> {
    let mut scores: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let mut penalized: Vec<u32> = seen.to_vec();
    penalized.sort_unstable();
    penalized.dedup();
    for id in penalized {
        let score = &mut scores[id as usize];
        let penalty = f64::from(sampling.repetition_penalty);
        *score = if *score < 0.0 {
            *score * penalty
        } else {
            *score / penalty
        };
    }
    for score in &mut scores {
        *score /= f64::from(sampling.temperature);
    }
    let is_near = |a: f64, b: f64| (a - b).abs() < 1e-5;
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let neighbours = ranked.windows(2).map(|pair| (scores[pair[0]], scores[pair[1]]));
    let mut is_decided = neighbours.into_iter().all(|(a, b)| a == b || !is_near(a, b));
    let softmax = |kept: &[usize]| {
        let total: f64 = kept.iter().map(|&id| scores[id].exp()).sum();
        let mut probabilities = vec![0.0; scores.len()];
        for &id in kept {
            probabilities[id] = scores[id].exp() / total;
        }
        probabilities
    };
    if sampling.top_k > 0 {
        ranked.truncate(sampling.top_k);
    }
    let (probabilities, top_p) = (softmax(&ranked), f64::from(sampling.top_p));
    let mut before = 0.0;
    ranked.retain(|&id| {
        let is_kept = before < top_p;
        is_decided &= top_p == 1.0 || !is_near(before, top_p);
        before += probabilities[id];
        is_kept || top_p == 1.0
    });
    let (probabilities, min_p) = (softmax(&ranked), f64::from(sampling.min_p));
    let largest = probabilities[ranked[0]];
    ranked.retain(|&id| {
        let share = probabilities[id] / largest;
        is_decided &= min_p == 0.0 || !is_near(share, min_p);
        share >= min_p
    });
    is_decided.then(|| softmax(&ranked))
}

/// Settings of which any may be off, and a vocabulary with some equal logits.
fn cases() -> impl Strategy<Value = (SampleSpec, Vec<f32>, Vec<u32>)> {
    let sampling = (
        0.2f32..2.0,
        prop_oneof![Just(0usize), 1usize..40],
        prop_oneof![Just(1.0f32), 0.05f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..0.6],
        prop_oneof![Just(1.0f32), 0.5f32..2.0],
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, repetition_penalty)| SampleSpec {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
            },
        );
    let logits = prop::collection::vec(
        prop_oneof![3 => -4.0f32..4.0, 1 => (-3i8..4).prop_map(f32::from)],
        2..40,
    );
    (sampling, logits).prop_flat_map(|(sampling, logits)| {
        let seen = prop::collection::vec(0..logits.len() as u32, 0..12);
        (Just(sampling), Just(logits), seen)
    })
}

proptest! {
    #[test]
    fn tokens_come_as_often_as_a_plain_implementation_says((sampling, logits, seen) in cases()) {
        let expected = plain_probabilities(sampling, &logits, &seen);
        prop_assume!(expected.is_some());
        let expected = expected.unwrap();
        let n = 4000;
        let mut counts = vec![0usize; logits.len()];
        for i in 0..n {
            let uniform = (f64::from(i) + 0.5) / f64::from(n);
            let id = chosen(sampling, &logits, &seen, uniform).unwrap();
            counts[id as usize] += 1;
        }
        // Each token's share of the unit interval is met by so many evenly spaced numbers, give or take one.
        let off: Vec<_> = counts
            .iter()
            .zip(&expected)
            .filter(|&(&count, &p)| (count as f64 - p * f64::from(n)).abs() > 1.01)
            .collect();
        prop_assert!(off.is_empty(), "{:?}", off);
    }

    #[test]
    fn greedy_takes_what_the_plain_implementation_holds_likeliest((sampling, logits, seen) in cases()) {
        let expected = plain_probabilities(SampleSpec { temperature: 1.0, ..sampling }, &logits, &seen);
        prop_assume!(expected.is_some());
        let expected = expected.unwrap();
        let greedy = SampleSpec { temperature: 0.0, ..sampling };
        let id = chosen(greedy, &logits, &seen, 0.5).unwrap();
        let largest = expected.iter().copied().fold(0.0, f64::max);
        prop_assert!(expected[id as usize] >= largest * (1.0 - 1e-6));
    }
}

#[test]
fn a_weight_is_the_exponential() {
    assert_eq!(weight(0.0), 1 << WEIGHT_BITS);
    assert_eq!(weight(-30.0), 0);
    assert_eq!(weight(f64::NEG_INFINITY), 0);
    for step in 0..300_000 {
        let x = f64::from(step) * -1e-4;
        let expected = x.exp() * (1u64 << WEIGHT_BITS) as f64;
        // half a unit in the last place of the exponential, and what is cut off
        let off = expected - weight(x) as f64;
        assert!((-0.01..1.01).contains(&off), "{x}: {off}");
    }
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let row = |spec, random| {
        let row = SampleRow {
            spec,
            random,
            seen: &[],
        };
        check(&[row], 5)
    };
    let greedy = SampleSpec::GREEDY;
    row(greedy, (1 << 53) - 1).unwrap();
    row(greedy, 1 << 53).unwrap_err();
    for (temperature, top_p, min_p, repetition_penalty) in [
        (f32::NAN, 1.0, 0.0, 1.0),
        (-1.0, 1.0, 0.0, 1.0),
        (1.0, 0.0, 0.0, 1.0),
        (1.0, 1.1, 0.0, 1.0),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.0, 0.0, f32::INFINITY),
    ] {
        let spec = SampleSpec {
            temperature,
            top_k: 0,
            top_p,
            min_p,
            repetition_penalty,
        };
        row(spec, 0).unwrap_err();
    }
    for n_vocab in [0, (1 << ID_BITS) + 1] {
        check(&[], n_vocab).unwrap_err();
    }
}
