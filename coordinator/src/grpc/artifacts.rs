//! `ArtifactService`: bytes for those who do not share the artifact directory.
//!
//! Invariant: no artifact is ever held in memory whole; chunks pass through bounded queues.

use std::io::{self, Read};
use std::pin::Pin;
use std::time::Duration;

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

/// Longest artifact: what a worker takes, who holds it in memory.
const ARTIFACT_BYTES_MAX: u64 = 4 << 30;
/// A client that sends nothing for so long has gone; its connection may not know yet.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// Uploads at once: each has a thread of its own and some chunks in memory. Further ones wait for their turn.
pub(super) const UPLOADS_MAX: usize = 32;

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
        let _slot = tokio::select! {
            slot = self.uploads.acquire() => slot.map_err(|_| status::stopping())?,
            () = self.stop.cancelled() => return Err(status::stopping()),
        };
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let artifacts = self.runs.shared().artifacts.clone();
        let chunks = Chunks {
            receiver,
            current: io::Cursor::default(),
        };
        let storing = self.tasks.spawn_blocking(move || artifacts.put_reader(chunks));
        let mut expected = None;
        let mut n_bytes = 0_u64;
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(CHUNK_TIMEOUT, inbound.message()) => message,
                () = self.stop.cancelled() => Ok(Err(status::stopping())),
            };
            let chunk = match message {
                Ok(Ok(Some(message))) => {
                    if !message.expected_digest.is_empty() {
                        expected = Some(message.expected_digest);
                    }
                    n_bytes = n_bytes.saturating_add(message.chunk.len() as u64);
                    bounded(message.chunk, n_bytes)
                }
                Ok(Ok(None)) => break,
                Ok(Err(status)) => Err(status.message().to_owned()),
                Err(_) => Err(format!("no chunk came within {} s", CHUNK_TIMEOUT.as_secs())),
            };
            let is_last = chunk.is_err();
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

/// A chunk, the last of `n_bytes` so far, or why it is not taken.
fn bounded(chunk: Vec<u8>, n_bytes: u64) -> Result<Vec<u8>, String> {
    if chunk.len() > CHUNK_BYTES_MAX {
        Err("a chunk is larger than 1 MiB".to_owned())
    } else if n_bytes > ARTIFACT_BYTES_MAX {
        Err("the artifact is larger than 4 GiB".to_owned())
    } else {
        Ok(chunk)
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
            Err(error) => Err(status::try_again(format!(
                "the artifact could not be read to its end: {error}"
            ))),
        };
        let is_last = message.is_err();
        if sender.blocking_send(message).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_taken_until_the_artifact_is_too_long() {
        assert_eq!(bounded(vec![1], ARTIFACT_BYTES_MAX), Ok(vec![1]));
        let longer = bounded(vec![1], ARTIFACT_BYTES_MAX + 1).expect_err("too long");
        assert!(longer.contains("4 GiB"), "{longer}");
        let wider = bounded(vec![0; CHUNK_BYTES_MAX + 1], 1).expect_err("too large");
        assert!(wider.contains("1 MiB"), "{wider}");
    }
}
