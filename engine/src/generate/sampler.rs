//! One token from a row of logits.
//!
//! Invariant: a function of the logits, the settings and one random number; equal logits rank by the lower id.

use crate::error::{Error, Result};

/// How tokens are chosen: first the penalty, then the temperature, then the cut-offs in the order in which they stand
/// here, each as transformers defines it (`RepetitionPenaltyLogitsProcessor`, `TopKLogitsWarper` and so on). llama.cpp
/// cuts off before the temperature, and penalizes the last 64 tokens only unless it is told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the likeliest token (greedy).
    pub temperature: f32,
    /// Keeps the so many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together reach this probability, of those that are left; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this part of the likeliest one; 0 drops none.
    pub min_p: f32,
    /// Logits of tokens that were already said or asked are divided by it when positive, multiplied when negative;
    /// 1 leaves them.
    pub repetition_penalty: f32,
}

impl Default for Sampling {
    /// The paper's temperature, nothing cut off.
    fn default() -> Self {
        Self {
            temperature: 0.4,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
    };

    /// Checks ranges; the error names the field.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (
                "temperature",
                self.temperature.is_finite() && self.temperature >= 0.0,
                "0 or more",
                self.temperature,
            ),
            (
                "top_p",
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
                self.top_p,
            ),
            (
                "min_p",
                (0.0..1.0).contains(&self.min_p),
                "at least 0 and below 1",
                self.min_p,
            ),
            (
                "repetition_penalty",
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "a positive number",
                self.repetition_penalty,
            ),
        ];
        match checks.into_iter().find(|(_, holds, ..)| !holds) {
            Some((field, _, expected, found)) => Err(Error::GenerateOptions {
                field,
                expected,
                found: found.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// The next token. `seen` holds what was asked and said so far, `uniform` is in `[0, 1)`. Fails when the largest
    /// logit is not finite: a token would be made up, perhaps the one that ends a response.
    pub(crate) fn choose(
        &self,
        logits: &mut [f32],
        seen: impl Iterator<Item = u32>,
        uniform: f64,
    ) -> Result<u32> {
        if self.repetition_penalty != 1.0 {
            penalize(logits, seen, self.repetition_penalty);
        }
        let (best, max) = argmax(logits);
        if !max.is_finite() {
            return Err(Error::NotFinite {
                what: "the largest logit",
                value: max.into(),
            });
        }
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let mut candidates = self.candidates(logits, max);
        if self.top_k > 0 {
            candidates.truncate(self.top_k);
        }
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut kept = candidates.len();
        if self.top_p < 1.0 {
            let mut sum = 0.0;
            let reached = candidates.iter().position(|candidate| {
                sum += candidate.weight;
                sum >= f64::from(self.top_p) * total
            });
            kept = reached.map_or(kept, |last| last + 1);
        }
        let likely = candidates
            .iter()
            .take_while(|candidate| candidate.weight >= f64::from(self.min_p))
            .count();
        candidates.truncate(kept.min(likely).max(1));

        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut rest = uniform * total;
        for candidate in &candidates {
            rest -= candidate.weight;
            if rest < 0.0 {
                return Ok(candidate.id);
            }
        }
        Ok(candidates.last().map_or(best, |candidate| candidate.id))
    }

    /// Tokens that can be drawn at all, likeliest first; weights are relative to the likeliest one's.
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let floor = max - NEGLIGIBLE * self.temperature;
        let temperature = f64::from(self.temperature);
        let mut candidates: Vec<Candidate> = logits
            .iter()
            .zip(0..)
            .filter(|&(&logit, _)| logit >= floor)
            .map(|(&logit, id)| Candidate {
                id,
                weight: ((f64::from(logit) - f64::from(max)) / temperature).exp(),
            })
            .collect();
        candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
        candidates
    }
}

/// Tokens so many nats below the likeliest have a probability of at most e^-32, 1e-14, each.
const NEGLIGIBLE: f32 = 32.0;

struct Candidate {
    id: u32,
    weight: f64,
}

/// The first of the largest logits. What is no number is never the largest.
fn argmax(logits: &[f32]) -> (u32, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (&logit, id) in logits.iter().zip(0..) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best
}

fn penalize(logits: &mut [f32], seen: impl Iterator<Item = u32>, penalty: f32) {
    let ids: std::collections::BTreeSet<u32> = seen.collect();
    for id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }
}

#[cfg(test)]
mod tests;
