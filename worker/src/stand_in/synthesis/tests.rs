//! New pairs are mostly good and new; the flaws are there, and curation catches them.

use llamaduo_data::curate::{CurationConfig, CurationCounts, curate};
use llamaduo_data::import::import;
use llamaduo_data::sample::{Sample, ServiceCall};
use llamaduo_data::split::{TestSize, split};
use llamaduo_data::synthesis::candidates;

use super::*;
use crate::stand_in::tickets::{TASK_INSTRUCTION, coverage_dataset, reference_label};

fn source(examples: &[(String, String)], request: u64) -> Source<'_> {
    Source {
        examples,
        coverage_seed: 1,
        flaws: Flaws::default(),
        seed: 1,
        request,
    }
}

#[test]
fn as_many_items_as_asked_for() {
    for n_pairs in [0, 1, 7] {
        let reply: Value = serde_json::from_str(&contents(&source(&[], 3), n_pairs)).unwrap();
        assert_eq!(reply["contents"].as_array().unwrap().len(), n_pairs);
    }
}

#[test]
fn a_reply_depends_on_seed_and_request_alone() {
    let examples = [("ask".to_owned(), "answer".to_owned())];
    assert_eq!(
        contents(&source(&examples, 3), 9),
        contents(&source(&examples, 3), 9)
    );
    assert_ne!(
        contents(&source(&examples, 3), 9),
        contents(&source(&examples, 4), 9)
    );
}

/// Asks for `n_calls` · 8 pairs in view of a train split of 60, and curates them.
fn synthesize_and_curate(seed: u64, n_calls: u64) -> (Vec<Sample>, CurationCounts) {
    let dataset = import("coverage.jsonl", coverage_dataset(seed).as_bytes())
        .unwrap()
        .samples;
    let parts = split(dataset, TestSize::Count(90), seed).unwrap();
    let call = ServiceCall {
        id: "call".to_owned(),
        prompt_hash: String::new(),
        model: "stand-in-1".to_owned(),
        input_tokens: 0,
        output_tokens: 0,
        cost: None,
    };
    let mut raw = Vec::new();
    for request in 0..n_calls {
        let examples: Vec<(String, String)> = (0..4)
            .filter_map(|nth| parts.train.get(((request * 4 + nth) % 60) as usize))
            .map(|sample| {
                (
                    sample.instruction(),
                    sample.messages().last().unwrap().content.clone(),
                )
            })
            .collect();
        let source = Source {
            examples: &examples,
            coverage_seed: seed,
            flaws: Flaws::default(),
            seed,
            request,
        };
        raw.extend(candidates(
            &contents(&source, 8),
            Some(TASK_INSTRUCTION),
            &[],
            &call,
        ));
    }
    let curated = curate(raw, &parts.train, &parts.test, &CurationConfig::default());
    (curated.kept, curated.counts)
}

#[test]
fn curation_catches_the_flaws_and_keeps_the_rest() {
    for seed in 0..5 {
        let (kept, counts) = synthesize_and_curate(seed, 32);
        let n_right = kept
            .iter()
            .filter(|sample| {
                let label = reference_label(&sample.instruction()).map(|label| label.to_json());
                label.as_ref() == sample.messages().last().map(|answer| &answer.content)
            })
            .count();
        println!("seed {seed}: {counts:?}, right among the kept {n_right}");
        assert!(counts.malformed > 0 && counts.contaminated > 0, "{counts:?}");
        assert!(
            counts.duplicates + counts.near_duplicates + counts.not_novel > 0,
            "{counts:?}"
        );
        assert!(
            counts.kept * 100 >= counts.raw * 65,
            "too little is kept: {counts:?}"
        );
        assert!(
            n_right * 100 >= kept.len() * 92,
            "too many wrong labels: {n_right} of {}",
            kept.len()
        );
    }
}
