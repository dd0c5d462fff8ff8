//! OpenAI's chat completions as far as the stand-in speaks them: what it reads and what it sends.
//!
//! Invariant: fields that it does not know are ignored, as the vendors' servers do; fields it cannot honour are refused.

use serde::Deserialize;
use serde_json::{Value, json};

/// Name of the only model.
pub const MODEL: &str = "stand-in-1";
/// Says in every reply that no vendor's model answered.
const FINGERPRINT: &str = "llamaduo-stand-in";
/// The time in every reply: a real one would make equal requests get unequal replies.
const CREATED_S: u64 = 1_735_689_600;
/// Bytes of a token, for the estimates of usage.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens around each message, for the estimates of usage.
const TOKENS_PER_MESSAGE: usize = 4;

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ChatRequest {
    model: String,
    pub(super) messages: Vec<ChatMessage>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    response_format: Option<ResponseFormat>,
}

/// One turn.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ChatMessage {
    pub(super) role: String,
    content: Content,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    text: String,
}

#[derive(Clone, Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

impl ChatMessage {
    pub(super) fn text(&self) -> String {
        match &self.content {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.iter().map(|part| part.text.as_str()).collect(),
        }
    }
}

/// An answer that is an error, in OpenAI's form.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl ApiError {
    /// An error of this type; `code` where OpenAI has one.
    pub(super) fn new(status: u16, kind: &str, code: Option<&str>, message: &str) -> Self {
        let message = format!("{message} (this is LlamaDuo's stand-in service)");
        let error = json!({"message": message, "type": kind, "param": null, "code": code});
        Self {
            status,
            body: json!({ "error": error }),
        }
    }

    fn bad_request(message: &str) -> Self {
        Self::new(400, "invalid_request_error", None, message)
    }
}

impl ChatRequest {
    /// Reads and checks a request's body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(&format!("the body is no chat request: {error}")))?;
        if request.model != MODEL {
            let message = format!("the model does not exist; the only one is `{MODEL}`");
            return Err(ApiError::new(
                404,
                "invalid_request_error",
                Some("model_not_found"),
                &message,
            ));
        }
        if request.messages.is_empty() {
            return Err(ApiError::bad_request("`messages` is empty"));
        }
        if request.stream == Some(true) {
            return Err(ApiError::bad_request("`stream` is not supported"));
        }
        if request.n.is_some_and(|n| n != 1) {
            return Err(ApiError::bad_request("`n` must be 1"));
        }
        if request.tokens_max() == Some(0) {
            return Err(ApiError::bad_request("`max_tokens` must be at least 1"));
        }
        let kinds = ["text", "json_object", "json_schema"];
        if request
            .response_format
            .as_ref()
            .is_some_and(|format| !kinds.contains(&format.kind.as_str()))
        {
            return Err(ApiError::bad_request(
                "`response_format.type` must be text, json_object or json_schema",
            ));
        }
        Ok(request)
    }

    /// Whether the reply has to be JSON.
    pub(super) fn wants_json(&self) -> bool {
        self.response_format
            .as_ref()
            .is_some_and(|format| format.kind != "text")
    }

    fn tokens_max(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    fn prompt_tokens(&self) -> usize {
        self.messages
            .iter()
            .map(|message| tokens(&message.text()) + TOKENS_PER_MESSAGE)
            .sum()
    }

    /// The reply that says `content`, cut to the tokens asked for. `id` names the request.
    pub(super) fn completion(&self, content: &str, id: &str) -> Value {
        let bytes_max = self
            .tokens_max()
            .and_then(|tokens| usize::try_from(tokens).ok())
            .unwrap_or(usize::MAX);
        let kept = cut(content, bytes_max.saturating_mul(BYTES_PER_TOKEN));
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens(), tokens(kept));
        json!({
            "id": format!("chatcmpl-{id}"),
            "object": "chat.completion",
            "created": CREATED_S,
            "model": MODEL,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": kept, "refusal": null},
                "logprobs": null,
                "finish_reason": if kept.len() < content.len() { "length" } else { "stop" },
            }],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
            "system_fingerprint": FINGERPRINT,
        })
    }
}

/// The answer to `GET /v1/models`.
pub(super) fn models() -> Value {
    json!({
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": CREATED_S, "owned_by": FINGERPRINT}],
    })
}

fn tokens(text: &str) -> usize {
    text.len().div_ceil(BYTES_PER_TOKEN)
}

/// The longest beginning of `text` of at most `bytes_max` bytes that ends between characters.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
