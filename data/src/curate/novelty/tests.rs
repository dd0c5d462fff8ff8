use proptest::prelude::*;

use super::*;
use crate::curate::rouge::rouge_l;

fn id(index: usize) -> SampleId {
    format!("{index:064x}").parse().unwrap()
}

fn insert(novelty: &mut Novelty, index: usize, text: &str) {
    let prepared = novelty.prepare(text);
    novelty.insert(id(index), prepared);
}

fn find(novelty: &mut Novelty, text: &str) -> Option<(SampleId, f64)> {
    let prepared = novelty.prepare(text);
    novelty.find(&prepared)
}

fn pool(texts: &[String], rouge_l_max: f64) -> Novelty {
    let mut novelty = Novelty::new(NoveltyConfig { rouge_l_max }, texts.iter().cloned());
    texts
        .iter()
        .enumerate()
        .for_each(|(index, text)| insert(&mut novelty, index, text));
    novelty
}

#[test]
fn a_paraphrase_is_not_novel_and_the_closest_is_named() {
    let texts = [
        "write a poem about the sea",
        "explain how rain forms in the mountains",
        "write a poem about a tree",
    ];
    let mut novelty = pool(&texts.map(str::to_owned), 0.7);
    assert_eq!(
        find(&mut novelty, "Write a poem about a big tree"),
        Some((id(2), 12.0 / 13.0))
    );
    assert_eq!(find(&mut novelty, "translate this letter into French"), None);
}

#[test]
fn a_limit_of_one_switches_it_off() {
    let mut novelty = pool(&["same".to_owned()], 1.0);
    assert_eq!(find(&mut novelty, "same"), None);
}

#[test]
fn what_is_exactly_at_the_limit_is_novel() {
    // 7 of 10 words in order, twice 10 words: ROUGE-L is 0.7.
    let mut novelty = pool(&["a b c d e f g x y z".to_owned()], 0.7);
    assert_eq!(find(&mut novelty, "a b c d e f g p q r"), None);
    assert!(find(&mut novelty, "a b c d e f g x q r").is_some());
}

proptest! {
    #[test]
    fn the_index_misses_nothing(
        texts in proptest::collection::vec("[a-f]( [a-f]){0,11}", 1..30),
        query in "[a-f]( [a-f]){0,11}",
        limit in 0.0f64..1.0,
    ) {
        let mut novelty = Novelty::new(NoveltyConfig { rouge_l_max: limit }, texts.iter().cloned());
        texts.iter().enumerate().for_each(|(index, text)| insert(&mut novelty, index, text));
        let best = texts.iter().map(|text| rouge_l(&query, text)).fold(0.0, f64::max);
        let found = find(&mut novelty, &query).map(|(_, rouge_l)| rouge_l);
        prop_assert_eq!(found, (best > limit).then_some(best));
    }
}
