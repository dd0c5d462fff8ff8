//! A coordinator that speaks the real protocol over real gRPC and does what a test tells it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::session::{Completion, EndCall, FromWorker, Hello, RunningAttempt, ToWorker, Welcome};
use llamaduo_proto::wire;
use llamaduo_proto::wire::artifact_service_server::{ArtifactService, ArtifactServiceServer};
use llamaduo_proto::wire::worker_service_server::{WorkerService, WorkerServiceServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What the coordinator has seen and how it behaves.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) running: Vec<RunningAttempt>,
    pub(crate) goodbyes: usize,
    pub(crate) completions: Vec<Completion>,
    pub(crate) ended_calls: Vec<EndCall>,
    pub(crate) begun_calls: usize,
    pub(crate) replies: HashMap<String, String>,
    pub(crate) artifacts: HashMap<String, Vec<u8>>,
    /// Answers to `CompleteAttempt` and `EndCall` before it takes one.
    pub(crate) refusals: Vec<Status>,
    /// Refuses every session.
    pub(crate) refuse_attach: Option<Status>,
    /// Sessions refused so far.
    pub(crate) n_refused: usize,
    pub(crate) silent: bool,
    pub(crate) revoke_on_ack: Vec<wire::AttemptId>,
    pub(crate) budget_spent: bool,
    /// Times that `BeginCall` is answered with "wait" first.
    pub(crate) waits: u32,
    /// Answers no `EndCall`.
    pub(crate) hang_end_call: bool,
    sessions: Vec<mpsc::Sender<Result<wire::AttachResponse, Status>>>,
}

/// A running coordinator; ends with the value, or by `stop`.
pub(crate) struct ScriptedCoordinator {
    pub(crate) url: String,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    lease: Duration,
    stopped: CancellationToken,
    server: JoinSet<()>,
}

#[derive(Clone)]
struct Service {
    ledger: Arc<Mutex<Ledger>>,
    lease: Duration,
    stopped: CancellationToken,
    readers: Arc<Mutex<JoinSet<()>>>,
}

impl ScriptedCoordinator {
    pub(crate) async fn start(lease: Duration) -> Self {
        Self::start_at("127.0.0.1:0", lease, Arc::default()).await
    }

    async fn start_at(address: &str, lease: Duration, ledger: Arc<Mutex<Ledger>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stopped = CancellationToken::new();
        let readers = Arc::default();
        let service = Service {
            ledger: Arc::clone(&ledger),
            lease,
            stopped: stopped.clone(),
            readers,
        };
        let mut server = JoinSet::new();
        let end = stopped.clone();
        server.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(WorkerServiceServer::new(service.clone()))
                .add_service(ArtifactServiceServer::new(service))
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), end.cancelled())
                .await
                .unwrap();
        });
        Self {
            url,
            ledger,
            lease,
            stopped,
            server,
        }
    }

    /// Dies: every connection breaks and the port is closed.
    pub(crate) async fn kill(&mut self) {
        self.ledger.lock().unwrap().sessions.clear();
        self.stopped.cancel();
        self.server.shutdown().await;
    }

    /// Comes back at the same address, remembering what it knew.
    pub(crate) async fn revive(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        *self = Self::start_at(&address, self.lease, Arc::clone(&self.ledger)).await;
    }

    /// Sends a message on the newest session.
    pub(crate) async fn send(&self, message: ToWorker) {
        let session = self.ledger.lock().unwrap().sessions.last().unwrap().clone();
        session.send(Ok(message.into())).await.unwrap();
    }

    /// Waits until `seen` says yes, at most 10 s.
    pub(crate) async fn until(&self, what: &str, seen: impl Fn(&Ledger) -> bool) {
        for _ in 0..1000 {
            if seen(&self.ledger.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited 10 s for {what}: {:?}", self.ledger.lock().unwrap());
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut self.ledger.lock().unwrap());
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type AttachStream = ReceiverStream<Result<wire::AttachResponse, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        {
            let mut ledger = self.ledger.lock().unwrap();
            if let Some(status) = ledger.refuse_attach.clone() {
                ledger.n_refused += 1;
                return Err(status);
            }
        }
        let mut incoming = request.into_inner();
        let (outbox, outgoing) = mpsc::channel(64);
        let service = self.clone();
        self.readers.lock().unwrap().spawn(async move {
            loop {
                let message = tokio::select! {
                    message = incoming.message() => message,
                    () = service.stopped.cancelled() => return,
                };
                let Ok(Some(message)) = message else { return };
                let reply = service.hear(FromWorker::try_from(message).unwrap(), &outbox);
                if let Some(reply) = reply
                    && outbox.send(Ok(reply.into())).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn complete_attempt(
        &self,
        request: Request<wire::CompleteAttemptRequest>,
    ) -> Result<Response<wire::CompleteAttemptResponse>, Status> {
        let mut ledger = self.ledger.lock().unwrap();
        if let Some(status) = ledger.refusals.pop() {
            return Err(status);
        }
        ledger
            .completions
            .push(Completion::try_from(request.into_inner()).unwrap());
        Ok(Response::new(wire::CompleteAttemptResponse {
            repeated_completion: false,
        }))
    }

    async fn begin_call(
        &self,
        request: Request<wire::BeginCallRequest>,
    ) -> Result<Response<wire::BeginCallResponse>, Status> {
        let mut ledger = self.ledger.lock().unwrap();
        use wire::begin_call_response::Answer;
        let answer = match ledger.replies.get(&request.get_ref().call_hash) {
            Some(digest) => Answer::CachedDigest(digest.clone()),
            None if ledger.budget_spent => Answer::BudgetSpent("raise budget.usd".to_owned()),
            None if ledger.waits > 0 => {
                ledger.waits -= 1;
                Answer::Wait("calls are under way".to_owned())
            }
            None => {
                ledger.begun_calls += 1;
                Answer::Reservation(request.get_ref().reservation.clone())
            }
        };
        Ok(Response::new(wire::BeginCallResponse { answer: Some(answer) }))
    }

    async fn end_call(
        &self,
        request: Request<wire::EndCallRequest>,
    ) -> Result<Response<wire::EndCallResponse>, Status> {
        if self.ledger.lock().unwrap().hang_end_call {
            self.stopped.cancelled().await;
            return Err(Status::unavailable("hung"));
        }
        let mut ledger = self.ledger.lock().unwrap();
        if let Some(status) = ledger.refusals.pop() {
            return Err(status);
        }
        let request = request.into_inner();
        if let Some(wire::end_call_request::Outcome::Reply(reply)) = &request.outcome {
            ledger
                .replies
                .insert(request.call_hash.clone(), reply.reply_digest.clone());
        }
        ledger.ended_calls.push(EndCall::try_from(request).unwrap());
        Ok(Response::new(wire::EndCallResponse {}))
    }
}

impl Service {
    fn hear(
        &self,
        message: FromWorker,
        outbox: &mpsc::Sender<Result<wire::AttachResponse, Status>>,
    ) -> Option<ToWorker> {
        let mut ledger = self.ledger.lock().unwrap();
        match message {
            FromWorker::Hello(hello) => {
                ledger.hellos.push(hello);
                ledger.sessions.push(outbox.clone());
                let heartbeat = self.lease / 5;
                Some(ToWorker::Welcome(Welcome {
                    lease: self.lease,
                    heartbeat,
                    revoked: Vec::new(),
                }))
            }
            FromWorker::Heartbeat(heartbeat) => {
                ledger.running = heartbeat.running;
                let revoked = ledger
                    .revoke_on_ack
                    .drain(..)
                    .map(|id| id.try_into().unwrap())
                    .collect();
                (!ledger.silent).then_some(ToWorker::HeartbeatAck {
                    seq: heartbeat.seq,
                    revoked,
                })
            }
            FromWorker::Credits(_) => None,
            FromWorker::Goodbye { .. } => {
                ledger.goodbyes += 1;
                ledger.sessions.clear();
                None
            }
        }
    }
}

#[tonic::async_trait]
impl ArtifactService for Service {
    type DownloadArtifactStream = ReceiverStream<Result<wire::DownloadArtifactResponse, Status>>;

    async fn upload_artifact(
        &self,
        request: Request<Streaming<wire::UploadArtifactRequest>>,
    ) -> Result<Response<wire::UploadArtifactResponse>, Status> {
        let mut incoming = request.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = incoming.message().await? {
            assert!(message.chunk.len() <= 1 << 20);
            bytes.extend_from_slice(&message.chunk);
        }
        let digest = Digest::of(&bytes).to_string();
        self.ledger
            .lock()
            .unwrap()
            .artifacts
            .insert(digest.clone(), bytes);
        Ok(Response::new(wire::UploadArtifactResponse { digest }))
    }

    async fn download_artifact(
        &self,
        request: Request<wire::DownloadArtifactRequest>,
    ) -> Result<Response<Self::DownloadArtifactStream>, Status> {
        let bytes = self
            .ledger
            .lock()
            .unwrap()
            .artifacts
            .get(&request.get_ref().digest)
            .cloned();
        let bytes = bytes.ok_or_else(|| Status::not_found("no such artifact"))?;
        let (sender, receiver) = mpsc::channel(64);
        for chunk in bytes.chunks(1 << 20) {
            sender
                .try_send(Ok(wire::DownloadArtifactResponse {
                    chunk: chunk.to_vec(),
                }))
                .unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn find_artifacts(
        &self,
        request: Request<wire::FindArtifactsRequest>,
    ) -> Result<Response<wire::FindArtifactsResponse>, Status> {
        let ledger = self.ledger.lock().unwrap();
        let found = request
            .into_inner()
            .digests
            .into_iter()
            .filter(|digest| ledger.artifacts.contains_key(digest));
        Ok(Response::new(wire::FindArtifactsResponse {
            found: found.collect(),
        }))
    }
}
