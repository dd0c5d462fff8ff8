use proptest::prelude::*;

use super::*;
use crate::curate::rouge::tests::golden;

fn id(index: u64) -> SampleId {
    format!("{index:064x}").parse().unwrap()
}

fn insert(seen: &mut NearDuplicates, index: u64, text: &str) {
    let prepared = seen.prepare(text);
    seen.insert(id(index), prepared);
}

fn find(seen: &NearDuplicates, text: &str) -> Option<(SampleId, f64)> {
    seen.find(&seen.prepare(text))
}

fn estimate(left: &[u64], right: &[u64]) -> f64 {
    let (left, right) = (signature(left), signature(right));
    left.iter().zip(&right).filter(|(a, b)| a == b).count() as f64 / SIGNATURE_LEN as f64
}

#[test]
fn exact_similarity_is_pythons_and_the_estimate_as_close_as_datasketchs() {
    let (mut ours, mut theirs, mut pairs) = (0.0, 0.0, 0.0);
    for pair in golden() {
        let (left, right) = (shingles(&pair.left, 3), shingles(&pair.right, 3));
        assert!(
            (jaccard(&left, &right) - pair.jaccard).abs() < 1e-12,
            "{:?}",
            pair.left
        );
        let Some(datasketch) = pair.datasketch else {
            continue;
        };
        // Five standard errors of 128 draws.
        let slack = 5.0 * (0.25f64 / 128.0).sqrt();
        assert!(
            (estimate(&left, &right) - pair.jaccard).abs() < slack,
            "{:?}",
            pair.left
        );
        ours += (estimate(&left, &right) - pair.jaccard).powi(2);
        theirs += (datasketch - pair.jaccard).powi(2);
        pairs += 1.0;
    }
    // Root mean square errors; one-permutation hashing of short texts pays a little for its speed.
    let (ours, theirs) = ((ours / pairs).sqrt(), (theirs / pairs).sqrt());
    assert!(
        ours < 2.0 * theirs && ours < 0.06,
        "ours {ours}, datasketch {theirs}"
    );
}

#[test]
fn a_near_copy_is_found_and_its_likeness_told() {
    let mut seen = NearDuplicates::new(NearDuplicateConfig::default());
    let text =
        "My parcel with the blue lamp was due last Monday and the tracking page has not moved since then";
    insert(
        &mut seen,
        1,
        "The app closes itself whenever I open the invoice from March on my old phone",
    );
    insert(&mut seen, 2, text);
    let (of, jaccard) = find(&seen, &text.replace("then", "")).unwrap();
    assert_eq!(of, id(2));
    assert!(jaccard > 0.9 && jaccard < 1.0);
    assert_eq!(find(&seen, &text.to_uppercase()).unwrap(), (id(2), 1.0));
    assert_eq!(
        find(
            &seen,
            "I want to cancel my plan before it renews next week please"
        ),
        None
    );
}

#[test]
fn nothing_is_reported_below_the_threshold_or_when_off() {
    let text = "one two three four five six seven eight nine ten";
    let other =
        "one two three four five six seven eight nine TEN eleven twelve thirteen fourteen fifteen sixteen";
    let found = |jaccard_min| {
        let mut seen = NearDuplicates::new(NearDuplicateConfig {
            jaccard_min,
            shingle_words: 1,
        });
        insert(&mut seen, 1, text);
        find(&seen, other)
    };
    assert_eq!(found(0.63), None);
    assert_eq!(found(2.0), None);
    let mut off = NearDuplicates::new(NearDuplicateConfig {
        jaccard_min: 2.0,
        shingle_words: 3,
    });
    insert(&mut off, 1, text);
    assert_eq!(find(&off, text), None);
}

#[test]
fn texts_without_words_are_nobodys_duplicate() {
    let mut seen = NearDuplicates::new(NearDuplicateConfig::default());
    insert(&mut seen, 1, "🙂");
    assert_eq!(find(&seen, "!!!"), None);
}

#[test]
fn bands_propose_as_often_as_the_formula_says() {
    // 1000 pairs of sets with a similarity of 0.8: 160 shared of 200.
    let found = (0..1000u64)
        .filter(|round| {
            let element = |index: u64| mix(mix(round * 1000) ^ index);
            let mut left: Vec<u64> = (0..180).map(element).collect();
            let mut right: Vec<u64> = (20..200).map(element).collect();
            left.sort_unstable();
            right.sort_unstable();
            assert!((jaccard(&left, &right) - 0.8).abs() < 1e-12);
            let (left, right) = (signature(&left), signature(&right));
            bands(&left).zip(bands(&right)).any(|(a, b)| a == b)
        })
        .count();
    // 1 − (1 − 0.8⁸)¹⁶ = 0.947, give or take four standard errors.
    assert!((919..=975).contains(&found), "{found}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(left in any::<String>(), right in any::<String>(), shingle_words in 0usize..9) {
        let mut seen = NearDuplicates::new(NearDuplicateConfig { jaccard_min: 0.0, shingle_words });
        insert(&mut seen, 1, &left);
        find(&seen, &right);
    }
}
