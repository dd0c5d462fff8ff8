//! How likely the model held the tokens of a response.
//!
//! Invariant: of the logits as the model makes them, over the whole vocabulary: neither temperature nor penalty nor
//! cut-offs change them, so that responses made with different settings can be compared.

use serde::{Deserialize, Serialize};

/// Most alternatives to a token: more of them say nothing and would fill the memory of a large batch.
pub const LOGPROBS_MAX: usize = 20;

/// A token with the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// The token.
    pub id: u32,
    /// At most 0.
    pub logprob: f32,
}

/// A chosen token's likelihood, and which tokens were the likeliest in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// What was chosen.
    pub chosen: Likelihood,
    /// As many as were asked for, likeliest first, the chosen one among them where it belongs there.
    pub top: Vec<Likelihood>,
}

impl TokenLogprob {
    /// Of token `id` and the `n_top` likeliest, by `logits [V]`; equal ones rank by the lower id.
    pub(crate) fn of(logits: &[f32], id: u32, n_top: usize) -> Self {
        let numbers = || logits.iter().filter(|logit| !logit.is_nan());
        let max = numbers().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
        let sum: f64 = numbers()
            .map(|&logit| (f64::from(logit) - f64::from(max)).exp())
            .sum();
        let log_total = f64::from(max) + sum.ln();
        let likelihood = |id: u32| {
            let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            // Rounding may leave a certain token just above 0.
            let logprob = (f64::from(logit) - log_total).min(0.0) as f32;
            Likelihood { id, logprob }
        };
        Self {
            chosen: likelihood(id),
            top: likeliest(logits, n_top).into_iter().map(likelihood).collect(),
        }
    }
}

/// The `n` ids with the largest logits, largest first.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let larger = |a: &u32, b: &u32| {
        let (logit_a, logit_b) = (logits[*a as usize], logits[*b as usize]);
        logit_b.total_cmp(&logit_a).then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..)
        .zip(logits)
        .filter(|(_, logit)| !logit.is_nan())
        .map(|(id, _)| id)
        .collect();
    if n < ids.len() {
        if n > 0 {
            ids.select_nth_unstable_by(n - 1, larger);
        }
        ids.truncate(n);
    }
    ids.sort_unstable_by(larger);
    ids
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, f32::NEG_INFINITY, 2.0, 3.0];
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let found = TokenLogprob::of(&logits, 3, 3);
        assert!((f64::from(found.chosen.logprob) - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|top| top.id).collect::<Vec<_>>(), [1, 4, 3]);
        assert_eq!(found.top[2], found.chosen);
        assert_eq!(TokenLogprob::of(&logits, 2, 0).chosen.logprob, f32::NEG_INFINITY);
        assert_eq!(TokenLogprob::of(&[1000.0], 0, 5).chosen.logprob, 0.0);
    }

    proptest! {
        #[test]
        fn all_together_are_certain(logits in prop::collection::vec(-30.0f32..30.0, 1..60), n in 0usize..70) {
            let found = TokenLogprob::of(&logits, 0, n);
            prop_assert_eq!(found.top.len(), n.min(logits.len()));
            prop_assert!(found.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
            let all = TokenLogprob::of(&logits, 0, logits.len()).top;
            let sum: f64 = all.iter().map(|token| f64::from(token.logprob).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
            prop_assert_eq!(&all[..found.top.len()], &found.top[..]);
        }
    }
}
