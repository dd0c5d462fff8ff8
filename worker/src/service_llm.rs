//! Service LLMs: one trait, one client for each vendor's wire, and the one place that limits and repeats calls.
//!
//! Invariant: a client sends one request and tells what became of it; whether it is sent again is the
//! [`limiter`]'s to say, and whether it may be sent at all is [`crate::calls`]' to ask.

pub mod check;
mod failure;
mod key;
pub mod limiter;
mod openai;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use llamaduo_data::Message;
use llamaduo_proto::run::{ServiceLlmSpec, Vendor};
use serde::Serialize;

pub use failure::{Billing, CallFailure, FailureClass};
pub use limiter::Limiter;
pub use openai::OpenAi;

/// A service LLM that answers chats.
pub trait ServiceLlm {
    /// Sends one request, once. Gives the body as it came, which [`Self::read`] can read.
    fn send(&self, request: &ChatRequest) -> impl Future<Output = Result<Vec<u8>, CallFailure>> + Send;

    /// Reads a stored body again. `Err` says what is wrong with it.
    fn read(&self, body: &[u8]) -> Result<ChatReply, String>;
}

/// What is asked. Together with vendor, model and parameters it is what a call is known by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The conversation, the last turn the user's.
    pub messages: Vec<Message>,
    /// The form the answer must have, where the service takes one.
    pub schema: Option<AnswerSchema>,
    /// Number of this repeat of the same question, from 0; sent as the seed where the vendor has one.
    pub repeat: u64,
}

/// A JSON schema with the name it is sent under.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerSchema {
    /// At most 64 of [a-zA-Z0-9_-].
    pub name: String,
    /// Every object closed and every property required, as OpenAI's strict mode demands.
    pub schema: serde_json::Value,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatReply {
    /// The words; the refusal's words when the model refused.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens as the vendor counted them; compatible servers may leave them out.
    pub usage: Option<Usage>,
}

/// Tokens of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Sent.
    pub input_tokens: u64,
    /// Received.
    pub output_tokens: u64,
}

/// Why an answer ended. Vendors add reasons, so the list is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// By itself.
    Stop,
    /// At the token bound.
    Length,
    /// Refused, or filtered by the service.
    Refused,
    /// Something else, in the vendor's word.
    Other(String),
}

/// A client of whichever vendor a run names.
#[derive(Clone, Debug)]
pub enum Client {
    /// OpenAI chat completions and what is compatible with it.
    OpenAi(OpenAi),
}

impl Client {
    /// The client that `spec` asks for.
    pub fn new(spec: &ServiceLlmSpec) -> Result<Self, CallFailure> {
        match spec.vendor {
            Vendor::Openai => OpenAi::new(spec).map(Self::OpenAi),
        }
    }
}

impl ServiceLlm for Client {
    async fn send(&self, request: &ChatRequest) -> Result<Vec<u8>, CallFailure> {
        match self {
            Self::OpenAi(client) => client.send(request).await,
        }
    }

    fn read(&self, body: &[u8]) -> Result<ChatReply, String> {
        match self {
            Self::OpenAi(client) => client.read(body),
        }
    }
}

/// A client with the limits that all tasks of this worker share for it.
#[derive(Clone, Debug)]
pub struct LimitedClient {
    /// Sends.
    pub client: Client,
    /// Decides when, and how often.
    pub limiter: Arc<Limiter>,
}

/// Services kept: a worker serves a few runs at a time, each with a teacher and a judge.
const SERVICES_MAX: usize = 64;

/// The clients in use: tasks that name the same service share its limits.
#[derive(Debug, Default)]
pub struct Services {
    known: Mutex<HashMap<String, LimitedClient>>,
}

impl Services {
    /// The client for `spec`.
    pub fn get(&self, spec: &ServiceLlmSpec) -> Result<LimitedClient, CallFailure> {
        let name = format!("{spec:?}");
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&name) {
            return Ok(client.clone());
        }
        if known.len() >= SERVICES_MAX {
            known.clear();
        }
        let limiter = Arc::new(Limiter::new(spec.concurrency_max, spec.requests_per_minute_max));
        let client = LimitedClient {
            client: Client::new(spec)?,
            limiter,
        };
        known.insert(name, client.clone());
        Ok(client)
    }
}

#[cfg(test)]
mod tests;
