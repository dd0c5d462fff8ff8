//! A response to a test prompt, and one grading of it.
//!
//! Invariant: a judge's reply either gives two scores of 1 to 100 with reasons, or is [`Outcome::Unparsed`] with
//! its words kept. It is never a score of 0.

use serde::{Deserialize, Serialize};

use crate::sample::{SampleId, ServiceCall};
use crate::text::json_objects;

/// One answer to one test prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Which prompt: its position in the test split, from 0.
    pub prompt_index: u32,
    /// Which sample stands at that position: whoever judges can see that it is of another split. Absent in rows that
    /// nobody but a person has written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleId>,
    /// Which of the K answers to it, from 0.
    pub k: u32,
    /// The answer.
    pub text: String,
    /// Tokens generated.
    pub tokens: u64,
    /// Whether it ended by itself; false when the token bound cut it.
    pub complete: bool,
    /// The natural logarithm of each of those tokens' probability, by the bare model; where a local model was asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// The call that made it, for the service LLM's own answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<ServiceCall>,
}

/// One grading of one response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The response's prompt.
    pub prompt_index: u32,
    /// Which of the K answers.
    pub k: u32,
    /// Which of the M gradings of it, from 0.
    pub m: u32,
    /// What the judge said.
    pub outcome: Outcome,
    /// The call that asked it.
    pub call: ServiceCall,
}

/// What came of asking the judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// Both scores were given.
    Graded(Judgement),
    /// The reply holds no judgement.
    Unparsed {
        /// The reply, cut at [`RAW_BYTES_MAX`].
        raw: String,
        /// Why it could not be read.
        why: String,
    },
}

/// Both assessments of one grading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// How alike the response and the reference are.
    pub similarity: Assessment,
    /// How right the response is.
    pub precision: Assessment,
}

/// A score and the judge's reason for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assessment {
    /// 1 to 100.
    pub score: Score,
    /// In the judge's words.
    pub reason: String,
}

/// A whole number from 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "u8")]
pub struct Score(u8);

impl Score {
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<f64> for Score {
    type Error = Unparsable;

    /// Rounds to the nearest whole number; what lies outside 1 to 100 before rounding is refused.
    fn try_from(value: f64) -> Result<Self, Unparsable> {
        if (1.0..=100.0).contains(&value) {
            // In 1..=100 after rounding, so the cast keeps the value.
            Ok(Self(value.round() as u8))
        } else {
            Err(Unparsable::Range { value })
        }
    }
}

impl From<Score> for u8 {
    fn from(score: Score) -> Self {
        score.0
    }
}

/// Why a reply is no judgement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unparsable {
    /// No JSON object in it.
    #[error("the reply holds no complete JSON object")]
    NoObject,
    /// Objects, but none of the asked form.
    #[error("the reply's JSON is not a judgement: {problem}")]
    Form {
        /// What is missing or of the wrong type.
        problem: String,
    },
    /// A score outside 1 to 100.
    #[error("score {value} is outside 1 to 100")]
    Range {
        /// The number given.
        value: f64,
    },
    /// Two judgements that differ: nobody can tell which one was meant.
    #[error("the reply holds more than one judgement")]
    Ambiguous,
}

/// Bytes of an unreadable reply that are kept: enough to see what the judge did, bounded because a verdict file
/// holds thousands.
pub const RAW_BYTES_MAX: usize = 4096;

#[derive(Deserialize)]
struct WireJudgement {
    similarity_assessment: Assessment,
    precision_assessment: Assessment,
}

/// Reads a judge's reply. Prose and code fences around the JSON are passed over; its content must be
/// `{"similarity_assessment": {"score", "reason"}, "precision_assessment": {"score", "reason"}}`.
pub fn parse_judgement(reply: &str) -> Result<Judgement, Unparsable> {
    let mut found: Option<Judgement> = None;
    let mut failure = Unparsable::NoObject;
    for object in json_objects(reply) {
        match serde_json::from_value::<WireJudgement>(object) {
            Ok(WireJudgement {
                similarity_assessment: similarity,
                precision_assessment: precision,
            }) => {
                let judgement = Judgement {
                    similarity,
                    precision,
                };
                match &found {
                    Some(first) if *first != judgement => return Err(Unparsable::Ambiguous),
                    _ => found = Some(judgement),
                }
            }
            Err(problem) if failure == Unparsable::NoObject => {
                failure = Unparsable::Form {
                    problem: problem.to_string(),
                };
            }
            Err(_) => {}
        }
    }
    found.ok_or(failure)
}

impl Outcome {
    /// What a judge's reply comes to.
    pub fn from_reply(reply: &str) -> Self {
        match parse_judgement(reply) {
            Ok(judgement) => Self::Graded(judgement),
            Err(why) => Self::Unparsed {
                raw: crate::text::cut(reply, RAW_BYTES_MAX).to_owned(),
                why: why.to_string(),
            },
        }
    }

    /// The judgement, if there is one.
    pub fn judgement(&self) -> Option<&Judgement> {
        match self {
            Self::Graded(judgement) => Some(judgement),
            Self::Unparsed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
