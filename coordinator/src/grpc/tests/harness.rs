//! A coordinator in this process and workers that do as the test says.

use std::path::Path;
use std::time::Duration;

use llamaduo_artifacts::Directory;
use llamaduo_proto::event::{RunEvent, RunEventKind};
use llamaduo_proto::ids::{AttemptId, DirectoryId, Incarnation, RequestId, RunId, WorkerId};
use llamaduo_proto::run::RunSpec;
use llamaduo_proto::session::*;
use llamaduo_proto::task::{FailureKind, TaskResult};
use llamaduo_proto::view::{ResumeRun, RunDetails, SubmitRun};
use llamaduo_proto::wire;
use llamaduo_proto::wire::run_service_client::RunServiceClient;
use llamaduo_proto::wire::worker_service_client::WorkerServiceClient;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_types::StatusExt;

use super::made_up;
use crate::{Error, Options, StateLocation, serve};

/// Nothing in these tests takes longer unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a waiting worker gives a sign of life: often enough for the shortest lease of these tests.
const SIGN_OF_LIFE: Duration = Duration::from_millis(100);

/// A coordinator with its directory.
pub(super) struct Cluster {
    directory: tempfile::TempDir,
    pub(super) artifacts: Directory,
    pub(super) channel: Channel,
    pub(super) url: String,
    lease: Duration,
    serving: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::start_with_lease(crate::LEASE).await
    }

    pub(super) async fn start_with_lease(lease: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let artifacts = Directory::open(directory.path().join("artifacts")).expect("a new directory");
        let (serving, stop, url) = launch(directory.path(), lease).await;
        let channel = connect(&url).await;
        Self {
            directory,
            artifacts,
            channel,
            url,
            lease,
            serving,
            stop,
        }
    }

    /// Stops the coordinator and starts another on the same state.
    pub(super) async fn restart(&mut self) {
        self.shut_down().await;
        (self.serving, self.stop, self.url) = launch(self.directory.path(), self.lease).await;
        self.channel = connect(&self.url).await;
    }

    pub(super) async fn shut_down(&mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.serving.join_next())
            .await
            .expect("it stops in time");
        ended
            .expect("it was running")
            .expect("no panic")
            .expect("it ends well");
    }

    pub(super) fn client(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    pub(super) fn spec(&self) -> RunSpec {
        made_up::spec(&self.artifacts)
    }

    pub(super) async fn submit(&self, spec: RunSpec) -> RunId {
        let request = RequestId::new("request-1").expect("a valid id");
        let submitted = self
            .client()
            .submit_run(wire::SubmitRunRequest::from(SubmitRun { request, spec }))
            .await;
        RunId::new(&submitted.expect("accepted").into_inner().run_id).expect("a valid id")
    }

    pub(super) async fn details(&self, run: &RunId) -> RunDetails {
        let request = wire::GetRunRequest {
            run_id: run.to_string(),
        };
        let answer = self
            .client()
            .get_run(request)
            .await
            .expect("the run exists")
            .into_inner();
        RunDetails::try_from(answer).expect("a valid answer")
    }

    pub(super) async fn resume(&self, resume: ResumeRun) -> Result<(), Status> {
        self.client()
            .resume_run(wire::ResumeRunRequest::from(resume))
            .await
            .map(|_| ())
    }

    /// Every event of a run until it has ended, checked for gaps.
    pub(super) async fn events(&self, run: &RunId, from_seq: u64) -> Vec<RunEvent> {
        let request = wire::WatchEventsRequest {
            run_id: run.to_string(),
            from_seq,
            progress: false,
        };
        let mut stream = self
            .client()
            .watch_events(request)
            .await
            .expect("the run exists")
            .into_inner();
        let mut events: Vec<RunEvent> = Vec::new();
        let all = async {
            while let Some(message) = stream.message().await.expect("the stream goes on") {
                let event = message.event.expect("never absent");
                events.push(RunEvent::try_from(event).expect("a valid event"));
            }
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .expect("the run ends in time");
        for (event, seq) in events.iter().zip(from_seq.max(1)..) {
            assert_eq!(event.seq, seq, "numbered without gaps");
        }
        assert!(matches!(
            events.last().map(|event| &event.kind),
            Some(RunEventKind::RunEnded { .. })
        ));
        events
    }

    pub(super) async fn worker(&self, name: &str) -> Worker {
        self.worker_with(name, 1, Vec::new())
            .await
            .expect("it may attach")
    }

    pub(super) async fn worker_with(
        &self,
        name: &str,
        process: u32,
        running: Vec<RunningAttempt>,
    ) -> Result<Worker, Status> {
        self.worker_from(name, process, Some(name), running).await
    }

    pub(super) async fn worker_from(
        &self,
        name: &str,
        process: u32,
        directory: Option<&str>,
        running: Vec<RunningAttempt>,
    ) -> Result<Worker, Status> {
        Worker::attach(self, (name, process), directory, running).await
    }
}

async fn launch(
    directory: &Path,
    lease: Duration,
) -> (JoinSet<Result<(), Error>>, CancellationToken, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let state = StateLocation::Redb(directory.join("state.redb"));
    let options = Options {
        lease,
        heartbeat: lease / 3,
        ..Options::new(state, directory.join("artifacts"))
    };
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(serve(options, listener, stop.clone()));
    (serving, stop, url)
}

async fn connect(url: &str) -> Channel {
    Channel::from_shared(url.to_owned())
        .expect("a valid URL")
        .connect()
        .await
        .expect("the coordinator listens")
}

/// The reason in a status's details.
pub(super) fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

/// A worker that does what it is told by the test.
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) client: WorkerServiceClient<Channel>,
    pub(super) artifacts: Directory,
    pub(super) revoked: Vec<AttemptId>,
    pub(super) cancelled: Vec<AttemptId>,
    outbox: mpsc::Sender<wire::AttachRequest>,
    inbound: Streaming<wire::AttachResponse>,
    n_heartbeats: u64,
}

impl Worker {
    async fn attach(
        cluster: &Cluster,
        (name, process): (&str, u32),
        directory: Option<&str>,
        running: Vec<RunningAttempt>,
    ) -> Result<Self, Status> {
        let id = WorkerId::new(name).expect("a valid id");
        let hello = Hello {
            worker: id.clone(),
            incarnation: Incarnation::new(&format!("{name}-{process}")).expect("a valid id"),
            device: "none".to_owned(),
            credits: Credits {
                local_model_slots: 1,
                service_slots: 2,
            },
            running,
            directory: directory.map(|name| DirectoryId::new(name).expect("a valid id")),
        };
        let (outbox, messages) = mpsc::channel(16);
        outbox
            .send(FromWorker::Hello(hello).into())
            .await
            .expect("the stream is open");
        let mut client = WorkerServiceClient::new(cluster.channel.clone());
        let inbound = client.attach(ReceiverStream::new(messages)).await?.into_inner();
        let mut worker = Self {
            id,
            client,
            artifacts: cluster.artifacts.clone(),
            revoked: Vec::new(),
            cancelled: Vec::new(),
            outbox,
            inbound,
            n_heartbeats: 0,
        };
        match worker.next().await {
            Some(ToWorker::Welcome(welcome)) => worker.revoked = welcome.revoked,
            other => panic!("a welcome comes first, not {other:?}"),
        }
        Ok(worker)
    }

    /// The next message; `None` when the stream ended.
    pub(super) async fn next(&mut self) -> Option<ToWorker> {
        let message = tokio::time::timeout(PATIENCE, self.inbound.message())
            .await
            .expect("a message in time");
        message
            .ok()
            .flatten()
            .map(|message| ToWorker::try_from(message).expect("a valid message"))
    }

    /// The next assignment, noting what is cancelled or revoked before it. Gives signs of life while it waits, but
    /// renews nothing.
    pub(super) async fn assignment(&mut self) -> Assignment {
        let waiting_since = tokio::time::Instant::now();
        loop {
            assert!(waiting_since.elapsed() < PATIENCE, "an assignment in time");
            let Ok(message) = tokio::time::timeout(SIGN_OF_LIFE, self.inbound.message()).await else {
                self.n_heartbeats += 1;
                let heartbeat = Heartbeat {
                    seq: self.n_heartbeats,
                    running: Vec::new(),
                };
                self.say(FromWorker::Heartbeat(heartbeat)).await;
                continue;
            };
            let message = message
                .expect("the session goes on")
                .expect("the session goes on");
            match ToWorker::try_from(message).expect("a valid message") {
                ToWorker::Assignment(assignment) => return *assignment,
                other => self.note(other),
            }
        }
    }

    fn note(&mut self, message: ToWorker) {
        match message {
            ToWorker::Cancel { attempt, .. } => self.cancelled.push(attempt),
            ToWorker::HeartbeatAck { revoked, .. } => self.revoked.extend(revoked),
            ToWorker::Welcome(_) | ToWorker::Assignment(_) | ToWorker::Drain => {}
        }
    }

    /// Sends a heartbeat and waits for its acknowledgement.
    pub(super) async fn heartbeat(&mut self, running: Vec<RunningAttempt>) {
        self.n_heartbeats += 1;
        let heartbeat = Heartbeat {
            seq: self.n_heartbeats,
            running,
        };
        self.outbox
            .send(FromWorker::Heartbeat(heartbeat).into())
            .await
            .expect("the stream is open");
        loop {
            let message = self.next().await.expect("the session goes on");
            let is_ack = matches!(&message, ToWorker::HeartbeatAck { seq, .. } if *seq == self.n_heartbeats);
            self.note(message);
            if is_ack {
                return;
            }
        }
    }

    pub(super) async fn say(&self, message: FromWorker) {
        self.outbox
            .send(message.into())
            .await
            .expect("the stream is open");
    }

    pub(super) fn result(&self, assignment: &Assignment) -> TaskResult {
        made_up::result_of(&self.artifacts, &assignment.spec)
    }

    /// Reports a made-up result; says whether it was a repetition.
    pub(super) async fn complete(&mut self, assignment: &Assignment) -> Result<bool, Status> {
        let outcome = AttemptOutcome::Done(self.result(assignment));
        self.report(&assignment.attempt, outcome).await
    }

    pub(super) async fn fail(&mut self, assignment: &Assignment, kind: FailureKind) -> Result<bool, Status> {
        let failure = AttemptFailure {
            kind,
            message: "as the test says".to_owned(),
            checkpoint: None,
        };
        self.report(&assignment.attempt, AttemptOutcome::Failed(failure))
            .await
    }

    async fn report(&mut self, attempt: &AttemptId, outcome: AttemptOutcome) -> Result<bool, Status> {
        let completion = Completion {
            attempt: attempt.clone(),
            worker: self.id.clone(),
            outcome,
        };
        let answer = self
            .client
            .complete_attempt(wire::CompleteAttemptRequest::from(completion))
            .await?;
        Ok(answer.into_inner().repeated_completion)
    }

    /// Does whatever it is given until `until` is done.
    pub(super) async fn work_until<T>(&mut self, until: impl Future<Output = T>) -> T {
        let mut until = std::pin::pin!(until);
        loop {
            let assignment = tokio::select! {
                done = &mut until => return done,
                assignment = self.assignment() => assignment,
            };
            // A cancelled run refuses what its workers still report.
            let _ = self.complete(&assignment).await;
        }
    }
}

/// An attempt as a heartbeat lists it.
pub(super) fn running(assignment: &Assignment) -> RunningAttempt {
    RunningAttempt {
        attempt: assignment.attempt.clone(),
        progress: None,
        checkpoint: None,
    }
}
