use super::*;
use crate::sample::{Message, Provenance, Role};

fn sample(instruction: &str, response: &str) -> Sample {
    let turns = vec![
        Message::new(Role::User, instruction),
        Message::new(Role::Assistant, response),
    ];
    Sample::new(turns, Provenance::Coverage { line: 1 }).unwrap()
}

const TRAIN: &str = "My card was charged twice for the same order and support does not answer my calls";
const TEST: &str =
    "The delivery van left my parcel at the neighbour's door without telling me anything about it";
const FRESH: &str = "Please add my colleague Dana as an administrator of our workspace by tomorrow";

/// The reason each candidate was dropped for, in order, or "kept".
fn endings(candidates: Vec<Candidate>, config: &CurationConfig) -> (Vec<String>, CurationCounts) {
    let curated = curate(
        candidates.clone(),
        &[sample(TRAIN, "{}")],
        &[sample(TEST, "{}")],
        config,
    );
    let mut dropped = curated.dropped.iter();
    let mut kept = curated.kept.iter().peekable();
    let endings = candidates
        .into_iter()
        .map(|candidate| match (candidate, kept.peek()) {
            (Candidate::Sample(sample), Some(first)) if sample == **first => {
                kept.next();
                "kept".to_owned()
            }
            _ => {
                let reason = serde_json::to_value(&dropped.next().unwrap().reason).unwrap();
                reason["kind"].as_str().unwrap().to_owned()
            }
        })
        .collect();
    (endings, curated.counts)
}

#[test]
fn every_candidate_meets_the_end_it_deserves() {
    let malformed = Malformed {
        text: "{".to_owned(),
        why: "no pair".to_owned(),
    };
    let candidates = vec![
        Candidate::Malformed(malformed),
        Candidate::Sample(sample(TRAIN, "{}")),
        Candidate::Sample(sample(FRESH, "As an AI I cannot")),
        Candidate::Sample(sample(&TEST.replace("neighbour", "neighbor"), "{}")),
        Candidate::Sample(sample(&format!("{TRAIN} today"), "{\"a\":1}")),
        Candidate::Sample(sample(
            "My card got charged for the same order twice and support does not take my calls",
            "{}",
        )),
        Candidate::Sample(sample(FRESH, "{}")),
        Candidate::Sample(sample(FRESH, "{}")),
    ];
    let (endings, counts) = endings(candidates, &CurationConfig::default());
    let expected = [
        "malformed",
        "duplicate",
        "rule",
        "contaminated",
        "near_duplicate",
        "not_novel",
        "kept",
        "duplicate",
    ];
    assert_eq!(endings, expected);
    let expected = CurationCounts {
        raw: 8,
        malformed: 1,
        duplicates: 2,
        filtered: 1,
        contaminated: 1,
        near_duplicates: 1,
        not_novel: 1,
        kept: 1,
    };
    assert_eq!(counts, expected);
}

#[test]
fn a_dropped_sample_displaces_nothing() {
    // The first breaks a rule; the second says the same properly and must be kept.
    let candidates = vec![
        Candidate::Sample(sample(FRESH, "Sure:")),
        Candidate::Sample(sample(FRESH, "Dana is added.")),
    ];
    assert_eq!(
        endings(candidates, &CurationConfig::default()).0,
        ["rule", "kept"]
    );
}

/// Messages of one task that share their template and answer in one short JSON line.
fn templated(count: usize) -> Vec<Candidate> {
    let products = [
        "lamp", "phone", "kettle", "router", "camera", "printer", "tablet", "drone", "radio", "mixer",
    ];
    let troubles = [
        "arrived with a cracked case and I would like a replacement",
        "stopped charging after two days, what now",
        "was billed twice on my credit card",
        "never arrived although tracking says delivered",
        "makes a loud humming noise at night",
        "does not connect to the app any more since the update",
    ];
    (0..count)
        .map(|index| {
            let (product, trouble) = (products[index % 10], troubles[index / 10 % 6]);
            let instruction = format!("Ticket {index}: my {product} {trouble}.");
            Candidate::Sample(sample(
                &instruction,
                "{\"team\":\"support\",\"priority\":\"high\"}",
            ))
        })
        .collect()
}

#[test]
fn a_templated_task_survives_when_its_novelty_limit_is_raised() {
    let config = CurationConfig {
        novelty: NoveltyConfig { rouge_l_max: 0.95 },
        near_duplicates: NearDuplicateConfig {
            jaccard_min: 0.9,
            shingle_words: 3,
        },
        ..CurationConfig::default()
    };
    let (_, counts) = endings(templated(60), &config);
    assert_eq!(counts.kept, 60, "{counts:?}");
    let (_, strict) = endings(templated(60), &CurationConfig::default());
    assert!(
        strict.kept < 60 && strict.near_duplicates + strict.not_novel == 60 - strict.kept,
        "{strict:?}"
    );
}

#[test]
fn the_same_candidates_always_end_the_same() {
    let run = || {
        curate(
            templated(60),
            &[],
            &[sample(TEST, "{}")],
            &CurationConfig::default(),
        )
    };
    assert_eq!(run(), run());
}

#[test]
fn evidence_is_told_with_its_measure() {
    let candidates = vec![Candidate::Sample(sample(&TEST.to_lowercase(), "{\"x\":1}"))];
    let curated = curate(candidates, &[], &[sample(TEST, "{}")], &CurationConfig::default());
    let DropReason::Contaminated(evidence) = &curated.dropped[0].reason else {
        panic!("{curated:?}")
    };
    assert_eq!((evidence.test, evidence.value), (sample(TEST, "{}").id(), 1.0));
    let row = crate::jsonl::write(&curated.dropped).unwrap();
    assert_eq!(
        crate::jsonl::read::<Dropped>("dropped.jsonl", &row).unwrap(),
        curated.dropped
    );
}
