//! Calls to service LLMs that are paid for once: asked for, made, stored, recorded, and only then used.
//!
//! Invariant: a reply is on this machine's disk and its cost told (or spooled to be told) before its words are used;
//! a call that was paid for is replayed, never made again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llamaduo_data::price::{Price, PriceBook};
use llamaduo_data::{NanoUsd, ServiceCall};
use llamaduo_proto::Digest;
use llamaduo_proto::ids::{CallHash, ReservationId, RunId};
use llamaduo_proto::run::{ServiceLlmSpec, Vendor};
use llamaduo_proto::session::{BeginCall, CallLeave, CallOutcome, CallReply, EndCall};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::artifacts::Artifacts;
use crate::coordinator::{Coordinator, settled};
use crate::error::Error;
use crate::link::{AttemptHandle, Entry, Spool};
use crate::random;
use crate::service_llm::{
    Billing, CallFailure, ChatReply, ChatRequest, FinishReason, LimitedClient, ServiceLlm,
};

/// First and longest wait for calls under way that stand in the budget's way.
const WAIT_FIRST: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Makes paid calls for the attempts of one worker.
#[derive(Debug)]
pub(crate) struct PaidCalls {
    coordinator: Coordinator,
    artifacts: Artifacts,
    spool: Arc<Spool>,
    prices: PriceBook,
    /// Calls under way. An equal one waits for the first and takes its reply, since it would be paid for again.
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
}

/// What a call under way is known by: replies belong to a run.
type FlightKey = (RunId, CallHash);

/// Held by whoever makes the call; its reply, once there is one.
type Flight = tokio::sync::Mutex<Option<Digest>>;

/// One question for a service.
#[derive(Clone, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) spec: &'a ServiceLlmSpec,
    pub(crate) service: &'a LimitedClient,
    pub(crate) request: &'a ChatRequest,
    /// sha256 of the prompt's file; empty when the words are a dataset's own.
    pub(crate) prompt_hash: &'a str,
}

/// What was answered, and what is to be remembered of it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) finish: FinishReason,
    pub(crate) call: ServiceCall,
}

impl PaidCalls {
    pub(crate) fn new(
        coordinator: Coordinator,
        artifacts: Artifacts,
        spool: Arc<Spool>,
        prices: PriceBook,
    ) -> Self {
        Self {
            coordinator,
            artifacts,
            spool,
            prices,
            flights: Mutex::default(),
        }
    }

    /// Asks a question, or replays the reply that was paid for before.
    pub(crate) async fn ask(
        &self,
        attempt: &AttemptHandle,
        question: &Question<'_>,
    ) -> Result<Answer, Error> {
        let call = call_hash(question.spec, question.request)?;
        let boarded = self.board((attempt.id.run.clone(), call));
        let mut landed = tokio::select! {
            landed = boarded.flight.lock() => landed,
            () = attempt.stopped().cancelled() => {
                attempt.check()?;
                boarded.flight.lock().await
            }
        };
        if let Some(reply) = *landed {
            return self.replay(attempt, call, reply, question).await;
        }
        let (answer, reply) = self.ask_alone(attempt, call, question).await?;
        *landed = Some(reply);
        Ok(answer)
    }

    /// Asks what nobody else on this worker asks at the moment. Gives the stored reply with the answer.
    async fn ask_alone(
        &self,
        attempt: &AttemptHandle,
        call: CallHash,
        question: &Question<'_>,
    ) -> Result<(Answer, Digest), Error> {
        let Question { service, .. } = question;
        let mut tries = service.limiter.tries();
        loop {
            // Each try is reserved for by itself: the one that failed may have been paid for.
            let reservation = match self.leave(attempt, call, question).await? {
                Ok(reservation) => reservation,
                Err(reply) => {
                    let answer = self.replay(attempt, call, reply, question).await?;
                    return Ok((answer, reply));
                }
            };
            let under = Leave {
                attempt,
                call,
                reservation,
            };
            let failure = match self.make(&under, question).await? {
                Ok(answered) => return Ok(answered),
                Err(failure) => failure,
            };
            tokio::select! {
                again = tries.again(failure) => again?,
                () = attempt.stopped().cancelled() => attempt.check()?,
            }
        }
    }

    /// Leave for a call, or (`Err`) the reply it got before. Waits while only calls under way stand in the budget's way.
    async fn leave(
        &self,
        attempt: &AttemptHandle,
        call: CallHash,
        question: &Question<'_>,
    ) -> Result<Result<ReservationId, Digest>, Error> {
        let nano_usd_max = self.price(question.spec).map(|price| cost_max(price, question).0);
        let mut n_waits = 0_u32;
        loop {
            attempt.check()?;
            let begin = BeginCall {
                attempt: attempt.id.clone(),
                call,
                nano_usd_max,
                reservation: new_reservation()?,
            };
            match self.coordinator.begin_call(begin, attempt.stopped()).await? {
                CallLeave::Go(reservation) => return Ok(Ok(reservation)),
                CallLeave::Cached(reply) => return Ok(Err(reply)),
                CallLeave::BudgetSpent(reason) => return Err(Error::BudgetSpent(reason)),
                CallLeave::Wait(reason) => {
                    tracing::debug!(task_id = %attempt.id.task, reason, "waiting for calls under way to end");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(random::full_jitter(WAIT_FIRST, WAIT_MAX, n_waits.min(16))) => {}
                () = attempt.stopped().cancelled() => {}
            }
            n_waits = n_waits.saturating_add(1);
        }
    }

    fn board(&self, key: FlightKey) -> Boarded<'_> {
        let flight = Arc::clone(self.flights().entry(key.clone()).or_default());
        Boarded {
            calls: self,
            key,
            flight,
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<FlightKey, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One try under one reservation, which is ended whatever comes of it. The outer error ends the attempt, the
    /// inner one the try.
    async fn make(
        &self,
        under: &Leave<'_>,
        question: &Question<'_>,
    ) -> Result<Result<(Answer, Digest), CallFailure>, Error> {
        let Question { service, request, .. } = question;
        let permit = tokio::select! {
            permit = service.limiter.start() => permit,
            () = under.attempt.stopped().cancelled() => None,
        };
        if let Err(stopped) = under.attempt.check() {
            self.end(
                under,
                CallOutcome::NotBilled("the attempt was stopped first".to_owned()),
            )
            .await?;
            return Err(stopped);
        }
        // From here on the reply is waited for even when the attempt has to stop: it will have to be paid.
        let sent = service.client.send(request).await;
        drop(permit);
        let body = match sent {
            Ok(body) => body,
            Err(failure) => {
                let reason = failure.message.clone();
                let outcome = match failure.billing {
                    Billing::No => CallOutcome::NotBilled(reason),
                    Billing::Unknown => CallOutcome::Unknown(reason),
                };
                self.end(under, outcome).await?;
                return Ok(Err(failure));
            }
        };
        let reply = match service.client.read(&body) {
            Ok(reply) => reply,
            Err(problem) => {
                let failure = CallFailure::doubtful(format!("the reply cannot be read: {problem}"));
                self.end(under, CallOutcome::Unknown(failure.message.clone()))
                    .await?;
                return Ok(Err(failure));
            }
        };
        let digest = match self.artifacts.keep(body).await {
            Ok(digest) => digest,
            Err(error) => {
                // Paid for and lost: without space nobody can keep it, but it must count.
                self.end(
                    under,
                    CallOutcome::Unknown("its reply could not be stored".to_owned()),
                )
                .await?;
                return Err(error);
            }
        };
        let answer = self.answer(under.call, reply, question);
        let usage = CallReply {
            reply: digest,
            input_tokens: answer.call.input_tokens,
            output_tokens: answer.call.output_tokens,
            nano_usd: answer.call.cost.map(|cost| cost.0),
        };
        self.end(under, CallOutcome::Answered(usage)).await?;
        Ok(Ok((answer, digest)))
    }

    /// Tells how a call ended, or spools it to be told when the coordinator is back. A reply is in the spool before it
    /// is told: whoever is killed in between has it told by the next process.
    async fn end(&self, under: &Leave<'_>, outcome: CallOutcome) -> Result<(), Error> {
        let end = EndCall {
            attempt: under.attempt.id.clone(),
            call: under.call,
            reservation: under.reservation.clone(),
            outcome,
        };
        let entry = Entry::Call(end.clone());
        let held = match &end.outcome {
            CallOutcome::Answered(_) => Some(self.on_spool(move |spool| spool.hold(entry)).await),
            CallOutcome::NotBilled(_) | CallOutcome::Unknown(_) => None,
        };
        match (self.tell(&end, under.attempt.stopped()).await, held) {
            (Ok(()), Some(Ok(held))) => {
                if let Err(error) = self.on_spool(|_| held.told()).await {
                    tracing::warn!(call = %end.call, reason = error.message(), "a call that was told will be told again");
                }
                Ok(())
            }
            (Ok(()), None | Some(Err(_))) => Ok(()),
            // Let go of, it is told with the others.
            (Err(_), Some(held)) => held.map(drop),
            (Err(_), None) => self.on_spool(move |spool| spool.put(Entry::Call(end))).await,
        }
    }

    /// Tells how a call ended, once. `Err` when it is to be told again.
    async fn tell(&self, end: &EndCall, stopped: &CancellationToken) -> Result<(), Error> {
        if let CallOutcome::Answered(reply) = &end.outcome {
            self.artifacts.publish(reply.reply, stopped).await?;
        }
        let answer = self.coordinator.end_call(end.clone()).await;
        if let Some(status) = settled(answer, "record a call")? {
            tracing::error!(call = %end.call, reason = status.message(), "the coordinator refuses to record a call");
        }
        Ok(())
    }

    async fn on_spool<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Spool>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let spool = Arc::clone(&self.spool);
        let done = tokio::task::spawn_blocking(move || work(spool)).await;
        done.map_err(|_| Error::Gone("disk task"))?
    }

    async fn replay(
        &self,
        attempt: &AttemptHandle,
        call: CallHash,
        digest: Digest,
        question: &Question<'_>,
    ) -> Result<Answer, Error> {
        let body = self.artifacts.get(digest, attempt.stopped()).await?;
        let reply = question
            .service
            .client
            .read(&body)
            .map_err(|problem| Error::content(digest, "a service llm's reply")(Unreadable(problem)))?;
        Ok(self.answer(call, reply, question))
    }

    fn answer(&self, call: CallHash, reply: ChatReply, question: &Question<'_>) -> Answer {
        let ChatReply { text, finish, usage } = reply;
        let cost = usage.zip(self.price(question.spec));
        let cost = cost.map(|(usage, price)| price.cost(usage.input_tokens, usage.output_tokens));
        let call = ServiceCall {
            id: call.to_string(),
            prompt_hash: question.prompt_hash.to_owned(),
            model: question.spec.model.clone(),
            input_tokens: usage.map_or(0, |usage| usage.input_tokens),
            output_tokens: usage.map_or(0, |usage| usage.output_tokens),
            cost,
        };
        Answer { text, finish, call }
    }

    /// The run's own price, else the book's, else unknown.
    fn price(&self, spec: &ServiceLlmSpec) -> Option<Price> {
        let nano = |usd: f64| NanoUsd((usd * 1e9).round() as u64);
        let own = |(input, output)| Price {
            input_per_million: nano(input),
            output_per_million: nano(output),
        };
        spec.usd_per_mtok
            .map(own)
            .or_else(|| self.prices.price(&spec.model))
    }
}

/// A call that this question is about, perhaps with others.
struct Boarded<'a> {
    calls: &'a PaidCalls,
    key: FlightKey,
    flight: Arc<Flight>,
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        let mut flights = self.calls.flights();
        // The table's and this one: nobody else waits, and nobody can join while the table is held.
        if Arc::strong_count(&self.flight) <= 2 {
            flights.remove(&self.key);
        }
    }
}

/// A reservation and what it is for.
struct Leave<'a> {
    attempt: &'a AttemptHandle,
    call: CallHash,
    reservation: ReservationId,
}

/// Named here, so that asking again after an answer that was lost reserves nothing more.
fn new_reservation() -> Result<ReservationId, Error> {
    let text = format!("{:016x}{:016x}", random::bits(), random::bits());
    ReservationId::new(&text).map_err(|error| Error::Task {
        what: "a reservation's name",
        expected: "a valid id".to_owned(),
        found: error.to_string(),
    })
}

/// Why a stored reply cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unreadable(String);

/// Most that a call may cost: no tokenizer makes more tokens than there are bytes, and no answer is longer than asked.
fn cost_max(price: Price, question: &Question<'_>) -> NanoUsd {
    let ChatRequest { messages, schema, .. } = question.request;
    let schema_bytes = schema
        .as_ref()
        .map_or(0, |schema| schema.schema.to_string().len());
    // Chat formats add a few tokens for each turn.
    let bytes: usize = messages.iter().map(|message| message.content.len() + 16).sum();
    price.cost((bytes + schema_bytes) as u64, u64::from(question.spec.tokens_max))
}

/// What a call is known by: everything that decides its answer, and nothing else.
#[derive(Serialize)]
struct CallKey<'a> {
    vendor: Vendor,
    model: &'a str,
    temperature: Option<f32>,
    tokens_max: u32,
    json_schema: bool,
    request: &'a ChatRequest,
}

/// sha256 of the call's canonical JSON: keys sorted, no white space.
fn call_hash(spec: &ServiceLlmSpec, request: &ChatRequest) -> Result<CallHash, Error> {
    let key = CallKey {
        vendor: spec.vendor,
        model: &spec.model,
        temperature: spec.temperature,
        tokens_max: spec.tokens_max,
        json_schema: spec.json_schema,
        request,
    };
    let value = serde_json::to_value(key).map_err(|source| Error::Encode {
        what: "a call",
        source,
    })?;
    let mut text = String::new();
    write_canonical(&value, &mut text);
    Ok(Digest::of(text.as_bytes()))
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                *text += &Value::from(name.as_str()).to_string();
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, value) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write_canonical(value, text);
            }
            text.push(']');
        }
        plain => *text += &plain.to_string(),
    }
}

#[cfg(test)]
mod tests;
