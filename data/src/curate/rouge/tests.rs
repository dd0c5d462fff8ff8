use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// What Python says of two texts; see `tests/golden/curation`.
#[derive(Deserialize)]
pub(crate) struct GoldenPair {
    pub(crate) left: String,
    pub(crate) right: String,
    pub(crate) rouge_l: f64,
    pub(crate) jaccard: f64,
    pub(crate) datasketch: Option<f64>,
}

pub(crate) fn golden() -> Vec<GoldenPair> {
    serde_json::from_str(include_str!("../../../../tests/golden/curation/golden.json")).unwrap()
}

#[test]
fn rouge_l_is_pythons() {
    for pair in golden() {
        let ours = rouge_l(&pair.left, &pair.right);
        assert!(
            (ours - pair.rouge_l).abs() < 1e-12,
            "{ours} not {} for {:?}",
            pair.rouge_l,
            pair.left
        );
        assert_eq!(ours, rouge_l(&pair.right, &pair.left));
    }
}

/// The table of dynamic programming.
fn common_by_table(left: &[u32], right: &[u32]) -> usize {
    let mut row = vec![0; right.len() + 1];
    for a in left {
        let mut diagonal = 0;
        for (index, b) in right.iter().enumerate() {
            let above = row[index + 1];
            row[index + 1] = if a == b {
                diagonal + 1
            } else {
                above.max(row[index])
            };
            diagonal = above;
        }
    }
    row[right.len()]
}

proptest! {
    #[test]
    fn bits_and_table_agree(
        left in proptest::collection::vec(0u32..12, 0..200),
        right in proptest::collection::vec(0u32..12, 0..200),
    ) {
        prop_assert_eq!(Pattern::new(&left).common(&right), common_by_table(&left, &right));
    }
}
