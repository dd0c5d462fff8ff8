//! What a worker and the coordinator tell each other.
//!
//! Invariant: whatever names an attempt carries the token of its lease.

use std::time::Duration;

use crate::Digest;
use crate::ids::{AttemptId, CallHash, DirectoryId, Incarnation, ReservationId, WorkerId};
use crate::task::{FailureKind, Progress, TaskResult, TaskSpec};

/// Version of the protocol between worker and coordinator.
pub const PROTOCOL_VERSION: u32 = 1;

/// From worker to coordinator, in a session.
#[derive(Clone, Debug, PartialEq)]
pub enum FromWorker {
    /// First message.
    Hello(Hello),
    /// What the worker can take now.
    Credits(Credits),
    /// Every heartbeat period, and when something moved.
    Heartbeat(Heartbeat),
    /// The worker leaves; its running attempts are given back.
    Goodbye {
        /// Why, for people.
        reason: String,
    },
}

/// First message of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Stable name.
    pub worker: WorkerId,
    /// This process of it.
    pub incarnation: Incarnation,
    /// What it computes on, for people.
    pub device: String,
    /// What it can take.
    pub credits: Credits,
    /// Attempts it still runs from an earlier session.
    pub running: Vec<RunningAttempt>,
    /// The directory that the process holds; `None` is one of nobody else.
    pub directory: Option<DirectoryId>,
}

/// Slots of a worker, by lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credits {
    /// Attempts at once on the local model.
    pub local_model_slots: u32,
    /// Attempts at once that call service LLMs.
    pub service_slots: u32,
}

/// Sign of life.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// Grows by one.
    pub seq: u64,
    /// Everything that runs.
    pub running: Vec<RunningAttempt>,
}

/// One attempt that a worker runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// How far; `None` is unknown.
    pub progress: Option<Progress>,
    /// Newest checkpoint.
    pub checkpoint: Option<Digest>,
}

/// From coordinator to worker, in a session.
#[derive(Clone, Debug, PartialEq)]
pub enum ToWorker {
    /// Answer to hello.
    Welcome(Welcome),
    /// A lease on an attempt.
    Assignment(Box<Assignment>),
    /// Stop an attempt.
    Cancel {
        /// Which.
        attempt: AttemptId,
        /// Why, for people.
        reason: String,
    },
    /// Finish what runs, take nothing new.
    Drain,
    /// Answer to a heartbeat.
    HeartbeatAck {
        /// The heartbeat's number.
        seq: u64,
        /// Attempts whose lease is gone.
        revoked: Vec<AttemptId>,
    },
}

/// Answer to hello.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// How long a lease lasts after an acknowledged heartbeat; whole milliseconds, longer than `heartbeat`.
    pub lease: Duration,
    /// How often to send a heartbeat; whole milliseconds.
    pub heartbeat: Duration,
    /// Attempts of the hello whose lease is gone.
    pub revoked: Vec<AttemptId>,
}

/// A lease on an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Which.
    pub attempt: AttemptId,
    /// What to do.
    pub spec: TaskSpec,
    /// Newest checkpoint of earlier attempts.
    pub checkpoint: Option<Digest>,
    /// Times the batch must be halved, at most 32.
    pub batch_halvings: u32,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Which.
    pub attempt: AttemptId,
    /// Who ran it.
    pub worker: WorkerId,
    /// How it ended.
    pub outcome: AttemptOutcome,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptOutcome {
    /// It succeeded.
    Done(TaskResult),
    /// It failed.
    Failed(AttemptFailure),
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptFailure {
    /// Why.
    pub kind: FailureKind,
    /// A sentence for people.
    pub message: String,
    /// Newest checkpoint.
    pub checkpoint: Option<Digest>,
}

/// Asks for leave to call a service LLM.
#[derive(Clone, Debug, PartialEq)]
pub struct BeginCall {
    /// The attempt that calls.
    pub attempt: AttemptId,
    /// What is called.
    pub call: CallHash,
    /// Most it may cost, billionths of a US dollar; `None` is unknown.
    pub nano_usd_max: Option<u64>,
    /// The worker's name for the leave, new for each try; the same again gets the same leave.
    pub reservation: ReservationId,
}

/// Leave to call, or why not.
#[derive(Clone, Debug, PartialEq)]
pub enum CallLeave {
    /// Made and paid for before: its stored reply.
    Cached(Digest),
    /// Make the call under this reservation.
    Go(ReservationId),
    /// The budget does not allow it; what to raise.
    BudgetSpent(String),
    /// The budget may allow it once calls under way have ended; what is waited for.
    Wait(String),
}

/// Records a call.
#[derive(Clone, Debug, PartialEq)]
pub struct EndCall {
    /// The attempt that called.
    pub attempt: AttemptId,
    /// What was called.
    pub call: CallHash,
    /// The leave it was made under.
    pub reservation: ReservationId,
    /// What came of it.
    pub outcome: CallOutcome,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum CallOutcome {
    /// It was answered.
    Answered(CallReply),
    /// It surely cost nothing; why.
    NotBilled(String),
    /// Whether it was processed is unknown; why.
    Unknown(String),
}

/// The reply to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallReply {
    /// The stored reply.
    pub reply: Digest,
    /// Tokens sent.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Billionths of a US dollar; `None` is unknown.
    pub nano_usd: Option<u64>,
}
