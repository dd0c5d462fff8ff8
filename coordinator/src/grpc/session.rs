//! One worker's stream: hello, then heartbeats and credits in, and whatever the scheduler sends out.
//!
//! Invariant: the end of a stream says nothing. Leases run on until they expire, the worker attaches again, or it says
//! goodbye.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{AttemptId, RunId};
use llamaduo_proto::session::{FromWorker, Heartbeat, Hello, RunningAttempt, ToWorker};
use llamaduo_proto::wire;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{Services, status};
use crate::actors::run::StepError;
use crate::actors::scheduler::{Message, OUTBOX_LEN, SessionId, holds};
use crate::machine::Event;

/// How long a new stream may keep quiet.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// One session under way.
struct Session {
    services: Services,
    id: SessionId,
    outbox: mpsc::Sender<ToWorker>,
    close: CancellationToken,
}

/// Takes a stream's hello and starts its session; gives what is to be sent to the worker.
pub(super) async fn begin(
    services: &Services,
    mut inbound: Streaming<wire::AttachRequest>,
) -> Result<mpsc::Receiver<ToWorker>, Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, inbound.message()).await;
    let first = first.map_err(|_| no_hello("nothing arrived"))??;
    let hello = match first.map(FromWorker::try_from) {
        Some(Ok(FromWorker::Hello(hello))) => hello,
        Some(Ok(_)) => return Err(no_hello("another message came first")),
        Some(Err(error)) => return Err(status::invalid(&error)),
        None => return Err(no_hello("the stream ended")),
    };
    let hello = Hello {
        running: with_stored_checkpoints(services, hello.running).await,
        ..hello
    };
    let (outbox, messages) = mpsc::channel(OUTBOX_LEN);
    let close = services.stop.child_token();
    let (reply, answer) = oneshot::channel();
    let attach = Message::Attach {
        hello,
        outbox: outbox.clone(),
        close: close.clone(),
        reply,
    };
    services
        .scheduler
        .send(attach)
        .await
        .map_err(|_| status::stopping())?;
    let attached = answer.await.map_err(|_| status::stopping())?;
    let id = attached.map_err(|error| status::of_attach(&error))?;
    let session = Session {
        services: services.clone(),
        id,
        outbox,
        close,
    };
    services.tasks.spawn(session.run(inbound));
    Ok(messages)
}

fn no_hello(found: &str) -> Status {
    let message = format!(
        "a session begins with a hello within {} s, but {found}",
        HELLO_WITHIN.as_secs()
    );
    status::named(Code::InvalidArgument, "NO_HELLO", message)
}

impl Session {
    async fn run(self, mut inbound: Streaming<wire::AttachRequest>) {
        loop {
            let message = tokio::select! {
                () = self.close.cancelled() => break,
                () = self.outbox.closed() => break,
                message = inbound.message() => message,
            };
            // A broken stream and an ended one are alike: neither is a goodbye.
            let Ok(Some(message)) = message else { break };
            match FromWorker::try_from(message) {
                Ok(message) => {
                    if !self.take(message).await {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(worker_id = %self.id.worker, %error, "message of a worker was not understood");
                    break;
                }
            }
        }
        let _ = self
            .services
            .scheduler
            .send(Message::Detached { session: self.id })
            .await;
    }

    /// Handles a message; `false` ends the session.
    async fn take(&self, message: FromWorker) -> bool {
        let session = self.id.clone();
        match message {
            FromWorker::Hello(_) => {
                tracing::warn!(worker_id = %self.id.worker, "second hello in one session");
                false
            }
            FromWorker::Credits(credits) => self.tell(Message::Credits { session, credits }).await,
            FromWorker::Heartbeat(heartbeat) => {
                self.tell(Message::Heard { session }).await && self.heartbeat(heartbeat).await
            }
            FromWorker::Goodbye { reason } => {
                tracing::info!(worker_id = %self.id.worker, reason, "worker leaves");
                self.tell(Message::Left { session }).await;
                false
            }
        }
    }

    async fn tell(&self, message: Message) -> bool {
        self.services.scheduler.send(message).await.is_ok()
    }

    /// Renews what the worker lists, and acknowledges with what it must stop. Without a store there is no
    /// acknowledgement, so that the worker fences itself in time.
    async fn heartbeat(&self, heartbeat: Heartbeat) -> bool {
        let Heartbeat { seq, running } = heartbeat;
        let mut by_run: BTreeMap<RunId, Vec<RunningAttempt>> = BTreeMap::new();
        for running in with_stored_checkpoints(&self.services, running).await {
            by_run
                .entry(running.attempt.run.clone())
                .or_default()
                .push(running);
        }
        let mut revoked = Vec::new();
        for (run, running) in by_run {
            match self.renew(&run, running).await {
                Ok(gone) => revoked.extend(gone),
                Err(error) => {
                    tracing::warn!(run_id = %run, worker_id = %self.id.worker, %error, "leases could not be renewed");
                    return true;
                }
            }
        }
        // A worker that does not read its messages is not served further.
        self.outbox
            .try_send(ToWorker::HeartbeatAck { seq, revoked })
            .is_ok()
    }

    /// Renews the leases on one run's attempts and gives those that are gone.
    async fn renew(&self, run: &RunId, running: Vec<RunningAttempt>) -> Result<Vec<AttemptId>, StepError> {
        let attempts: Vec<AttemptId> = running.iter().map(|running| running.attempt.clone()).collect();
        let worker = &self.id.worker;
        let is_live = self.services.runs.is_live(run).await;
        if !is_live {
            return Ok(attempts);
        }
        let event = Event::Heartbeat {
            worker: worker.clone(),
            running,
        };
        let run = self.services.runs.step(run, event).await?;
        Ok(attempts
            .into_iter()
            .filter(|attempt| !holds(&run, attempt, worker))
            .collect())
    }
}

/// Leaves out checkpoints that this coordinator's store does not hold: no other worker could start from them.
async fn with_stored_checkpoints(
    services: &Services,
    mut running: Vec<RunningAttempt>,
) -> Vec<RunningAttempt> {
    let checkpoints: BTreeSet<Digest> = running.iter().filter_map(|running| running.checkpoint).collect();
    let mut missing = BTreeSet::new();
    for checkpoint in checkpoints {
        if services.check_stored(vec![checkpoint]).await.is_err() {
            missing.insert(checkpoint);
        }
    }
    for running in &mut running {
        running.checkpoint = running
            .checkpoint
            .filter(|checkpoint| !missing.contains(checkpoint));
    }
    running
}
