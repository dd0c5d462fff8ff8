//! What a pair must be on its own to be worth training on.
//!
//! Invariant: the first rule broken is the one reported, in the order of [`Rule`].
//!
//! The rules are those of self-instruct and Alpaca that hold for any task. Their lists of banned words are left
//! out: "file", "map" or "Write a program" are what some tasks are about.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sample::{Role, Sample};
use crate::text::cut;

/// Bounds and requirements, per task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Fewest words of an instruction.
    pub instruction_words_min: usize,
    /// Most words of an instruction.
    pub instruction_words_max: usize,
    /// Fewest words of a response.
    pub response_words_min: usize,
    /// Most words of a response.
    pub response_words_max: usize,
    /// A response that begins with one of these, whatever the case, is a refusal or talk about itself.
    pub banned_response_prefixes: Vec<String>,
    /// The form that a response must have.
    pub response_form: ResponseForm,
}

impl Default for Rules {
    fn default() -> Self {
        let prefixes = [
            "as an ai",
            "i'm sorry, but",
            "i am sorry, but",
            "i cannot ",
            "i can't ",
        ];
        Self {
            // Fewer words say nothing to learn from; more exceed what a small model is trained on in one row.
            instruction_words_min: 3,
            instruction_words_max: 1_000,
            response_words_min: 1,
            response_words_max: 1_000,
            banned_response_prefixes: prefixes.map(str::to_owned).to_vec(),
            response_form: ResponseForm::Any,
        }
    }
}

/// The form that a response must have.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseForm {
    /// Any text.
    #[default]
    Any,
    /// One JSON object and nothing around it.
    JsonObject {
        /// Keys that it must have.
        #[serde(default)]
        required_keys: Vec<String>,
        /// Allowed values by key; a key not named here may hold anything.
        #[serde(default)]
        allowed_values: std::collections::BTreeMap<String, Vec<Value>>,
    },
}

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The instruction's length is out of bounds.
    InstructionLength,
    /// The response's length is out of bounds.
    ResponseLength,
    /// The response repeats the instruction.
    ResponseRepeatsInstruction,
    /// The response stops in the middle.
    ResponseTruncated,
    /// The response begins with a banned phrase.
    ResponseBannedPrefix,
    /// The response is not of the form asked for.
    ResponseForm,
}

/// A rule broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// How.
    pub detail: String,
}

impl Rules {
    /// The first rule that `sample` breaks.
    pub fn breach(&self, sample: &Sample) -> Option<Breach> {
        let response = sample.response().trim();
        let asked = sample.prompt().iter().rev().find(|turn| turn.role == Role::User);
        let instruction = asked.map_or("", |turn| turn.content.trim());
        let breach = |rule, detail| Some(Breach { rule, detail });
        let length = |text: &str, min, max| {
            let words = text.split_whitespace().count();
            (words < min || words > max).then(|| format!("{words} words, expected {min} to {max}"))
        };
        if let Some(detail) = length(
            instruction,
            self.instruction_words_min,
            self.instruction_words_max,
        ) {
            return breach(Rule::InstructionLength, detail);
        }
        if let Some(detail) = length(response, self.response_words_min, self.response_words_max) {
            return breach(Rule::ResponseLength, detail);
        }
        if instruction == response {
            return breach(
                Rule::ResponseRepeatsInstruction,
                "the response is the instruction".to_owned(),
            );
        }
        if let Some(detail) = truncated(response) {
            return breach(Rule::ResponseTruncated, detail.to_owned());
        }
        let start = response.to_lowercase();
        let banned = self
            .banned_response_prefixes
            .iter()
            .find(|prefix| start.starts_with(&prefix.to_lowercase()));
        if let Some(prefix) = banned {
            return breach(Rule::ResponseBannedPrefix, format!("begins with {prefix:?}"));
        }
        self.response_form
            .problem(response)
            .and_then(|detail| breach(Rule::ResponseForm, detail))
    }
}

fn truncated(response: &str) -> Option<&'static str> {
    if response.matches("```").count() % 2 == 1 {
        return Some("a code fence is opened and not closed");
    }
    response
        .ends_with(':')
        .then_some("it ends with a colon, before what it announces")
}

impl ResponseForm {
    /// Why `response` is not of this form.
    fn problem(&self, response: &str) -> Option<String> {
        let Self::JsonObject {
            required_keys,
            allowed_values,
        } = self
        else {
            return None;
        };
        let object = match serde_json::from_str::<Value>(response) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Some("JSON, but no object".to_owned()),
            Err(error) => return Some(format!("no JSON object: {error}")),
        };
        if let Some(key) = required_keys.iter().find(|key| !object.contains_key(*key)) {
            return Some(format!("the key {key:?} is missing"));
        }
        allowed_values.iter().find_map(|(key, allowed)| {
            let value = object.get(key)?;
            (!allowed.contains(value))
                .then(|| format!("{key:?} is {}, which is not allowed", cut(&value.to_string(), 80)))
        })
    }
}

#[cfg(test)]
mod tests;
