//! `worker_service.proto`: sessions, the end of attempts, calls to service LLMs.

use std::time::Duration;

use super::{
    InvalidMessage, Result, at_least_1, digest, digest_text, enumeration, id, list, nested, optional,
    optional_digest, optional_id, required, text_for_people, up_to,
};
use crate::ids::{AttemptId, AttemptNumber, LeaseToken};
use crate::session::{
    Assignment, AttemptFailure, AttemptOutcome, BeginCall, CallLeave, CallOutcome, CallReply, Completion,
    Credits, EndCall, FromWorker, Heartbeat, Hello, PROTOCOL_VERSION, RunningAttempt, ToWorker, Welcome,
};
use crate::wire;

/// Most slots of a lane. Both lanes together must fit into one heartbeat's list, which a worker sees to.
const SLOTS_MAX: u32 = 1_000;
/// Most halvings of a batch: a u32 holds no more.
const BATCH_HALVINGS_MAX: u32 = 32;

impl TryFrom<wire::AttachRequest> for FromWorker {
    type Error = InvalidMessage;
    fn try_from(wire: wire::AttachRequest) -> Result<Self> {
        use wire::attach_request::Message;
        match wire.message.ok_or_else(|| InvalidMessage::absent("message"))? {
            Message::Hello(hello) => nested("hello", hello).map(Self::Hello),
            Message::Credits(credits) => nested("credits", credits).map(Self::Credits),
            Message::Heartbeat(heartbeat) => nested("heartbeat", heartbeat).map(Self::Heartbeat),
            Message::Goodbye(goodbye) => Ok(Self::Goodbye {
                reason: text_for_people(goodbye.reason),
            }),
        }
    }
}

impl From<FromWorker> for wire::AttachRequest {
    fn from(message: FromWorker) -> Self {
        use wire::attach_request::Message;
        let message = match message {
            FromWorker::Hello(hello) => Message::Hello(hello.into()),
            FromWorker::Credits(credits) => Message::Credits(credits.into()),
            FromWorker::Heartbeat(heartbeat) => Message::Heartbeat(heartbeat.into()),
            FromWorker::Goodbye { reason } => Message::Goodbye(wire::Goodbye { reason }),
        };
        Self {
            message: Some(message),
        }
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Hello) -> Result<Self> {
        if wire.protocol_version != PROTOCOL_VERSION {
            let expected = format!("{PROTOCOL_VERSION}: run worker and coordinator of the same release");
            return Err(InvalidMessage::new(
                "protocol_version",
                &expected,
                wire.protocol_version,
            ));
        }
        Ok(Self {
            worker: id("worker_id", &wire.worker_id)?,
            incarnation: id("incarnation", &wire.incarnation)?,
            device: text_for_people(wire.device),
            credits: required("credits", wire.credits)?,
            running: list("running", wire.running)?,
            directory: optional_id("directory_id", &wire.directory_id)?,
        })
    }
}

impl From<Hello> for wire::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            protocol_version: PROTOCOL_VERSION,
            worker_id: hello.worker.into(),
            incarnation: hello.incarnation.into(),
            device: hello.device,
            credits: Some(hello.credits.into()),
            running: hello.running.into_iter().map(Into::into).collect(),
            directory_id: hello.directory.map(Into::into).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Credits> for Credits {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Credits) -> Result<Self> {
        let slots = |field: &str, slots: u32| {
            if slots == 0 {
                Ok(0)
            } else {
                up_to(field, slots, SLOTS_MAX)
            }
        };
        Ok(Self {
            local_model_slots: slots("local_model_slots", wire.local_model_slots)?,
            service_slots: slots("service_slots", wire.service_slots)?,
        })
    }
}

impl From<Credits> for wire::Credits {
    fn from(credits: Credits) -> Self {
        Self {
            local_model_slots: credits.local_model_slots,
            service_slots: credits.service_slots,
        }
    }
}

impl TryFrom<wire::Heartbeat> for Heartbeat {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Heartbeat) -> Result<Self> {
        Ok(Self {
            seq: wire.seq,
            running: list("running", wire.running)?,
        })
    }
}

impl From<Heartbeat> for wire::Heartbeat {
    fn from(heartbeat: Heartbeat) -> Self {
        Self {
            seq: heartbeat.seq,
            running: heartbeat.running.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::RunningAttempt> for RunningAttempt {
    type Error = InvalidMessage;
    fn try_from(wire: wire::RunningAttempt) -> Result<Self> {
        Ok(Self {
            attempt: required("attempt", wire.attempt)?,
            progress: optional("progress", wire.progress)?,
            checkpoint: optional_digest("checkpoint_digest", &wire.checkpoint_digest)?,
        })
    }
}

impl From<RunningAttempt> for wire::RunningAttempt {
    fn from(running: RunningAttempt) -> Self {
        Self {
            attempt: Some(running.attempt.into()),
            progress: running.progress.map(Into::into),
            checkpoint_digest: digest_text(running.checkpoint),
        }
    }
}

impl TryFrom<wire::AttemptId> for AttemptId {
    type Error = InvalidMessage;
    fn try_from(wire: wire::AttemptId) -> Result<Self> {
        Ok(Self {
            run: id("run_id", &wire.run_id)?,
            task: id("task_id", &wire.task_id)?,
            attempt: AttemptNumber(at_least_1("attempt", wire.attempt)?),
            token: LeaseToken(wire.token),
        })
    }
}

impl From<AttemptId> for wire::AttemptId {
    fn from(attempt: AttemptId) -> Self {
        Self {
            run_id: attempt.run.into(),
            task_id: attempt.task.into(),
            attempt: attempt.attempt.0,
            token: attempt.token.0,
        }
    }
}

impl TryFrom<wire::AttachResponse> for ToWorker {
    type Error = InvalidMessage;
    fn try_from(wire: wire::AttachResponse) -> Result<Self> {
        use wire::attach_response::Message;
        match wire.message.ok_or_else(|| InvalidMessage::absent("message"))? {
            Message::Welcome(welcome) => nested("welcome", welcome).map(Self::Welcome),
            Message::Assignment(assignment) => {
                nested("assignment", assignment).map(|assignment| Self::Assignment(Box::new(assignment)))
            }
            Message::Cancel(cancel) => Ok(Self::Cancel {
                attempt: required("cancel.attempt", cancel.attempt)?,
                reason: text_for_people(cancel.reason),
            }),
            Message::Drain(wire::Drain {}) => Ok(Self::Drain),
            Message::HeartbeatAck(ack) => Ok(Self::HeartbeatAck {
                seq: ack.seq,
                revoked: list("heartbeat_ack.revoked", ack.revoked)?,
            }),
        }
    }
}

impl From<ToWorker> for wire::AttachResponse {
    fn from(message: ToWorker) -> Self {
        use wire::attach_response::Message;
        let message = match message {
            ToWorker::Welcome(welcome) => Message::Welcome(welcome.into()),
            ToWorker::Assignment(assignment) => Message::Assignment((*assignment).into()),
            ToWorker::Cancel { attempt, reason } => Message::Cancel(wire::CancelAttempt {
                attempt: Some(attempt.into()),
                reason,
            }),
            ToWorker::Drain => Message::Drain(wire::Drain {}),
            ToWorker::HeartbeatAck { seq, revoked } => Message::HeartbeatAck(wire::HeartbeatAck {
                seq,
                revoked: revoked.into_iter().map(Into::into).collect(),
            }),
        };
        Self {
            message: Some(message),
        }
    }
}

impl TryFrom<wire::Welcome> for Welcome {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Welcome) -> Result<Self> {
        let heartbeat_ms = at_least_1("heartbeat_ms", wire.heartbeat_ms)?;
        if wire.lease_ms <= heartbeat_ms {
            let expected = format!("more than heartbeat_ms, {heartbeat_ms}");
            return Err(InvalidMessage::new("lease_ms", &expected, wire.lease_ms));
        }
        Ok(Self {
            lease: Duration::from_millis(wire.lease_ms.into()),
            heartbeat: Duration::from_millis(heartbeat_ms.into()),
            revoked: list("revoked", wire.revoked)?,
        })
    }
}

impl From<Welcome> for wire::Welcome {
    fn from(welcome: Welcome) -> Self {
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        Self {
            lease_ms: ms(welcome.lease),
            heartbeat_ms: ms(welcome.heartbeat),
            revoked: welcome.revoked.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Assignment> for Assignment {
    type Error = InvalidMessage;
    fn try_from(wire: wire::Assignment) -> Result<Self> {
        if wire.batch_halvings > BATCH_HALVINGS_MAX {
            return Err(InvalidMessage::new(
                "batch_halvings",
                "at most 32",
                wire.batch_halvings,
            ));
        }
        Ok(Self {
            attempt: required("attempt", wire.attempt)?,
            spec: required("spec", wire.spec)?,
            checkpoint: optional_digest("checkpoint_digest", &wire.checkpoint_digest)?,
            batch_halvings: wire.batch_halvings,
        })
    }
}

impl From<Assignment> for wire::Assignment {
    fn from(assignment: Assignment) -> Self {
        Self {
            attempt: Some(assignment.attempt.into()),
            spec: Some(assignment.spec.into()),
            checkpoint_digest: digest_text(assignment.checkpoint),
            batch_halvings: assignment.batch_halvings,
        }
    }
}

impl TryFrom<wire::CompleteAttemptRequest> for Completion {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CompleteAttemptRequest) -> Result<Self> {
        use wire::complete_attempt_request::Outcome;
        let outcome = match wire.outcome.ok_or_else(|| InvalidMessage::absent("outcome"))? {
            Outcome::Result(result) => AttemptOutcome::Done(nested("result", result)?),
            Outcome::Failure(failure) => AttemptOutcome::Failed(nested("failure", failure)?),
        };
        Ok(Self {
            attempt: required("attempt", wire.attempt)?,
            worker: id("worker_id", &wire.worker_id)?,
            outcome,
        })
    }
}

impl From<Completion> for wire::CompleteAttemptRequest {
    fn from(completion: Completion) -> Self {
        use wire::complete_attempt_request::Outcome;
        let outcome = match completion.outcome {
            AttemptOutcome::Done(result) => Outcome::Result(result.into()),
            AttemptOutcome::Failed(failure) => Outcome::Failure(failure.into()),
        };
        Self {
            attempt: Some(completion.attempt.into()),
            worker_id: completion.worker.into(),
            outcome: Some(outcome),
        }
    }
}

impl TryFrom<wire::AttemptFailure> for AttemptFailure {
    type Error = InvalidMessage;
    fn try_from(wire: wire::AttemptFailure) -> Result<Self> {
        Ok(Self {
            kind: enumeration::<wire::FailureKind, _>("kind", wire.kind)?,
            message: text_for_people(wire.message),
            checkpoint: optional_digest("checkpoint_digest", &wire.checkpoint_digest)?,
        })
    }
}

impl From<AttemptFailure> for wire::AttemptFailure {
    fn from(failure: AttemptFailure) -> Self {
        Self {
            kind: wire::FailureKind::from(failure.kind).into(),
            message: failure.message,
            checkpoint_digest: digest_text(failure.checkpoint),
        }
    }
}

impl TryFrom<wire::BeginCallRequest> for BeginCall {
    type Error = InvalidMessage;
    fn try_from(wire: wire::BeginCallRequest) -> Result<Self> {
        Ok(Self {
            attempt: required("attempt", wire.attempt)?,
            call: digest("call_hash", &wire.call_hash)?,
            nano_usd_max: wire.nano_usd_max,
            reservation: id("reservation", &wire.reservation)?,
        })
    }
}

impl From<BeginCall> for wire::BeginCallRequest {
    fn from(call: BeginCall) -> Self {
        Self {
            attempt: Some(call.attempt.into()),
            call_hash: call.call.to_string(),
            nano_usd_max: call.nano_usd_max,
            reservation: call.reservation.into(),
        }
    }
}

impl TryFrom<wire::BeginCallResponse> for CallLeave {
    type Error = InvalidMessage;
    fn try_from(wire: wire::BeginCallResponse) -> Result<Self> {
        use wire::begin_call_response::Answer;
        match wire.answer.ok_or_else(|| InvalidMessage::absent("answer"))? {
            Answer::CachedDigest(reply) => digest("cached_digest", &reply).map(Self::Cached),
            Answer::Reservation(reservation) => id("reservation", &reservation).map(Self::Go),
            Answer::BudgetSpent(reason) => Ok(Self::BudgetSpent(text_for_people(reason))),
            Answer::Wait(reason) => Ok(Self::Wait(text_for_people(reason))),
        }
    }
}

impl From<CallLeave> for wire::BeginCallResponse {
    fn from(leave: CallLeave) -> Self {
        use wire::begin_call_response::Answer;
        let answer = match leave {
            CallLeave::Cached(reply) => Answer::CachedDigest(reply.to_string()),
            CallLeave::Go(reservation) => Answer::Reservation(reservation.into()),
            CallLeave::BudgetSpent(reason) => Answer::BudgetSpent(reason),
            CallLeave::Wait(reason) => Answer::Wait(reason),
        };
        Self { answer: Some(answer) }
    }
}

impl TryFrom<wire::EndCallRequest> for EndCall {
    type Error = InvalidMessage;
    fn try_from(wire: wire::EndCallRequest) -> Result<Self> {
        use wire::end_call_request::Outcome;
        let outcome = match wire.outcome.ok_or_else(|| InvalidMessage::absent("outcome"))? {
            Outcome::Reply(reply) => CallOutcome::Answered(nested("reply", reply)?),
            Outcome::NotBilled(reason) => CallOutcome::NotBilled(text_for_people(reason)),
            Outcome::Unknown(reason) => CallOutcome::Unknown(text_for_people(reason)),
        };
        Ok(Self {
            attempt: required("attempt", wire.attempt)?,
            call: digest("call_hash", &wire.call_hash)?,
            reservation: id("reservation", &wire.reservation)?,
            outcome,
        })
    }
}

impl From<EndCall> for wire::EndCallRequest {
    fn from(call: EndCall) -> Self {
        use wire::end_call_request::Outcome;
        let outcome = match call.outcome {
            CallOutcome::Answered(reply) => Outcome::Reply(reply.into()),
            CallOutcome::NotBilled(reason) => Outcome::NotBilled(reason),
            CallOutcome::Unknown(reason) => Outcome::Unknown(reason),
        };
        Self {
            attempt: Some(call.attempt.into()),
            call_hash: call.call.to_string(),
            reservation: call.reservation.into(),
            outcome: Some(outcome),
        }
    }
}

impl TryFrom<wire::CallReply> for CallReply {
    type Error = InvalidMessage;
    fn try_from(wire: wire::CallReply) -> Result<Self> {
        Ok(Self {
            reply: digest("reply_digest", &wire.reply_digest)?,
            input_tokens: wire.input_tokens,
            output_tokens: wire.output_tokens,
            nano_usd: wire.nano_usd,
        })
    }
}

impl From<CallReply> for wire::CallReply {
    fn from(reply: CallReply) -> Self {
        Self {
            reply_digest: reply.reply.to_string(),
            input_tokens: reply.input_tokens,
            output_tokens: reply.output_tokens,
            nano_usd: reply.nano_usd,
        }
    }
}
