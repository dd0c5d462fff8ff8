//! OpenAI's chat completions, and every server that speaks them.
//!
//! Invariant: one request is sent once, to the configured address only; what a server adds to its answers is passed
//! over, and what it leaves out is absent, never zero.

mod answer;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llamaduo_proto::run::ServiceLlmSpec;
use reqwest::{Response, Url};
use serde_json::{Value, json};

use super::failure::{CallFailure, FailureClass};
use super::{ChatReply, ChatRequest, ServiceLlm, key};
use crate::http::{self, Redirects};
use crate::numbers::shortest;
use crate::secret::Secret;

/// Where OpenAI itself is.
const BASE_URL: &str = "https://api.openai.com/v1";

/// Longest reply: far beyond the longest answer in tokens, yet small beside a worker's memory.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// Largest seed sent: some servers hold it in a signed 32-bit number.
const SEED_MAX: u64 = i32::MAX as u64;

/// A client of one server and model.
#[derive(Clone, Debug)]
pub struct OpenAi {
    spec: ServiceLlmSpec,
    url: Url,
    http: reqwest::Client,
    /// OpenAI calls the bound `max_completion_tokens`, most compatible servers know only `max_tokens`. Begins with
    /// what the host suggests and follows the server when it names the other.
    says_completion_tokens: Arc<AtomicBool>,
}

impl OpenAi {
    /// A client for `spec`; nothing is sent yet.
    pub fn new(spec: &ServiceLlmSpec) -> Result<Self, CallFailure> {
        let refused = |message: String| CallFailure::unbilled(FailureClass::Refused, message);
        let url = url(spec)?;
        let http = http::client(&url, Redirects::Refused)
            .map_err(|error| refused(format!("{error} ({})", crate::error::chain(&error.0))))?;
        let official = url
            .host_str()
            .is_some_and(|host| host.ends_with(".openai.com") || host.ends_with(".azure.com"));
        Ok(Self {
            spec: spec.clone(),
            url,
            http,
            says_completion_tokens: Arc::new(AtomicBool::new(official)),
        })
    }

    /// The request, with the bound under its newer name or its older one.
    fn body(&self, request: &ChatRequest, says_completion_tokens: bool) -> Value {
        let spec = &self.spec;
        let mut body = json!({
            "model": spec.model,
            "messages": request.messages,
            "seed": request.repeat & SEED_MAX,
        });
        body[bound_name(says_completion_tokens)] = json!(spec.tokens_max);
        if let Some(temperature) = spec.temperature {
            body["temperature"] = json!(shortest(temperature));
        }
        if let Some(schema) = request.schema.as_ref().filter(|_| spec.json_schema) {
            body["response_format"] = json!({
                "type": "json_schema",
                "json_schema": {"name": schema.name, "strict": true, "schema": schema.schema},
            });
        }
        body
    }

    /// Who is spoken of in messages: never the whole address, which may hold a password.
    fn name(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("service llm {} at {host}:{port}", self.spec.model),
            None => format!("service llm {} at {host}", self.spec.model),
        }
    }

    async fn post(&self, request: &ChatRequest, key: Option<&Secret>) -> Result<Vec<u8>, CallFailure> {
        let says_completion_tokens = self.says_completion_tokens.load(Ordering::Relaxed);
        let mut builder = self
            .http
            .post(self.url.clone())
            .timeout(Duration::from_millis(u64::from(self.spec.timeout_ms)))
            .json(&self.body(request, says_completion_tokens));
        if let Some(key) = key {
            let header = key
                .bearer()
                .ok_or_else(|| CallFailure::unbilled(FailureClass::Refused, key::UNSENDABLE))?;
            builder = builder.header(reqwest::header::AUTHORIZATION, header);
        }
        let response = builder.send().await.map_err(|error| self.broken(error))?;
        let status = response.status();
        let hints = answer::Hints::read(response.headers(), jiff::Timestamp::now());
        let body = self.read_bounded(response).await?;
        if !status.is_success() {
            return Err(self.refusal(status.as_u16(), hints, &body, says_completion_tokens));
        }
        match wire::read_reply(&body) {
            Ok(_) => Ok(body),
            Err(problem) => match wire::ErrorBody::in_reply(&body) {
                Some(error) => Err(answer::failure(
                    &self.name(),
                    error.status().unwrap_or(500),
                    hints,
                    &error,
                )),
                None => Err(CallFailure::doubtful(format!(
                    "{} sent a reply that cannot be read: {problem}",
                    self.name()
                ))),
            },
        }
    }

    /// What a status other than success means; also learns the name of the token bound from it. `said` is the name
    /// that was sent: other requests may have learned the other one meanwhile.
    fn refusal(&self, status: u16, hints: answer::Hints, body: &[u8], said: bool) -> CallFailure {
        let error = wire::ErrorBody::read(body);
        let failure = answer::failure(&self.name(), status, hints, &error);
        if matches!(status, 400 | 422) && error.does_not_know(bound_name(said)) {
            self.says_completion_tokens.store(!said, Ordering::Relaxed);
            return CallFailure {
                class: FailureClass::Transient,
                ..failure
            };
        }
        failure
    }

    async fn read_bounded(&self, mut response: Response) -> Result<Vec<u8>, CallFailure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(error))? {
            if body.len() + chunk.len() > REPLY_BYTES_MAX {
                let message = format!(
                    "{} sent more than {REPLY_BYTES_MAX} bytes; lower its tokens_max",
                    self.name()
                );
                return Err(CallFailure::doubtful(message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// A failure below HTTP. A connection that never stood cost nothing; after that nobody knows.
    fn broken(&self, error: reqwest::Error) -> CallFailure {
        let (connecting, timed_out) = (error.is_connect(), error.is_timeout());
        let why = crate::error::chain(&error.without_url());
        let name = self.name();
        if connecting {
            let message =
                format!("cannot connect to {name} ({why}); check base_url and that the service runs");
            return CallFailure::unbilled(FailureClass::Transient, message);
        }
        if timed_out {
            let message = format!(
                "{name} did not answer within {} ms; raise its timeout_ms",
                self.spec.timeout_ms
            );
            return CallFailure::doubtful(message);
        }
        CallFailure::doubtful(format!("the connection to {name} broke ({why})"))
    }
}

/// Where `spec` is reached.
pub(super) fn url(spec: &ServiceLlmSpec) -> Result<Url, CallFailure> {
    let base = spec.base_url.as_deref().unwrap_or(BASE_URL).trim_end_matches('/');
    http::parse_url(&format!("{base}/chat/completions")).map_err(|error| {
        let message = format!("base_url of service llm {}: {error}", spec.model);
        CallFailure::unbilled(FailureClass::Refused, message)
    })
}

/// What the bound on tokens is called.
fn bound_name(says_completion_tokens: bool) -> &'static str {
    if says_completion_tokens {
        "max_completion_tokens"
    } else {
        "max_tokens"
    }
}

impl ServiceLlm for OpenAi {
    async fn send(&self, request: &ChatRequest) -> Result<Vec<u8>, CallFailure> {
        let key = key::read(&self.spec.api_key).map_err(|error| error.of_call())?;
        self.post(request, key.as_ref())
            .await
            .map_err(|failure| match &key {
                Some(key) => CallFailure {
                    message: key.redact(&failure.message),
                    ..failure
                },
                None => failure,
            })
    }

    fn read(&self, body: &[u8]) -> Result<ChatReply, String> {
        wire::read_reply(body)
    }
}
