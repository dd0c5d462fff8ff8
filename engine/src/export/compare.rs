//! How far an exported model is from what was trained.
//!
//! Invariant: both sides are computed by the one engine on the same tokens, the exported side from the file as it lies on
//! the disk.

use serde::Serialize;

use crate::chat_template::{Message, Role, encode_chat};
use crate::error::Result;
use crate::eval::logits;
use crate::files::ModelFiles;
use crate::local_model::LocalModel;
use crate::lora::Adapter;
use crate::train::Conversation;

/// Conversations looked at.
const ROWS_MAX: usize = 8;
/// First tokens of a conversation that are looked at, and the last positions among them that are compared: a large
/// vocabulary's logits take a megabyte a position.
const ROW_TOKENS_MAX: usize = 512;
const POSITIONS_MAX: usize = 64;

/// What is asked where the user names nothing.
const PROMPTS: [&str; 4] = [
    "Name three colours.",
    "Explain in two sentences why the sky is blue.",
    "Label the mood of this message: I waited three hours and nobody came.",
    "Reply with one line of JSON that has the keys city and country, for the capital of Norway.",
];
/// Tokens of each row where there is no tokenizer.
const PLAIN_ROW: u32 = 32;

/// How two models differ, over the positions of some conversations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Positions compared.
    pub positions: usize,
    /// Largest difference of a logit.
    pub logits_max: f64,
    /// Mean over positions of the Kullback-Leibler divergence from the trained to the exported model, in nats.
    pub kl_mean: f64,
    /// Part of the positions where both have the same likeliest token.
    pub top1_agreement: f64,
}

/// Rows of tokens on which models are compared.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    rows: Vec<Vec<u32>>,
    /// The texts of the rows, where there is a tokenizer.
    texts: Vec<String>,
}

impl Probes {
    /// From the first of `conversations`, else from prompts of our own.
    pub(crate) fn new(files: &ModelFiles, conversations: &[Conversation]) -> Result<Self> {
        let own;
        let conversations = match conversations {
            [] => {
                own = PROMPTS.map(|prompt| Conversation {
                    messages: vec![Message {
                        role: Role::User,
                        content: prompt.to_owned(),
                    }],
                });
                &own[..]
            }
            given => given,
        };
        let (mut rows, mut texts) = (Vec::new(), Vec::new());
        for conversation in conversations.iter().take(ROWS_MAX) {
            let messages = &conversation.messages;
            match (&files.tokenizer, &files.chat_template) {
                (Some(tokenizer), Some(template)) => {
                    let is_asked = messages.last().is_none_or(|last| last.role != Role::Assistant);
                    texts.push(template.render(messages, is_asked)?);
                    rows.push(encode_chat(tokenizer, template, messages, is_asked)?);
                }
                (Some(tokenizer), None) => {
                    let text: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
                    texts.push(text.join("\n"));
                    rows.push(tokenizer.encode(&text.join("\n"))?);
                }
                (None, _) => {
                    let n_vocab = files.config.vocab_size as u32; // its bound is far below
                    let first = 7 * rows.len() as u32;
                    rows.push((0..PLAIN_ROW).map(|i| (first + 31 * i) % n_vocab).collect());
                }
            }
        }
        let len_max = ROW_TOKENS_MAX.min(files.config.context_len);
        rows.iter_mut().for_each(|row| row.truncate(len_max));
        rows.retain(|row| !row.is_empty());
        Ok(Self { rows, texts })
    }

    /// The texts, as the model sees them.
    pub(crate) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The logits at the positions that are compared.
    pub(crate) fn logits(&self, model: &LocalModel, adapter: Option<&Adapter>) -> Result<Logits> {
        let n_vocab = model.config().vocab_size;
        let mut values = Vec::new();
        for row in &self.rows {
            let all = logits(model, adapter, row)?;
            let first = row.len().saturating_sub(POSITIONS_MAX) * n_vocab;
            values.extend_from_slice(all.get(first..).unwrap_or_default());
        }
        Ok(Logits { values, n_vocab })
    }
}

/// Logits `[positions, V]`.
#[derive(Debug)]
pub(crate) struct Logits {
    values: Vec<f32>,
    n_vocab: usize,
}

impl Logits {
    /// How far `exported` is from this.
    pub(crate) fn difference(&self, exported: &Self) -> Difference {
        let n_vocab = self.n_vocab.max(1);
        let pairs = self.values.chunks(n_vocab).zip(exported.values.chunks(n_vocab));
        let (mut positions, mut same, mut kl, mut logits_max) = (0usize, 0usize, 0.0, 0.0f64);
        for (trained, exported) in pairs {
            positions += 1;
            same += usize::from(likeliest(trained) == likeliest(exported));
            kl += divergence(trained, exported);
            let differences = trained.iter().zip(exported);
            logits_max = differences
                .map(|(a, b)| f64::from((a - b).abs()))
                .fold(logits_max, larger);
        }
        let n = positions.max(1) as f64;
        Difference {
            positions,
            logits_max,
            kl_mean: kl / n,
            top1_agreement: same as f64 / n,
        }
    }
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// The larger of two; NaN where one of them is, which [`f64::max`] passes over.
fn larger(a: f64, b: f64) -> f64 {
    match a.is_nan() || a > b {
        true => a,
        false => b,
    }
}

/// `Σ p·(ln p - ln q)` of the two softmaxes; NaN where a logit is.
fn divergence(trained: &[f32], exported: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        max + logits
            .iter()
            .map(|&logit| (f64::from(logit) - max).exp())
            .sum::<f64>()
            .ln()
    };
    let (p_sum, q_sum) = (log_sum(trained), log_sum(exported));
    let terms = trained.iter().zip(exported).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        p.exp() * (p - q)
    });
    // Rounding may leave a sum that should be 0 a little below it.
    larger(terms.sum(), 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(trained: &[f32], exported: &[f32]) -> Difference {
        let logits = |values: &[f32]| Logits {
            values: values.to_vec(),
            n_vocab: 2,
        };
        logits(trained).difference(&logits(exported))
    }

    #[test]
    fn equal_logits_differ_by_nothing() {
        let same = difference(&[1.0, 2.0, -3.0, 0.5], &[1.0, 2.0, -3.0, 0.5]);
        let expected = Difference {
            positions: 2,
            logits_max: 0.0,
            kl_mean: 0.0,
            top1_agreement: 1.0,
        };
        assert_eq!(same, expected);
    }

    #[test]
    fn what_is_no_number_on_either_side_stays_none() {
        let good = [1.0, 2.0, 3.0, 4.0];
        for bad in [[f32::NAN, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, f32::NAN]] {
            for found in [difference(&good, &bad), difference(&bad, &good)] {
                assert!(found.kl_mean.is_nan() && found.logits_max.is_nan(), "{found:?}");
            }
        }
        let infinite = difference(&good, &[1.0, 2.0, f32::INFINITY, 4.0]);
        assert!(!infinite.kl_mean.is_finite(), "{infinite:?}");
    }
}
