//! The label follows from the words, nothing depends on order, and the variety is what the demo needs.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;

#[test]
fn the_teacher_reads_what_the_generator_meant() {
    for seed in 0..4 {
        for (index, ticket) in generate(seed, 10_000).into_iter().enumerate() {
            assert_eq!(
                reference_label(&ticket.message).as_ref(),
                Some(&ticket.label),
                "{index}: {}",
                ticket.message
            );
        }
    }
}

#[test]
fn the_teacher_reads_no_label_into_other_texts() {
    for text in [
        "",
        "What is the capital of France?",
        "{\"a\": 1}",
        "ééé — 漢字",
        "K1234",
    ] {
        assert_eq!(reference_label(text), None, "{text}");
    }
}

#[test]
fn a_ticket_depends_on_seed_and_index_alone() {
    let (few, many) = (generate(7, 10), generate(7, 100));
    assert_eq!(few[..], many[..10]);
    assert_ne!(generate(8, 10), few);
    assert_ne!(ticket(7, Stream::Synthesis, 3), ticket(7, Stream::Coverage, 3));
}

#[test]
fn a_label_is_one_line_of_json_with_fixed_keys() {
    let label = Label {
        category: Category::Defect,
        team: Team::Repair,
        priority: Priority::High,
        language: Language::German,
        wish: Wish::None,
        order: Some("K0042".to_owned()),
    };
    let json = "{\"category\":\"defect\",\"team\":\"repair\",\"priority\":\"high\",\"language\":\"de\",\"wish\":\"none\",\
        \"order\":\"K0042\"}";
    assert_eq!(label.to_json(), json);
    assert_eq!(serde_json::from_str::<Label>(json).unwrap(), label);
}

#[test]
fn the_coverage_dataset_is_rows_of_three_messages() {
    let rows = coverage_dataset(3);
    let imported = llamaduo_data::import::import("coverage.jsonl", rows.as_bytes()).unwrap();
    assert_eq!(imported.samples.len(), COVERAGE_PAIRS);
    assert!(
        imported
            .samples
            .iter()
            .all(|sample| sample.system() == Some(TASK_INSTRUCTION))
    );
}

fn entropy_bits(values: impl Iterator<Item = String>) -> f64 {
    let mut counts = BTreeMap::<String, f64>::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1.0);
    let total: f64 = counts.values().sum();
    -counts
        .values()
        .map(|count| count / total * (count / total).log2())
        .sum::<f64>()
}

/// A model that memorizes 60 train pairs must not get far on the other 90.
#[test]
fn the_task_cannot_be_passed_by_memory() {
    for seed in 0..5 {
        let tickets = generate(seed, COVERAGE_PAIRS);
        let messages: HashSet<&str> = tickets.iter().map(|ticket| ticket.message.as_str()).collect();
        assert_eq!(messages.len(), tickets.len(), "messages repeat");

        let (train, test) = tickets.split_at(60);
        let known: HashSet<String> = train.iter().map(|ticket| ticket.label.to_json()).collect();
        let n_known = test
            .iter()
            .filter(|ticket| known.contains(&ticket.label.to_json()))
            .count();
        let distinct: BTreeSet<String> = tickets.iter().map(|ticket| ticket.label.to_json()).collect();
        let label =
            |read: fn(&Label) -> String| entropy_bits(tickets.iter().map(|ticket| read(&ticket.label)));
        let entropies = [
            ("category", label(|l| format!("{:?}", l.category))),
            ("team", label(|l| format!("{:?}", l.team))),
            ("priority", label(|l| format!("{:?}", l.priority))),
            ("language", label(|l| format!("{:?}", l.language))),
            ("wish", label(|l| format!("{:?}", l.wish))),
            ("order", label(|l| l.order.is_some().to_string())),
        ];
        println!(
            "seed {seed}: {} distinct labels of {COVERAGE_PAIRS}",
            distinct.len()
        );
        println!("  test labels that occur in train: {n_known} of {}", test.len());
        println!("  entropy, bits: {entropies:.2?}");
        assert!(distinct.len() > 100);
        assert!(n_known * 5 < test.len());
        assert!(entropies.iter().all(|(_, bits)| *bits > 0.7), "{entropies:?}");
    }
}

#[test]
fn another_product_stays_of_the_same_kind() {
    let mut draw = Draw::new(&[1]);
    let message = "The parcel with my Lumo Lamp is lost.";
    let changed: BTreeSet<String> = (0..100).map(|_| other_product(message, &mut draw)).collect();
    assert_eq!(changed.len(), DEVICES.len());
    assert!(
        changed
            .iter()
            .all(|message| reference_label(message).unwrap().category == Category::Delivery)
    );
    assert_eq!(other_product("nothing", &mut draw), "nothing");
}

#[test]
fn draws_of_nothing_are_nothing() {
    let mut draw = Draw::new(&[]);
    assert_eq!(
        (draw.below(0), draw.text(&[]), draw.pick::<u8>(&[])),
        (0, "", None)
    );
}
