//! Sessions: dial, say hello, renew leases, take assignments; dial again when the stream breaks.
//!
//! Invariant: the end of a stream ends no attempt. Attempts end by themselves, by the coordinator's word, or when
//! their lease runs out unrenewed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llamaduo_proto::ids::{AttemptId, DirectoryId, Incarnation, WorkerId};
use llamaduo_proto::session::{
    Assignment, Credits, FromWorker, Heartbeat, Hello, RunningAttempt, ToWorker, Welcome,
};
use llamaduo_proto::wire::{AttachRequest, AttachResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use super::registry::{AttemptHandle, Registry};
use crate::coordinator::{Address, deepest};
use crate::error::{Error, Stop};
use crate::notice::Telling;
use crate::random;

/// Messages on their way out: a heartbeat, credits and a goodbye, with room for a slow stream.
const OUTBOX: usize = 16;

/// A coordinator that accepts a connection but does not welcome within this time is not one.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest wait before dialling again. Short beside a lease, so that a restart of the coordinator costs no
/// attempt.
const REDIAL_FIRST: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(3);

/// Longest wait for a namesake to be gone, whatever the coordinator says: far more than any lease.
const NAME_WAIT_MAX: Duration = Duration::from_secs(300);

/// What moved is told at most this often: people watch it, the coordinator must not drown in it.
const NEWS_PERIOD: Duration = Duration::from_millis(250);

/// Heartbeats without an answer that are remembered; a lease has room for a handful.
const UNANSWERED_MAX: usize = 256;

/// Everything a session needs.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: Address,
    pub(crate) telling: Telling,
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: Incarnation,
    /// The directory that this process holds.
    pub(crate) directory: DirectoryId,
    pub(crate) device: String,
    pub(crate) credits: Credits,
    pub(crate) registry: Arc<Registry>,
    /// Where assignments go, with the handle their attempt runs under.
    pub(crate) assignments: mpsc::Sender<(Assignment, Arc<AttemptHandle>)>,
    /// Fires when all is told and the worker may say goodbye.
    pub(crate) finished: CancellationToken,
}

/// A link on its own thread.
#[derive(Debug)]
pub(crate) struct LinkThread {
    thread: Option<std::thread::JoinHandle<()>>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

impl LinkThread {
    /// Starts the thread.
    pub(crate) fn start(link: Link) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io(
                "start the link's runtime in",
                std::path::Path::new("."),
            ))?;
        let (sender, ended) = oneshot::channel();
        let work = move || {
            // The worker may have stopped listening; then nobody needs the result.
            let _nobody_listens = sender.send(runtime.block_on(link.run()));
        };
        let thread = std::thread::Builder::new()
            .name("link".to_owned())
            .spawn(work)
            .map_err(Error::io("start a thread in", std::path::Path::new(".")))?;
        Ok(Self {
            thread: Some(thread),
            ended,
        })
    }

    /// Waits until the link has ended: after `finished`, or refused by the coordinator.
    pub(crate) async fn ended(&mut self) -> Result<(), Error> {
        let result = (&mut self.ended).await.unwrap_or(Err(Error::Gone("link")));
        if let Some(thread) = self.thread.take() {
            // Its result was just received, so it returns at once; a panic was told as `Gone`.
            let _panicked = thread.join();
        }
        result
    }
}

/// How a session ended.
#[derive(Debug)]
enum SessionEnd {
    /// The worker said goodbye.
    Finished,
    /// The coordinator will not have this worker.
    Refused(String),
    /// Another process was heard of lately under this worker's name.
    NameTaken { reason: String, free_in: Duration },
    /// Anything else: dial again.
    Broken { reason: String, was_welcome: bool },
}

impl Link {
    async fn run(self) -> Result<(), Error> {
        tokio::select! {
            ended = self.keep_dialling() => ended,
            never = self.keep_fencing() => match never {},
        }
    }

    async fn keep_dialling(&self) -> Result<(), Error> {
        let mut n_failed = 0_u32;
        let mut name_free_at = None;
        while !self.finished.is_cancelled() {
            let begun = Instant::now();
            match self.session().await {
                SessionEnd::Finished => return Ok(()),
                SessionEnd::Refused(reason) => return Err(self.refused(reason)),
                // Where it was asked for after the time that a dead namesake is given, the other one lives.
                SessionEnd::NameTaken { reason, .. }
                    if name_free_at.is_some_and(|free_at| free_at <= begun) =>
                {
                    return Err(self.refused(reason));
                }
                SessionEnd::NameTaken { reason, free_in } => {
                    n_failed = n_failed.saturating_add(1);
                    if name_free_at.is_none() {
                        tracing::info!(worker_id = %self.worker, reason, "name taken, waiting");
                        self.telling.name_taken(&self.worker, free_in);
                        name_free_at = Some(Instant::now() + free_in.min(NAME_WAIT_MAX));
                    }
                }
                SessionEnd::Broken { reason, was_welcome } => {
                    if was_welcome {
                        (n_failed, name_free_at) = (0, None);
                    }
                    n_failed = n_failed.saturating_add(1);
                    tracing::debug!(worker_id = %self.worker, n_failed, reason, "session ended, dialling again");
                    self.telling
                        .away(self.address.url(), &reason, tokio::time::Instant::now());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(random::full_jitter(REDIAL_FIRST, REDIAL_MAX, n_failed.min(16))) => {}
                () = self.finished.cancelled() => {}
            }
        }
        Ok(())
    }

    fn refused(&self, reason: String) -> Error {
        Error::RefusedByCoordinator {
            url: self.address.url().to_owned(),
            reason,
        }
    }

    async fn keep_fencing(&self) -> std::convert::Infallible {
        loop {
            let next = self.registry.fence(Instant::now());
            // A lease that begins while this sleeps is due later than `fence_after` from now, but leases may get
            // shorter by a new welcome.
            tokio::time::sleep_until(next.min(Instant::now() + NEWS_PERIOD).into()).await;
        }
    }

    async fn session(&self) -> SessionEnd {
        let broken = |reason: String| SessionEnd::Broken {
            reason,
            was_welcome: false,
        };
        let (outbox, outgoing) = mpsc::channel::<AttachRequest>(OUTBOX);
        let begun = Instant::now();
        let running = self.registry.running();
        let hello = self.hello(running.clone());
        if outbox.send(FromWorker::Hello(hello).into()).await.is_err() {
            return broken("the stream closed before hello".to_owned());
        }
        let mut client = self.address.client().worker;
        let opened = async {
            let mut incoming = client.attach(ReceiverStream::new(outgoing)).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, tonic::Status>((incoming, first))
        };
        let (incoming, first) = match timeout(WELCOME_TIMEOUT, opened).await {
            Err(_) => return broken("no welcome in time".to_owned()),
            Ok(Err(status)) => return refused_or_broken(&status, false),
            Ok(Ok((_, None))) => return broken("the stream closed without a welcome".to_owned()),
            Ok(Ok((incoming, Some(first)))) => (incoming, first),
        };
        let welcome = match ToWorker::try_from(first) {
            Ok(ToWorker::Welcome(welcome)) => welcome,
            Ok(_) => return broken("the first message was not a welcome".to_owned()),
            Err(error) => return broken(error.to_string()),
        };
        self.telling.connected(self.address.url());
        let session = Session::new(self, outbox, incoming, welcome, (begun, attempts(&running)));
        session.run().await
    }

    fn hello(&self, running: Vec<RunningAttempt>) -> Hello {
        Hello {
            worker: self.worker.clone(),
            incarnation: self.incarnation.clone(),
            device: self.device.clone(),
            credits: self.offered(),
            running,
            directory: Some(self.directory.clone()),
        }
    }

    fn offered(&self) -> Credits {
        if self.registry.draining().is_cancelled() {
            Credits::default()
        } else {
            self.credits
        }
    }
}

/// A session that was welcomed.
struct Session<'a> {
    link: &'a Link,
    outbox: mpsc::Sender<AttachRequest>,
    incoming: Streaming<AttachResponse>,
    lease: Duration,
    heartbeat: Interval,
    seq: u64,
    /// Heartbeats sent and not yet answered: number, when, and what they listed.
    unanswered: VecDeque<(u64, Instant, Vec<AttemptId>)>,
    answered_at: Instant,
    offered: Credits,
}

impl<'a> Session<'a> {
    fn new(
        link: &'a Link,
        outbox: mpsc::Sender<AttachRequest>,
        incoming: Streaming<AttachResponse>,
        welcome: Welcome,
        (begun, told): (Instant, Vec<AttemptId>),
    ) -> Self {
        let mut heartbeat = interval(welcome.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        link.registry.set_lease(welcome.lease);
        link.registry.renew(&told, begun);
        for id in &welcome.revoked {
            link.registry.stop(id, Stop::Revoked);
        }
        tracing::info!(worker_id = %link.worker, n_running = told.len(), "attached to the coordinator");
        Self {
            link,
            outbox,
            incoming,
            lease: welcome.lease,
            heartbeat,
            seq: 0,
            unanswered: VecDeque::new(),
            answered_at: begun,
            offered: link.offered(),
        }
    }

    async fn run(mut self) -> SessionEnd {
        let mut told_at = Instant::now();
        let mut has_news = false;
        loop {
            tokio::select! {
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(reason) = self.hear(message) {
                            return self.broken(reason);
                        }
                        continue;
                    }
                    Ok(None) => return self.broken("the coordinator closed the stream".to_owned()),
                    Err(status) => return refused_or_broken(&status, true),
                },
                () = self.link.registry.moved(), if !has_news => {
                    has_news = true;
                    continue;
                }
                () = tokio::time::sleep_until((told_at + NEWS_PERIOD).into()), if has_news => {}
                _ = self.heartbeat.tick() => {}
                () = self.link.finished.cancelled() => return self.say_goodbye().await,
            }
            if self.answered_at.elapsed() > self.lease {
                return self.broken("no heartbeat was answered for a whole lease".to_owned());
            }
            if let Err(end) = self.tell().await {
                return end;
            }
            (told_at, has_news) = (Instant::now(), false);
        }
    }

    /// Sends a heartbeat, and credits when they changed.
    async fn tell(&mut self) -> Result<(), SessionEnd> {
        let offered = self.link.offered();
        if offered != self.offered {
            self.offered = offered;
            self.send(FromWorker::Credits(offered)).await?;
        }
        self.seq += 1;
        let running = self.link.registry.running();
        if self.unanswered.len() >= UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered
            .push_back((self.seq, Instant::now(), attempts(&running)));
        self.send(FromWorker::Heartbeat(Heartbeat {
            seq: self.seq,
            running,
        }))
        .await
    }

    async fn send(&self, message: FromWorker) -> Result<(), SessionEnd> {
        // A full outbox that does not move is a dead stream.
        match timeout(self.lease, self.outbox.send(message.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.broken("the stream takes no more messages".to_owned())),
        }
    }

    fn hear(&mut self, message: AttachResponse) -> Result<(), String> {
        let registry = &self.link.registry;
        match ToWorker::try_from(message).map_err(|error| error.to_string())? {
            ToWorker::Welcome(_) => return Err("a second welcome".to_owned()),
            ToWorker::Assignment(assignment) => self.take(*assignment),
            ToWorker::Cancel { attempt, reason } => registry.stop(&attempt, Stop::Cancelled(reason)),
            ToWorker::Drain => registry.drain(),
            ToWorker::HeartbeatAck { seq, revoked } => {
                self.answered(seq);
                for id in &revoked {
                    registry.stop(id, Stop::Revoked);
                }
            }
        }
        Ok(())
    }

    /// A lease counts from when the heartbeat was sent: the coordinator cannot have renewed it earlier.
    fn answered(&mut self, seq: u64) {
        while let Some((sent_seq, sent_at, listed)) = self.unanswered.pop_front() {
            if sent_seq > seq {
                self.unanswered.push_front((sent_seq, sent_at, listed));
                return;
            }
            if sent_seq == seq {
                self.answered_at = self.answered_at.max(sent_at);
                self.link.registry.renew(&listed, sent_at);
            }
        }
    }

    fn take(&self, assignment: Assignment) {
        let id = assignment.attempt.clone();
        let Some(handle) = self.link.registry.begin(id.clone(), Instant::now()) else {
            return;
        };
        if let Err(error) = self.link.assignments.try_send((assignment, handle)) {
            // More than the credits allow, or the worker is gone: unlisted, its lease runs out.
            tracing::error!(run_id = %id.run, task_id = %id.task, reason = %error, "an assignment could not be taken");
            self.link.registry.forget(&id);
        }
    }

    async fn say_goodbye(self) -> SessionEnd {
        let goodbye = FromWorker::Goodbye {
            reason: "the worker has finished".to_owned(),
        };
        if self.send(goodbye).await.is_ok() {
            // Closing our half says that nothing follows; the coordinator closes its own once it has read that.
            let Self {
                outbox, mut incoming, ..
            } = self;
            drop(outbox);
            let drained = async { while let Ok(Some(_)) = incoming.message().await {} };
            let _closed_or_not = timeout(NEWS_PERIOD * 8, drained).await;
        }
        SessionEnd::Finished
    }

    fn broken(&self, reason: String) -> SessionEnd {
        SessionEnd::Broken {
            reason,
            was_welcome: true,
        }
    }
}

fn attempts(running: &[RunningAttempt]) -> Vec<AttemptId> {
    running.iter().map(|running| running.attempt.clone()).collect()
}

/// Some answers will not change by asking again.
fn refused_or_broken(status: &tonic::Status, was_welcome: bool) -> SessionEnd {
    if let Some(free_in) = name_free_in(status) {
        let reason = status.message().to_owned();
        return SessionEnd::NameTaken { reason, free_in };
    }
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            SessionEnd::Refused(status.message().to_owned())
        }
        Code::Unimplemented => SessionEnd::Refused(format!(
            "it knows no workers ({}); check its address, and that both are of one release",
            status.message()
        )),
        _ => SessionEnd::Broken {
            reason: deepest(status),
            was_welcome,
        },
    }
}

/// When the name is free that another process has, where that is what the status says.
fn name_free_in(status: &tonic::Status) -> Option<Duration> {
    let is_taken = status.get_details_error_info()?.reason == "WORKER_NAME_TAKEN";
    status.get_details_retry_info().filter(|_| is_taken)?.retry_delay
}
