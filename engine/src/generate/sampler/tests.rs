//! Ties, cut-offs and frequencies of the sampler.

use super::*;

fn choose(sampling: Sampling, logits: &[f32], uniform: f64) -> u32 {
    sampling
        .choose(&mut logits.to_vec(), std::iter::empty(), uniform)
        .unwrap()
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    assert_eq!(choose(Sampling::GREEDY, &[0.0, 2.0, f32::NAN, 2.0], 0.9), 1);
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_no_token() {
    for logits in [[f32::NAN; 2], [f32::NEG_INFINITY; 2], [0.0, f32::INFINITY]] {
        for sampling in [Sampling::GREEDY, Sampling::default()] {
            let chosen = sampling.choose(&mut logits.to_vec(), std::iter::empty(), 0.5);
            assert!(matches!(chosen, Err(Error::NotFinite { .. })), "{chosen:?}");
        }
    }
}

#[test]
fn frequencies_follow_the_softmax_at_its_temperature() {
    let sampling = Sampling {
        temperature: 2.0,
        ..Sampling::GREEDY
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
    let base = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    let reachable = |sampling: Sampling| {
        let mut ids: Vec<u32> = (0..1000)
            .map(|i| choose(sampling, &logits, f64::from(i) / 1000.0))
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(reachable(base), [0, 1, 2, 3]);
    assert_eq!(reachable(Sampling { top_k: 2, ..base }), [1, 2]);
    assert_eq!(reachable(Sampling { top_p: 0.5, ..base }), [1]);
    assert_eq!(reachable(Sampling { min_p: 0.3, ..base }), [1, 2]);
}

#[test]
fn a_penalty_lowers_what_was_said() {
    let sampling = Sampling {
        repetition_penalty: 2.0,
        ..Sampling::GREEDY
    };
    for (mut logits, said) in [([3.0, 2.0], vec![0, 0]), ([-1.0, -1.5], vec![0])] {
        assert_eq!(sampling.choose(&mut logits, said.into_iter(), 0.0).unwrap(), 1);
    }
}

#[test]
fn settings_without_a_meaning_are_refused() {
    for sampling in [
        Sampling {
            temperature: f32::NAN,
            ..Sampling::GREEDY
        },
        Sampling {
            top_p: 0.0,
            ..Sampling::GREEDY
        },
        Sampling {
            min_p: 1.0,
            ..Sampling::GREEDY
        },
        Sampling {
            repetition_penalty: 0.0,
            ..Sampling::GREEDY
        },
    ] {
        assert!(sampling.validate().is_err(), "{sampling:?}");
    }
}
