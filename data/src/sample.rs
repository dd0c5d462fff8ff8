//! One (prompt, response) pair with where it came from.
//!
//! Invariant: a [`Sample`] always ends in a non-empty assistant message after at least one user message, and its
//! id is the sha256 of its messages, so two samples with one id hold the same words.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::price::NanoUsd;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions, before everything else.
    System,
    /// The one who asks.
    User,
    /// The one who answers.
    Assistant,
}

impl Role {
    /// The word used on the wire and in chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role` saying `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
        }
    }
}

/// A sample's name: sha256 of its messages as compact JSON (`[{"role":"user","content":"…"},…]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SampleId([u8; 32]);

impl SampleId {
    fn of(messages: &[Message]) -> Self {
        Self(hash_messages(b"", messages))
    }
}

/// sha256 over `prefix` and the messages as compact JSON, written turn by turn.
pub(crate) fn hash_messages(prefix: &[u8], messages: &[Message]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(prefix);
    hash.update(b"[");
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            hash.update(b",");
        }
        hash.update(format!("{{\"role\":\"{}\",\"content\":", message.role.as_str()));
        hash.update(serde_json::Value::String(message.content.clone()).to_string());
        hash.update(b"}");
    }
    hash.update(b"]");
    hash.finalize().into()
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for SampleId {
    type Err = InvalidSample;

    fn from_str(text: &str) -> Result<Self, InvalidSample> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(InvalidSample::Id);
        }
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(bytes.chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| InvalidSample::Id)?;
            if digits.starts_with('+') {
                return Err(InvalidSample::Id);
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidSample::Id)?;
        }
        Ok(Self(id))
    }
}

impl TryFrom<String> for SampleId {
    type Error = InvalidSample;

    fn try_from(text: String) -> Result<Self, InvalidSample> {
        text.parse()
    }
}

impl From<SampleId> for String {
    fn from(id: SampleId) -> Self {
        id.to_string()
    }
}

/// The call to a service LLM that a sample, a verdict or a response came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCall {
    /// The key under which the call was paid for and stored.
    pub id: String,
    /// sha256 of the prompt template, hex.
    pub prompt_hash: String,
    /// The service LLM asked.
    pub model: String,
    /// Tokens sent, as the service billed them.
    pub input_tokens: u64,
    /// Tokens received, as the service billed them.
    pub output_tokens: u64,
    /// Cost of the whole call, absent when the price is unknown. Several samples of one call each carry it: sum
    /// over different `id`s, never over rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<NanoUsd>,
}

/// Where a sample came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Provenance {
    /// A row of the coverage dataset.
    Coverage {
        /// Its line in the imported file, from 1.
        line: u64,
    },
    /// Written by a service LLM.
    Synthetic {
        /// The train samples shown to it as examples.
        parents: Vec<SampleId>,
        /// The call that wrote it.
        call: ServiceCall,
    },
}

/// Why messages make no sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSample {
    /// Nothing at all.
    #[error("the list of messages is empty")]
    NoMessages,
    /// A turn without words.
    #[error("message {index} ({role}) has empty content")]
    EmptyContent {
        /// Which one, from 1.
        index: usize,
        /// Its role.
        role: &'static str,
    },
    /// The last turn is not the assistant's.
    #[error("the last message is from {role}, not from the assistant")]
    LastNotAssistant {
        /// Its role.
        role: &'static str,
    },
    /// A turn out of order.
    #[error("message {index} is from {role} where {expected} must speak")]
    Order {
        /// Which one, from 1.
        index: usize,
        /// Its role.
        role: &'static str,
        /// The role that chat templates need there.
        expected: &'static str,
    },
    /// An id that does not belong to the messages.
    #[error("the id is not the sha256 of the messages; the row was changed after it was written")]
    IdMismatch,
    /// An id that is no sha256.
    #[error("the id is not 64 hexadecimal digits")]
    Id,
}

/// One (prompt, response) pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Row")]
pub struct Sample {
    id: SampleId,
    messages: Vec<Message>,
    provenance: Provenance,
    /// Further fields of the row it came from (a category, a licence), carried along untouched.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    fields: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Row {
    id: SampleId,
    messages: Vec<Message>,
    provenance: Provenance,
    #[serde(default)]
    fields: serde_json::Map<String, serde_json::Value>,
}

impl TryFrom<Row> for Sample {
    type Error = InvalidSample;

    fn try_from(row: Row) -> Result<Self, InvalidSample> {
        let sample = Self::new(row.messages, row.provenance)?.with_fields(row.fields);
        if sample.id == row.id {
            Ok(sample)
        } else {
            Err(InvalidSample::IdMismatch)
        }
    }
}

impl Sample {
    /// A sample of `messages`: an optional system turn, then user and assistant in turn, the assistant last.
    pub fn new(messages: Vec<Message>, provenance: Provenance) -> Result<Self, InvalidSample> {
        check_turns(&messages)?;
        Ok(Self {
            id: SampleId::of(&messages),
            messages,
            provenance,
            fields: serde_json::Map::new(),
        })
    }

    /// The same sample carrying further fields of its row.
    pub fn with_fields(mut self, fields: serde_json::Map<String, serde_json::Value>) -> Self {
        self.fields = fields;
        self
    }

    /// Its name.
    pub fn id(&self) -> SampleId {
        self.id
    }

    /// All turns.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Where it came from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Further fields of its row.
    pub fn fields(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.fields
    }

    /// All turns but the last.
    pub fn prompt(&self) -> &[Message] {
        self.messages.split_last().map_or(&[], |(_, prompt)| prompt)
    }

    /// The standing instructions, if the sample has some.
    pub fn system(&self) -> Option<&str> {
        let first = self.messages.first()?;
        (first.role == Role::System).then_some(first.content.as_str())
    }

    /// The whole prompt as one text, its standing instructions first: what a judge is shown.
    pub fn prompt_text(&self) -> String {
        match self.system() {
            Some(system) => format!("{system}\n\n{}", self.instruction()),
            None => self.instruction(),
        }
    }

    /// What is asked, as one text: the prompt without its system turn, which rows of one task share and which
    /// would make all of them look alike. A single user turn stands as it is; more are labelled by role.
    pub fn instruction(&self) -> String {
        let turns: Vec<&Message> = self
            .prompt()
            .iter()
            .filter(|turn| turn.role != Role::System)
            .collect();
        match turns.as_slice() {
            [only] => only.content.clone(),
            turns => turns
                .iter()
                .map(|turn| format!("{}: {}", turn.role.as_str(), turn.content))
                .collect::<Vec<_>>()
                .join("\n\n"),
        }
    }

    /// The last turn's words.
    pub fn response(&self) -> &str {
        self.messages.last().map_or("", |last| &last.content)
    }
}

fn check_turns(messages: &[Message]) -> Result<(), InvalidSample> {
    let last = messages.last().ok_or(InvalidSample::NoMessages)?;
    let mut expected = Role::User;
    for (index, message) in messages.iter().enumerate() {
        let role = message.role.as_str();
        if message.content.trim().is_empty() {
            return Err(InvalidSample::EmptyContent {
                index: index + 1,
                role,
            });
        }
        if index == 0 && message.role == Role::System {
            continue;
        }
        if message.role != expected {
            let expected = expected.as_str();
            return Err(InvalidSample::Order {
                index: index + 1,
                role,
                expected,
            });
        }
        expected = if expected == Role::User {
            Role::Assistant
        } else {
            Role::User
        };
    }
    if last.role == Role::Assistant {
        Ok(())
    } else {
        Err(InvalidSample::LastNotAssistant {
            role: last.role.as_str(),
        })
    }
}

#[cfg(test)]
mod tests;
