//! A coordinator as its clients see it: domain types in, domain types out.
//!
//! Invariant: whatever comes off the wire has been checked, and downloaded bytes match their digest.

mod follow;

use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{RequestId, RunId};
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::run::{Budget, RunSpec};
use llamaduo_proto::task::TaskSpec;
use llamaduo_proto::view::{ResumeRun, RunDetails, RunView, SubmitRun, SubmitTask, TaskView, WorkerView};
use llamaduo_proto::wire::{
    self, artifact_service_client::ArtifactServiceClient, run_service_client::RunServiceClient,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::config::plan::Upload;
use crate::error::{Error, Result};

/// A coordinator that does not answer within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one chunk of an upload: what the protocol allows.
const CHUNK_BYTES: usize = 1 << 20;

/// Largest artifact that is held in memory here; an adapter of the largest local models has some 500 MB.
const ARTIFACT_BYTES_MAX: usize = 4 << 30;

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    runs: RunServiceClient<InterceptedService<Channel, Bearer>>,
    artifacts: ArtifactServiceClient<InterceptedService<Channel, Bearer>>,
}

/// Puts the token on every request.
#[derive(Clone, Debug)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects to the coordinator at `url`.
    pub(crate) async fn connect(url: &str, token: Option<&str>) -> Result<Self> {
        let bearer = match token {
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
                    Error::Usage("the token holds characters that no header may; write a token of letters, digits and -".to_owned())
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let failed = |source| Error::Connect {
            url: url.to_owned(),
            source,
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(failed)?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect().await.map_err(failed)?;
        let bearer = Bearer(bearer);
        let client = Self {
            runs: RunServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            artifacts: ArtifactServiceClient::with_interceptor(channel, bearer),
        };
        client.check(url).await?;
        Ok(client)
    }

    /// Whether it is a coordinator that answers, and lets this client in.
    async fn check(&self, url: &str) -> Result<()> {
        let answer = self.runs.clone().list_workers(wire::ListWorkersRequest {}).await;
        match answer {
            Ok(_) => Ok(()),
            // A coordinator names the reason of each refusal in the details.
            Err(status) if status.details().is_empty() => Err(Error::NoCoordinator {
                url: url.to_owned(),
                problem: status.message().to_owned(),
            }),
            Err(status) => Err(refused("use the coordinator")(status)),
        }
    }

    /// Starts a migration; its artifacts must be there. The flag says whether the request made it now.
    pub(crate) async fn submit_run(&self, request: RequestId, spec: RunSpec) -> Result<(RunId, bool)> {
        let message = wire::SubmitRunRequest::from(SubmitRun { request, spec });
        let answer = self
            .runs
            .clone()
            .submit_run(message)
            .await
            .map_err(refused("submit the run"))?
            .into_inner();
        let run = llamaduo_proto::convert::id("run_id", &answer.run_id)?;
        Ok((run, answer.created))
    }

    /// Starts a run of one task. The flag says whether the request made it now.
    pub(crate) async fn submit_task(
        &self,
        request: RequestId,
        name: &str,
        spec: TaskSpec,
        budget: Budget,
    ) -> Result<(RunId, bool)> {
        let message = wire::SubmitTaskRequest::from(SubmitTask {
            request,
            name: name.to_owned(),
            spec,
            budget,
        });
        let answer = self
            .runs
            .clone()
            .submit_task(message)
            .await
            .map_err(refused("submit the task"))?
            .into_inner();
        let run = llamaduo_proto::convert::id("run_id", &answer.run_id)?;
        Ok((run, answer.created))
    }

    /// One run.
    pub(crate) async fn run(&self, run: &RunId) -> Result<RunDetails> {
        let message = wire::GetRunRequest {
            run_id: run.to_string(),
        };
        let answer = self
            .runs
            .clone()
            .get_run(message)
            .await
            .map_err(refused_of(run, "show the run"))?;
        Ok(RunDetails::try_from(answer.into_inner())?)
    }

    /// All runs, newest first.
    pub(crate) async fn list_runs(&self) -> Result<Vec<RunView>> {
        let mut runs = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListRunsRequest {
                page_size: 0,
                page_token,
            };
            let answer = self
                .runs
                .clone()
                .list_runs(message)
                .await
                .map_err(refused("list the runs"))?;
            let answer = answer.into_inner();
            for run in answer.runs {
                runs.push(RunView::try_from(run)?);
            }
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(runs);
            }
        }
    }

    /// The tasks of a run, in order of creation.
    pub(crate) async fn tasks(&self, run: &RunId) -> Result<Vec<TaskView>> {
        let mut tasks = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListTasksRequest {
                run_id: run.to_string(),
                page_size: 0,
                page_token,
            };
            let answer = self
                .runs
                .clone()
                .list_tasks(message)
                .await
                .map_err(refused_of(run, "list the tasks"))?;
            let answer = answer.into_inner();
            for task in answer.tasks {
                tasks.push(TaskView::try_from(task)?);
            }
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(tasks);
            }
        }
    }

    /// The workers with a session.
    pub(crate) async fn list_workers(&self) -> Result<Vec<WorkerView>> {
        let answer = self
            .runs
            .clone()
            .list_workers(wire::ListWorkersRequest {})
            .await
            .map_err(refused("list the workers"))?;
        let workers = answer.into_inner().workers.into_iter();
        Ok(workers
            .map(WorkerView::try_from)
            .collect::<std::result::Result<_, _>>()?)
    }

    /// Ends a run.
    pub(crate) async fn cancel(&self, run: &RunId, reason: &str) -> Result<RunView> {
        let message = wire::CancelRunRequest {
            run_id: run.to_string(),
            reason: reason.to_owned(),
        };
        let answer = self
            .runs
            .clone()
            .cancel_run(message)
            .await
            .map_err(refused_of(run, "cancel the run"))?;
        let run = answer.into_inner().run.ok_or_else(|| absent("run"))?;
        Ok(RunView::try_from(run)?)
    }

    /// Goes on with a run that ended without passing.
    pub(crate) async fn resume(&self, resume: ResumeRun) -> Result<RunView> {
        let run = resume.run.clone();
        let message = wire::ResumeRunRequest::from(resume);
        let answer = self
            .runs
            .clone()
            .resume_run(message)
            .await
            .map_err(refused_of(&run, "resume the run"))?;
        let run = answer.into_inner().run.ok_or_else(|| absent("run"))?;
        Ok(RunView::try_from(run)?)
    }

    /// Makes sure that all of `uploads` are stored.
    pub(crate) async fn upload(&self, uploads: &[Upload]) -> Result<()> {
        for upload in self.missing(uploads).await? {
            self.upload_one(upload).await?;
        }
        Ok(())
    }

    /// Whether all of `uploads` are stored.
    pub(crate) async fn holds(&self, uploads: &[Upload]) -> Result<bool> {
        Ok(self.missing(uploads).await?.is_empty())
    }

    /// Those of `uploads` that are not stored.
    async fn missing<'u>(&self, uploads: &'u [Upload]) -> Result<Vec<&'u Upload>> {
        let digests = uploads.iter().map(|upload| upload.digest.to_string()).collect();
        let message = wire::FindArtifactsRequest { digests };
        let found = self
            .artifacts
            .clone()
            .find_artifacts(message)
            .await
            .map_err(refused("find artifacts"))?;
        let found = found.into_inner().found;
        Ok(uploads
            .iter()
            .filter(|upload| !found.contains(&upload.digest.to_string()))
            .collect())
    }

    async fn upload_one(&self, upload: &Upload) -> Result<()> {
        let expected = upload.digest.to_string();
        let first = wire::UploadArtifactRequest {
            chunk: Vec::new(),
            expected_digest: expected.clone(),
        };
        let chunks = upload
            .bytes
            .chunks(CHUNK_BYTES)
            .map(|chunk| wire::UploadArtifactRequest {
                chunk: chunk.to_vec(),
                expected_digest: String::new(),
            });
        let messages: Vec<_> = std::iter::once(first).chain(chunks).collect();
        let answer = self
            .artifacts
            .clone()
            .upload_artifact(tokio_stream::iter(messages))
            .await;
        let stored = answer.map_err(refused("upload an artifact"))?.into_inner().digest;
        if stored == expected {
            return Ok(());
        }
        let problem = format!("the coordinator stored the {} as {stored}", upload.name);
        Err(Error::Artifact {
            digest: expected,
            problem,
        })
    }

    /// The bytes of an artifact.
    pub(crate) async fn download(&self, digest: Digest) -> Result<Vec<u8>> {
        let message = wire::DownloadArtifactRequest {
            digest: digest.to_string(),
        };
        let answer = self.artifacts.clone().download_artifact(message).await;
        let mut stream = answer.map_err(refused("download an artifact"))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await.map_err(refused("download an artifact"))? {
            if bytes.len() + chunk.chunk.len() > ARTIFACT_BYTES_MAX {
                return Err(artifact(
                    digest,
                    format!("it has more than {ARTIFACT_BYTES_MAX} bytes"),
                ));
            }
            bytes.extend_from_slice(&chunk.chunk);
        }
        let found = Digest::of(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(artifact(digest, format!("the bytes sent hash to {found}")))
        }
    }

    /// The manifest stored under `digest`.
    pub(crate) async fn manifest(&self, digest: Digest) -> Result<Manifest> {
        let bytes = self.download(digest).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| artifact(digest, format!("it is no manifest ({error})")))
    }
}

fn artifact(digest: Digest, problem: String) -> Error {
    Error::Artifact {
        digest: digest.to_string(),
        problem,
    }
}

fn absent(field: &str) -> Error {
    Error::Protocol(llamaduo_proto::convert::InvalidMessage::new(
        field, "a value", "nothing",
    ))
}

/// What the coordinator's refusal means for what was being done.
fn refused(doing: &'static str) -> impl Fn(Status) -> Error {
    move |status| Error::Refused {
        doing,
        code: status.code(),
        message: status.message().to_owned(),
    }
}

/// The same of what is asked of one run, which is the only thing that may be unknown then.
fn refused_of(run: &RunId, doing: &'static str) -> impl Fn(Status) -> Error {
    move |status| match status.code() {
        Code::NotFound => Error::UnknownRun { run: run.clone() },
        _ => refused(doing)(status),
    }
}
