//! `ArtifactService`: bytes for those who do not share the artifact directory.
//!
//! Invariant: no artifact is ever held in memory whole; chunks pass through bounded queues.

use std::io::{self, Read};
use std::pin::Pin;

use llamaduo_proto::convert;
use llamaduo_proto::wire;
use llamaduo_proto::wire::artifact_service_server::ArtifactService;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Services, status};

/// Largest chunk in either direction.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Chunks on their way: enough that neither disk nor network waits for the other.
const CHUNKS_IN_FLIGHT: usize = 4;

type Answer<T> = Result<Response<T>, Status>;

/// Chunks of an upload as a reader. `None` in the channel's end is the end; an error breaks the upload off.
struct Chunks {
    receiver: mpsc::Receiver<Result<Vec<u8>, String>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n_bytes = self.current.read(buffer)?;
            if n_bytes > 0 || buffer.is_empty() {
                return Ok(n_bytes);
            }
            match self.receiver.blocking_recv() {
                Some(Ok(chunk)) => self.current = io::Cursor::new(chunk),
                Some(Err(problem)) => return Err(io::Error::other(problem)),
                None => return Ok(0),
            }
        }
    }
}

#[tonic::async_trait]
impl ArtifactService for Services {
    async fn upload_artifact(
        &self,
        request: Request<Streaming<wire::UploadArtifactRequest>>,
    ) -> Answer<wire::UploadArtifactResponse> {
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let artifacts = self.runs.shared().artifacts.clone();
        let chunks = Chunks {
            receiver,
            current: io::Cursor::default(),
        };
        let storing = self.tasks.spawn_blocking(move || artifacts.put_reader(chunks));
        let mut expected = None;
        loop {
            let (chunk, is_last) = match inbound.message().await {
                Ok(Some(message)) if message.chunk.len() > CHUNK_BYTES_MAX => {
                    (Err("a chunk is larger than 1 MiB".to_owned()), true)
                }
                Ok(Some(message)) => {
                    if !message.expected_digest.is_empty() {
                        expected = Some(message.expected_digest);
                    }
                    (Ok(message.chunk), false)
                }
                Ok(None) => break,
                Err(status) => (Err(status.message().to_owned()), true),
            };
            // Fails when storing failed, whose outcome says why.
            if sender.send(chunk).await.is_err() || is_last {
                break;
            }
        }
        drop(sender);
        let stored = storing.await.map_err(|_| status::stopping())?;
        let (digest, _) = stored.map_err(|error| status::of_artifacts(&error))?;
        match expected {
            Some(expected) if expected != digest.to_string() => {
                let message = format!(
                    "the uploaded bytes hash to {digest} where {expected} was expected; upload again"
                );
                Err(status::named(Code::InvalidArgument, "DIGEST_MISMATCH", message))
            }
            _ => Ok(Response::new(wire::UploadArtifactResponse {
                digest: digest.to_string(),
            })),
        }
    }

    type DownloadArtifactStream =
        Pin<Box<dyn Stream<Item = Result<wire::DownloadArtifactResponse, Status>> + Send>>;

    async fn download_artifact(
        &self,
        request: Request<wire::DownloadArtifactRequest>,
    ) -> Answer<Self::DownloadArtifactStream> {
        let digest = convert::digest("digest", &request.get_ref().digest);
        let digest = digest.map_err(|error| status::invalid(&error))?;
        let artifacts = self.runs.shared().artifacts.clone();
        let opening = self
            .tasks
            .spawn_blocking(move || artifacts.open_verified(&digest));
        let opened = opening.await.map_err(|_| status::stopping())?;
        let file = opened.map_err(|error| status::of_artifacts(&error))?;
        let (sender, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        self.tasks.spawn_blocking(move || send_chunks(file, &sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn find_artifacts(
        &self,
        request: Request<wire::FindArtifactsRequest>,
    ) -> Answer<wire::FindArtifactsResponse> {
        let digests = convert::digests("digests", &request.get_ref().digests);
        let digests = digests.map_err(|error| status::invalid(&error))?;
        let artifacts = self.runs.shared().artifacts.clone();
        let finding = self.tasks.spawn_blocking(move || {
            let mut found = Vec::new();
            for digest in digests {
                if artifacts.contains(&digest)? {
                    found.push(digest.to_string());
                }
            }
            Ok(found)
        });
        let found: Result<_, llamaduo_artifacts::Error> = finding.await.map_err(|_| status::stopping())?;
        let found = found.map_err(|error| status::of_artifacts(&error))?;
        Ok(Response::new(wire::FindArtifactsResponse { found }))
    }
}

/// Sends a file chunk by chunk until its end, an error, or until nobody listens.
fn send_chunks(
    mut file: std::fs::File,
    sender: &mpsc::Sender<Result<wire::DownloadArtifactResponse, Status>>,
) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES_MAX);
        let read = file.by_ref().take(CHUNK_BYTES_MAX as u64).read_to_end(&mut chunk);
        let message = match read {
            Ok(0) => return,
            Ok(_) => Ok(wire::DownloadArtifactResponse { chunk }),
            Err(error) => Err(Status::unavailable(format!(
                "the artifact could not be read to its end: {error}"
            ))),
        };
        let is_last = message.is_err();
        if sender.blocking_send(message).is_err() || is_last {
            return;
        }
    }
}
