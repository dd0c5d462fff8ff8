//! The stand-in's HTTP side: counts how often a request was seen, and sends what the pure part answers.
//!
//! Invariant: everything that a client can make grow has a bound: bodies, requests under way, counters, waiting.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::chat::{self, ApiError, ChatRequest};
use super::faults::{Fault, FaultRates, fault};
use super::prompt::{Ask, recognize};
use super::synthesis::{Flaws, Source, contents};
use super::tickets::Draw;
use super::{answer, grade};

/// How the stand-in behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed of noise, faults and new pairs.
    pub seed: u64,
    /// Seed of the coverage dataset: near-copies of its pairs are among the new ones.
    pub coverage_seed: u64,
    /// What goes wrong now and then.
    pub faults: FaultRates,
    /// What is wrong with new pairs now and then.
    pub flaws: Flaws,
    /// The key that requests must carry; `None` asks for none.
    pub api_key: Option<String>,
    /// How long an answer takes.
    pub latency: Duration,
}

impl Options {
    /// The demo's behaviour: one seed for all, no key, no latency.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            coverage_seed: seed,
            faults: FaultRates::default(),
            flaws: Flaws::default(),
            api_key: None,
            latency: Duration::ZERO,
        }
    }
}

/// Why the stand-in does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked to listen where others can reach it.
    #[error("the stand-in service listens on loopback only, not on {address}; use 127.0.0.1")]
    NotLoopback {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The listener failed.
    #[error("the stand-in service cannot go on listening; start it again")]
    Listen(#[source] std::io::Error),
}

/// Longest body: a synthesis prompt with hundreds of examples.
const BODY_BYTES_MAX: usize = 4 << 20;
/// Longest wait for a body: loopback is fast, so only a stuck client takes longer.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// Requests under way; further ones wait. Far above any client's concurrency.
const REQUESTS_MAX: usize = 64;
/// Counted requests; beyond it counting starts over. 16 MiB of counters, a thousand times a demo's calls.
const COUNTERS_MAX: usize = 1 << 20;
/// How long requests under way may finish after the shutdown.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);
/// What a 429 asks clients to wait, milliseconds; `Retry-After` rounds it up to a second.
const RETRY_AFTER_MS: u32 = 200;
/// Keeps the choice of where a reply breaks off apart from all others.
const PURPOSE_CUT: u64 = 0xc077;

struct Server {
    options: Options,
    permits: Semaphore,
    /// How often each request was seen, by the first 8 bytes of its body's sha256.
    seen: Mutex<HashMap<u64, u32>>,
}

/// Serves `POST /v1/chat/completions` and `GET /v1/models` until `shutdown`.
pub async fn serve(
    options: Options,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let address = listener.local_addr().map_err(Error::Listen)?;
    if !address.ip().is_loopback() {
        return Err(Error::NotLoopback { address });
    }
    let server = Server {
        options,
        permits: Semaphore::new(REQUESTS_MAX),
        seen: Mutex::new(HashMap::new()),
    };
    let router = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .fallback(unknown_path)
        .with_state(Arc::new(server));
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let given_up = async {
        shutdown.cancelled().await;
        tokio::time::sleep(SHUTDOWN_WAIT).await;
    };
    tokio::select! {
        served = serving => served.map_err(Error::Listen),
        () = given_up => Ok(()),
    }
}

async fn chat_completions(State(server): State<Arc<Server>>, headers: HeaderMap, body: Body) -> Response {
    // Never closed, so a permit always comes; without one there would only be no bound.
    let _permit = server.permits.acquire().await.ok();
    if let Err(error) = check_key(&server.options, &headers) {
        return error.into_response();
    }
    let body = match read(body).await {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let request = hash(&body);
    let n_seen = server.count(request);
    tokio::time::sleep(server.options.latency).await;
    answer_to(&server.options, &body, request, n_seen).into_response()
}

async fn models(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    match check_key(&server.options, &headers) {
        Ok(()) => axum::Json(chat::models()).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn unknown_path() -> Response {
    ApiError::new(
        404,
        "invalid_request_error",
        Some("unknown_url"),
        "there is nothing at this path",
    )
    .into_response()
}

fn check_key(options: &Options, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key) = &options.api_key else {
        return Ok(());
    };
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if sent.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    let message = "the API key is missing or wrong";
    Err(ApiError::new(
        401,
        "invalid_request_error",
        Some("invalid_api_key"),
        message,
    ))
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let bad = |status, message| ApiError::new(status, "invalid_request_error", None, message);
    match tokio::time::timeout(BODY_WAIT, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(bad(413, "the body is longer than 4 MiB or broke off")),
        Err(_) => Err(bad(408, "the body did not arrive within 30 seconds")),
    }
}

fn hash(body: &[u8]) -> u64 {
    let digest = Sha256::digest(body);
    digest
        .iter()
        .take(8)
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl Server {
    /// How often `request` was seen before.
    fn count(&self, request: u64) -> u32 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= COUNTERS_MAX {
            seen.clear();
        }
        let n_seen = seen.entry(request).or_default();
        let before = *n_seen;
        *n_seen = n_seen.saturating_add(1);
        before
    }
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: u16,
    body: String,
    request_id: String,
    retry_after_ms: Option<u32>,
}

/// The answer to a request that was seen `n_seen` times before: the pure heart of the stand-in.
fn answer_to(options: &Options, body: &[u8], request: u64, n_seen: u32) -> Answer {
    let request_id = format!("{request:016x}-{n_seen}");
    let error = |error: ApiError, retry_after_ms| Answer {
        status: error.status,
        body: error.body.to_string(),
        request_id: request_id.clone(),
        retry_after_ms,
    };
    let chat_request = match ChatRequest::parse(body) {
        Ok(chat_request) => chat_request,
        Err(refusal) => return error(refusal, None),
    };
    let fault = fault(&options.faults, options.seed, request, n_seen);
    match fault {
        Some(Fault::TooManyRequests) => {
            let code = Some("rate_limit_exceeded");
            return error(
                ApiError::new(429, "requests", code, "too many requests"),
                Some(RETRY_AFTER_MS),
            );
        }
        Some(Fault::ServerError) => {
            return error(
                ApiError::new(500, "server_error", None, "something went wrong"),
                None,
            );
        }
        Some(Fault::BrokenBody | Fault::BrokenContent) | None => {}
    }
    let mut content = content(options, &chat_request, request);
    let mut cut_at = Draw::new(&[options.seed, PURPOSE_CUT, request, n_seen.into()]);
    if fault == Some(Fault::BrokenContent) && chat_request.wants_json() {
        content = chat::cut(&content, cut_at.below(content.len())).to_owned();
    }
    let mut body = chat_request.completion(&content, &request_id).to_string();
    if fault == Some(Fault::BrokenBody) {
        body = chat::cut(&body, cut_at.below(body.len())).to_owned();
    }
    Answer {
        status: 200,
        body,
        request_id,
        retry_after_ms: None,
    }
}

fn content(options: &Options, chat_request: &ChatRequest, request: u64) -> String {
    match recognize(chat_request) {
        Ask::Grade { reference, response } => grade::verdict(&reference, &response, options.seed, request),
        Ask::Synthesize { examples, n_pairs } => {
            let source = Source {
                examples: &examples,
                coverage_seed: options.coverage_seed,
                flaws: options.flaws,
                seed: options.seed,
                request,
            };
            contents(&source, n_pairs)
        }
        Ask::Triage { message } => answer::triage(&message, options.seed, request),
        Ask::Other => {
            "I am a stand-in for a service LLM: I can triage support messages, grade responses and write \
            new support messages. Please ask a real model about anything else."
                .to_owned()
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, self.body);
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&self.request_id) {
            headers.insert("x-request-id", id);
        }
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000)));
            headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        json_response(self.status, Value::to_string(&self.body))
    }
}

fn json_response(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests;
