//! How tokens are chosen, as a request says it. The rule is the backend's, `llamaduo_kernels::sampling`.
//!
//! Invariant: what passes [`Sampling::validate`] has a meaning there.

use llamaduo_kernels::SampleSpec;

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

    /// The same for the backend, which holds the rule.
    pub(crate) fn spec(self) -> SampleSpec {
        SampleSpec {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
        }
    }
}

#[cfg(test)]
mod tests;
