//! Artifacts for a worker: the coordinator's own directory where they share a disk, else over gRPC with a cache.
//!
//! Invariant: bytes handed out hash to their digest, and bytes that were put are on this machine's disk before
//! anybody is told their digest.

use std::path::Path;

use llamaduo_artifacts::{Digest, Directory};
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::wire::{
    DownloadArtifactRequest, FindArtifactsRequest, UploadArtifactRequest, UploadArtifactResponse,
};
use tokio_util::sync::CancellationToken;

use crate::coordinator::{CALL_TIMEOUT, Coordinator, TRANSFER_TIMEOUT, patiently};
use crate::error::Error;

/// Bytes of a chunk: what the service allows, well below gRPC's bound of 4 MiB a message.
const CHUNK_BYTES: usize = 1 << 20;

/// Longest artifact taken over the network: adapters and checkpoints of the largest supported models are smaller,
/// and it is held in memory.
const ARTIFACT_BYTES_MAX: usize = 4 << 30;

/// The artifacts of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    /// Shared with the coordinator, or this worker's cache.
    directory: Directory,
    /// Where the cache is filled from and emptied to; nothing when the directory is shared.
    remote: Option<Coordinator>,
}

impl Artifacts {
    /// The coordinator's own directory.
    pub(crate) fn shared(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            directory: Directory::open(path)?,
            remote: None,
        })
    }

    /// A cache at `path` of what the coordinator keeps.
    pub(crate) fn remote(path: &Path, coordinator: Coordinator) -> Result<Self, Error> {
        Ok(Self {
            directory: Directory::open(path)?,
            remote: Some(coordinator),
        })
    }

    /// The bytes of an artifact.
    pub(crate) async fn get(&self, digest: Digest, stopped: &CancellationToken) -> Result<Vec<u8>, Error> {
        let cached = self.on_disk(move |directory| directory.get(&digest)).await;
        let Some(coordinator) = &self.remote else {
            return cached;
        };
        match cached {
            // A damaged copy has been moved aside; the coordinator's is fetched in its place.
            Err(Error::Artifact(
                llamaduo_artifacts::Error::Missing { .. } | llamaduo_artifacts::Error::Damaged { .. },
            )) => {
                let bytes = download(coordinator, digest, stopped).await?;
                self.keep(bytes.clone()).await?;
                Ok(bytes)
            }
            other => other,
        }
    }

    /// The text of an artifact; `expected` says what it should be.
    pub(crate) async fn get_text(
        &self,
        digest: Digest,
        expected: &'static str,
        stopped: &CancellationToken,
    ) -> Result<String, Error> {
        let bytes = self.get(digest, stopped).await?;
        String::from_utf8(bytes).map_err(Error::content(digest, expected))
    }

    /// A manifest.
    pub(crate) async fn get_manifest(
        &self,
        digest: Digest,
        stopped: &CancellationToken,
    ) -> Result<Manifest, Error> {
        let bytes = self.get(digest, stopped).await?;
        serde_json::from_slice(&bytes).map_err(Error::content(digest, "a manifest"))
    }

    /// Stores bytes where the coordinator can find them.
    pub(crate) async fn put(&self, bytes: Vec<u8>, stopped: &CancellationToken) -> Result<Digest, Error> {
        let digest = self.keep(bytes).await?;
        self.publish(digest, stopped).await?;
        Ok(digest)
    }

    /// Stores a manifest, keys sorted.
    pub(crate) async fn put_manifest(
        &self,
        manifest: &Manifest,
        stopped: &CancellationToken,
    ) -> Result<Digest, Error> {
        let bytes = serde_json::to_vec(manifest).map_err(|source| Error::Encode {
            what: "a manifest",
            source,
        })?;
        self.put(bytes, stopped).await
    }

    /// Stores bytes on this machine's disk.
    pub(crate) async fn keep(&self, bytes: Vec<u8>) -> Result<Digest, Error> {
        self.on_disk(move |directory| directory.put(&bytes)).await
    }

    /// Removes this worker's own copy of bytes that it made and nobody asks it for any more. What is shared is the
    /// coordinator's to remove.
    pub(crate) async fn let_go(&self, digest: Digest) {
        if self.remote.is_some()
            && let Err(error) = self.on_disk(move |directory| directory.remove(&digest)).await
        {
            tracing::warn!(%digest, reason = error.message(), "an old copy stays");
        }
    }

    /// Sends bytes that were kept to the coordinator, unless it has them.
    pub(crate) async fn publish(&self, digest: Digest, stopped: &CancellationToken) -> Result<(), Error> {
        let Some(coordinator) = &self.remote else {
            return Ok(());
        };
        let request = FindArtifactsRequest {
            digests: vec![digest.to_string()],
        };
        let found = patiently("find an artifact", CALL_TIMEOUT, stopped, || {
            let (mut client, request) = (coordinator.artifacts.clone(), request.clone());
            async move { client.find_artifacts(request).await }
        })
        .await?;
        if !found.found.is_empty() {
            return Ok(());
        }
        let bytes = self.on_disk(move |directory| directory.get(&digest)).await?;
        let chunks = chunks(digest, &bytes);
        let stored: UploadArtifactResponse =
            patiently("store an artifact", TRANSFER_TIMEOUT, stopped, || {
                let (mut client, chunks) = (coordinator.artifacts.clone(), chunks.clone());
                async move { client.upload_artifact(tokio_stream::iter(chunks)).await }
            })
            .await?;
        if stored.digest != digest.to_string() {
            return Err(Error::Task {
                what: "the digest of an uploaded artifact",
                expected: digest.to_string(),
                found: stored.digest,
            });
        }
        Ok(())
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, llamaduo_artifacts::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = self.directory.clone();
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        Ok(done.map_err(|_| Error::Gone("disk task"))??)
    }
}

/// Never empty: an artifact of no bytes is one empty chunk.
fn chunks(digest: Digest, bytes: &[u8]) -> Vec<UploadArtifactRequest> {
    let mut expected = digest.to_string();
    let mut request = |chunk: &[u8]| UploadArtifactRequest {
        chunk: chunk.to_vec(),
        expected_digest: std::mem::take(&mut expected),
    };
    if bytes.is_empty() {
        vec![request(&[])]
    } else {
        bytes.chunks(CHUNK_BYTES).map(request).collect()
    }
}

/// An interrupted download begins anew: it is checked as a whole anyway.
async fn download(
    coordinator: &Coordinator,
    digest: Digest,
    stopped: &CancellationToken,
) -> Result<Vec<u8>, Error> {
    let bytes = patiently("send an artifact", TRANSFER_TIMEOUT, stopped, || {
        let mut client = coordinator.artifacts.clone();
        async move {
            let request = DownloadArtifactRequest {
                digest: digest.to_string(),
            };
            let mut stream = client.download_artifact(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(message) = stream.message().await? {
                if bytes.len() + message.chunk.len() > ARTIFACT_BYTES_MAX {
                    return Err(tonic::Status::out_of_range("the artifact is larger than 4 GiB"));
                }
                bytes.extend_from_slice(&message.chunk);
            }
            Ok(tonic::Response::new(bytes))
        }
    });
    let bytes = bytes.await.map_err(|error| missing(error, digest))?;
    let actual = Digest::of(&bytes);
    if actual == digest {
        return Ok(bytes);
    }
    Err(Error::Task {
        what: "the digest of a downloaded artifact",
        expected: digest.to_string(),
        found: actual.to_string(),
    })
}

fn missing(error: Error, digest: Digest) -> Error {
    match error {
        Error::Coordinator { source, .. } if source.code() == tonic::Code::NotFound => {
            llamaduo_artifacts::Error::Missing { digest }.into()
        }
        other => other,
    }
}
