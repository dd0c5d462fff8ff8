//! Messages to the text a model was tuned on, rendered as transformers renders it.
//!
//! Invariant: a template is untrusted: its steps, its depth and its output are bounded, and it sees nothing but the
//! conversation and the special tokens, so that a conversation has one text, on every day.

mod bounds;
mod environment;
mod json;
mod methods;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object};
use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::gguf::GgufFile;
use crate::guard::guarded;
use crate::tokenizer::Tokenizer;

/// Most bytes of a rendered conversation: far beyond any context, far below any memory.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Name under which the one template of an environment is kept.
const NAME: &str = "chat_template";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Who sets the task.
    System,
    /// Who asks.
    User,
    /// Who answers: the model.
    Assistant,
}

impl Role {
    /// As templates spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A compiled template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
    origin: String,
    /// `bos_token` and the like, with their texts.
    special: Vec<(&'static str, String)>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("origin", &self.origin)
            .finish()
    }
}

impl ChatTemplate {
    /// Compiles a template; `origin` names it in errors. Fails on a syntax error.
    pub fn compile(source: &str, origin: &str) -> Result<Self> {
        let environment =
            environment::with_template(NAME, source).map_err(|error| Error::TemplateSyntax {
                origin: origin.to_owned(),
                reason: environment::reason(&error),
            })?;
        Ok(Self {
            environment,
            source: source.into(),
            origin: origin.to_owned(),
            special: Vec::new(),
        })
    }

    /// Reads `chat_template.jinja` of `directory`, else the template in its `tokenizer_config.json`, which is a text or
    /// a list of named ones; `None` when there is neither.
    pub(crate) fn open(directory: &Path, legacy: Option<&serde_json::Value>) -> Result<Option<Self>> {
        let path = directory.join("chat_template.jinja");
        if path.is_file() {
            return Self::compile(&read_text(&path)?, &path.display().to_string()).map(Some);
        }
        let origin = directory.join("tokenizer_config.json");
        let source = match legacy {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::String(source)) => Some(source.as_str()),
            Some(serde_json::Value::Array(named)) => named
                .iter()
                .find(|entry| entry.get("name").and_then(serde_json::Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str()),
            Some(_) => None,
        };
        let source = source.ok_or_else(|| Error::Config {
            path: origin.clone(),
            field: "chat_template".to_owned(),
            expected: "a text, or a list with one named `default`".to_owned(),
            found: "something else".to_owned(),
        })?;
        Self::compile(source, &origin.display().to_string()).map(Some)
    }

    /// The template in a GGUF file's metadata; `None` when there is none.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let source = file.string("tokenizer.chat_template")?;
        source
            .map(|source| Self::compile(source, &format!("in {}", file.path().display())))
            .transpose()
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it came from.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Lets the template write the special tokens of `tokenizer`.
    pub fn with_special_tokens(self, tokenizer: &Tokenizer) -> Self {
        Self {
            special: tokenizer.special_texts(),
            ..self
        }
    }

    /// The conversation as text; `add_generation_prompt` opens the assistant's turn at the end. A template that asks
    /// for the date is told 26 July 2024.
    ///
    /// Fails when the template refuses the messages, fails itself, or goes beyond its bounds.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turns = messages.iter().map(|message| {
            Value::from_object(Turn {
                role: message.role,
                content: Value::from(message.content.as_str()),
            })
        });
        let mut context = BTreeMap::from([
            ("messages", Value::from(turns.collect::<Vec<_>>())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            // Known and none, as in transformers: templates ask in different ways whether there are any.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        context.extend(
            self.special
                .iter()
                .map(|(name, text)| (*name, Value::from(text.as_str()))),
        );
        let failed = |reason| Error::TemplateRender {
            origin: self.origin.clone(),
            reason,
        };

        let mut output = Bounded(Vec::new());
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failed(environment::reason(&error)))?;
        guarded(|| template.render_captured_to(context, &mut output).map(drop))
            .ok_or_else(|| failed("it makes the renderer panic".to_owned()))?
            .map_err(|error| failed(environment::reason(&error)))?;
        String::from_utf8(output.0).map_err(|_| failed("it wrote something that is not UTF-8".to_owned()))
    }
}

/// Tokens of a conversation: rendered, then encoded with nothing added, so that there is never a second BOS.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<Vec<u32>> {
    tokenizer.encode(&template.render(messages, add_generation_prompt)?)
}

/// A message as templates see it: a dictionary with its keys in the order that transformers' messages have.
#[derive(Debug)]
struct Turn {
    role: Role,
    content: Value,
}

impl Object for Turn {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(self.role.name())),
            "content" => Some(self.content.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// Output up to [`OUTPUT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "more than {OUTPUT_BYTES_MAX} bytes of output"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
