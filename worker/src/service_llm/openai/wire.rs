//! The JSON of chat completions as servers really send it.
//!
//! Invariant: no field is demanded but one choice with a message; numbers, texts and lists are taken where another
//! server has another of them.

use serde_json::Value;

use crate::service_llm::{ChatReply, FinishReason, Usage};

/// What of a server's own words is kept in a message.
const WORDS_MAX: usize = 400;

/// Reads a reply's body. `Err` says what is wrong with it.
pub(super) fn read_reply(body: &[u8]) -> Result<ChatReply, String> {
    let reply: Value = serde_json::from_slice(body).map_err(|error| match is_page(body) {
        true => format!("it is {}; check base_url", in_words(body)),
        false => format!("it is not JSON ({error})"),
    })?;
    let choice = reply
        .get("choices")
        .and_then(|choices| choices.get(0))
        .ok_or("it holds no choice")?;
    let message = choice.get("message").ok_or("its choice holds no message")?;
    let refusal = message
        .get("refusal")
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty());
    let finish = match choice.get("finish_reason").and_then(Value::as_str) {
        _ if refusal.is_some() => FinishReason::Refused,
        None | Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some("content_filter") => FinishReason::Refused,
        Some(other) => FinishReason::Other(other.chars().take(WORDS_MAX).collect()),
    };
    let text = content(message.get("content")).unwrap_or_else(|| refusal.unwrap_or_default().to_owned());
    Ok(ChatReply {
        text,
        finish,
        usage: usage(&reply),
    })
}

/// A text, or a list of parts of which some are text.
fn content(content: Option<&Value>) -> Option<String> {
    match content? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part.get("text")?.as_str())
                .collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
        _ => None,
    }
}

fn usage(reply: &Value) -> Option<Usage> {
    let usage = reply.get("usage")?;
    let tokens = |name: &str| usage.get(name).and_then(Value::as_u64);
    Some(Usage {
        input_tokens: tokens("prompt_tokens")?,
        output_tokens: tokens("completion_tokens")?,
    })
}

/// What a server says about an error: OpenAI's object, a bare text, a list of either, or no JSON at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    pub(super) message: String,
    /// Type, code and status together: each vendor puts its word elsewhere.
    pub(super) codes: Vec<String>,
}

impl ErrorBody {
    pub(super) fn read(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::from_value(&value),
            Err(_) => Self {
                message: in_words(body),
                codes: Vec::new(),
            },
        }
    }

    /// The error inside a body that came with success, if it holds one.
    pub(super) fn in_reply(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        value.get("error").filter(|error| !error.is_null())?;
        Some(Self::from_value(&value))
    }

    fn from_value(value: &Value) -> Self {
        let value = value.get(0).unwrap_or(value);
        let error = value.get("error").unwrap_or(value);
        let error = error.get(0).unwrap_or(error);
        if let Some(message) = error.as_str() {
            return Self {
                message: cut(message),
                codes: Vec::new(),
            };
        }
        let word = |name: &str| match error.get(name)? {
            Value::String(text) => Some(cut(text)),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let message = word("message")
            .or_else(|| word("detail"))
            .unwrap_or_else(|| cut(&error.to_string()));
        Self {
            message,
            codes: ["type", "code", "status"].into_iter().filter_map(word).collect(),
        }
    }

    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.codes
            .iter()
            .any(|code| codes.contains(&code.to_ascii_lowercase().as_str()))
    }

    /// Whether the server says that a parameter is none of its own, and not only that its value is wrong.
    pub(super) fn does_not_know(&self, parameter: &str) -> bool {
        let words = self.message.to_ascii_lowercase();
        // A whole name: `max_tokens` is part of no other, but in words like "use X instead" the other one comes first.
        let unknown = [
            "unsupported",
            "not supported",
            "unrecognized",
            "unknown",
            "unexpected",
            "extra inputs",
            "not permitted",
            "no such",
        ];
        words.contains(parameter) && unknown.iter().any(|word| words.contains(word))
            || self.has_code(&["unsupported_parameter", "unknown_parameter"]) && words.contains(parameter)
    }

    /// An HTTP status among the codes.
    pub(super) fn status(&self) -> Option<u16> {
        self.codes
            .iter()
            .filter_map(|code| code.parse().ok())
            .find(|status| (400..600).contains(status))
    }
}

/// What of a page is kept in a message: its title says enough.
const PAGE_WORDS_MAX: usize = 120;

fn is_page(body: &[u8]) -> bool {
    let begin = String::from_utf8_lossy(&body[..body.len().min(WORDS_MAX)]).to_ascii_lowercase();
    begin.trim_start().starts_with('<') && (begin.contains("<html") || begin.contains("<!doctype"))
}

/// A body that is not JSON: its text, and of a page for browsers what one would read there.
fn in_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if !is_page(body) {
        return cut(&text);
    }
    let mut words = String::new();
    for part in text.split('<').skip(1) {
        let (tag, shown) = part.split_once('>').unwrap_or((part, ""));
        let tag = tag.to_ascii_lowercase();
        if !tag.starts_with("style") && !tag.starts_with("script") {
            words.push_str(shown);
            words.push(' ');
        }
        if PAGE_WORDS_MAX * 4 < words.len() {
            break;
        }
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: String = words.chars().take(PAGE_WORDS_MAX).collect();
    format!("a web page that says \"{}\"", cut(&words))
}

fn cut(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(WORDS_MAX)
        .collect();
    text.trim().to_owned()
}
