use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::sample::{Message, Provenance, Role};

fn sample(prompt: usize, response: usize) -> Sample {
    let turns = vec![
        Message::new(Role::User, format!("prompt {prompt}")),
        Message::new(Role::Assistant, format!("response {response}")),
    ];
    Sample::new(turns, Provenance::Coverage { line: 1 }).unwrap()
}

fn samples(count: usize) -> Vec<Sample> {
    (0..count).map(|index| sample(index, index)).collect()
}

#[test]
fn the_count_is_exact_and_the_order_kept() {
    let split = split(samples(150), TestSize::Ratio(0.2), 7).unwrap();
    assert_eq!((split.train.len(), split.test.len()), (120, 30));
    let all = samples(150);
    let place = |sample: &Sample| all.iter().position(|other| other == sample).unwrap();
    assert!(split.train.is_sorted_by_key(place) && split.test.is_sorted_by_key(place));
}

#[test]
fn the_seed_decides_and_the_row_order_does_not() {
    let ids = |seed, samples: Vec<Sample>| {
        let split = split(samples, TestSize::Count(20), seed).unwrap();
        split.test.iter().map(Sample::id).collect::<HashSet<_>>()
    };
    let backwards = samples(100).into_iter().rev().collect();
    assert_eq!(ids(1, samples(100)), ids(1, backwards));
    assert_ne!(ids(1, samples(100)), ids(2, samples(100)));
}

#[test]
fn an_empty_side_is_an_error_that_says_what_to_do() {
    let message = |count, size| split(samples(count), size, 0).unwrap_err().to_string();
    assert!(message(3, TestSize::Ratio(0.1)).contains("leaves the test split empty; ask for a larger"));
    assert!(message(3, TestSize::Count(3)).contains("leaves the train split empty; ask for a smaller"));
    assert!(message(3, TestSize::Count(9)).contains("leaves the train split empty"));
    assert!(message(0, TestSize::Ratio(0.5)).contains("leaves the test split empty"));
    let alike = (0..5).map(|response| sample(0, response)).collect();
    let error = split(alike, TestSize::Count(2), 0).unwrap_err().to_string();
    assert!(
        error.contains("(1 different prompts)") && error.contains("too many samples share one prompt"),
        "{error}"
    );
    for ratio in [0.0, 1.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            split(samples(9), TestSize::Ratio(ratio), 0),
            Err(Error::Ratio { .. })
        ));
    }
}

proptest! {
    #[test]
    fn equal_prompts_never_part(prompts in proptest::collection::vec(0usize..30, 2..80), test in 1usize..40, seed: u64) {
        let all: Vec<Sample> = prompts.iter().enumerate().map(|(index, prompt)| sample(*prompt, index)).collect();
        let total = all.len();
        if let Ok(split) = split(all, TestSize::Count(test), seed) {
            prop_assert_eq!(split.train.len() + split.test.len(), total);
            prop_assert!(split.test.len() <= test);
            let train: HashSet<_> = split.train.iter().map(Sample::prompt).collect();
            prop_assert!(split.test.iter().all(|sample| !train.contains(sample.prompt())));
        }
    }
}
