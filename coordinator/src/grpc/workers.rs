//! `WorkerService`: what workers report and ask.

use std::sync::Arc;

use llamaduo_proto::Digest;
use llamaduo_proto::convert::InvalidMessage;
use llamaduo_proto::session::{AttemptOutcome, BeginCall, CallOutcome, Completion, EndCall, ToWorker};
use llamaduo_proto::task::{TaskOutput, TaskResult};
use llamaduo_proto::wire;
use llamaduo_proto::wire::worker_service_server::WorkerService;
use prost::Message as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Services, session, status};
use crate::actors::run::StepError;
use crate::machine::{Event, Refusal};

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    /// Refuses a report that names artifacts which are not stored: they must be published before.
    pub(super) async fn check_stored(&self, digests: Vec<Digest>) -> Result<(), Status> {
        let artifacts = self.runs.shared().artifacts.clone();
        let missing = tokio::task::spawn_blocking(move || {
            for digest in digests {
                if !artifacts.contains(&digest)? {
                    return Ok(Some(digest));
                }
            }
            Ok(None)
        });
        match missing.await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(digest))) => {
                let message = format!("artifact {digest} is not stored; store it before it is reported");
                Err(status::named(
                    Code::FailedPrecondition,
                    "ARTIFACT_MISSING",
                    message,
                ))
            }
            Ok(Err(error)) => Err(status::of_artifacts(&error)),
            Err(_) => Err(status::stopping()),
        }
    }
}

fn parse<W, D: TryFrom<W, Error = InvalidMessage>>(message: W) -> Result<D, Status> {
    D::try_from(message).map_err(|error| status::invalid(&error))
}

fn digests_of(result: &TaskResult) -> Vec<Digest> {
    let of_output = match &result.output {
        TaskOutput::Train(_) => None,
        TaskOutput::Infer(output) => Some(output.responses),
        TaskOutput::Judge(output) => Some(output.verdicts),
        TaskOutput::Synthesize(output) => Some(output.samples),
    };
    [result.manifest].into_iter().chain(of_output).collect()
}

#[tonic::async_trait]
impl WorkerService for Services {
    type AttachStream = std::pin::Pin<Box<dyn Stream<Item = Result<wire::AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<wire::AttachRequest>>) -> Answer<Self::AttachStream> {
        let outbox = session::begin(self, request.into_inner()).await?;
        let to_wire = |message: ToWorker| Ok(wire::AttachResponse::from(message));
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox).map(to_wire))))
    }

    async fn complete_attempt(
        &self,
        request: Request<wire::CompleteAttemptRequest>,
    ) -> Answer<wire::CompleteAttemptResponse> {
        let report = request.into_inner();
        // What a repetition is recognised by: the whole report, as the protocol writes it. It has no maps, so equal reports
        // are equal bytes, today and in a later release.
        let digest = Digest::of(&report.encode_to_vec());
        let Completion {
            attempt,
            worker,
            outcome,
        } = parse(report)?;
        let run = attempt.run.clone();
        tracing::debug!(run_id = %run, task_id = %attempt.task, worker_id = %worker, "attempt ends");
        let event = match outcome {
            AttemptOutcome::Done(result) => {
                self.check_stored(digests_of(&result)).await?;
                Event::Completed {
                    attempt,
                    result,
                    digest,
                }
            }
            AttemptOutcome::Failed(failure) => Event::Failed {
                attempt,
                failure,
                digest,
            },
        };
        let repeated_completion = match self.runs.step(&run, event).await {
            Ok(_) => false,
            Err(StepError::Refused(Refusal::AlreadyRecorded)) => true,
            Err(error) => return Err(status::of_step(error)),
        };
        Ok(Response::new(wire::CompleteAttemptResponse {
            repeated_completion,
        }))
    }

    async fn begin_call(&self, request: Request<wire::BeginCallRequest>) -> Answer<wire::BeginCallResponse> {
        let begin: BeginCall = parse(request.into_inner())?;
        let id = &begin.attempt.run;
        let found = self.runs.find(id).await.map_err(status::of_commit)?;
        let run = found.ok_or_else(|| status::unknown_run(id))?;
        let shared = Arc::clone(self.runs.shared());
        // Apart from this request, so that a client that goes away does not break it off halfway.
        let beginning = self
            .tasks
            .spawn(async move { shared.ledger.begin(&run, &begin).await });
        let leave = beginning
            .await
            .map_err(|_| status::stopping())?
            .map_err(status::of_ledger)?;
        Ok(Response::new(leave.into()))
    }

    async fn end_call(&self, request: Request<wire::EndCallRequest>) -> Answer<wire::EndCallResponse> {
        let end: EndCall = parse(request.into_inner())?;
        if let CallOutcome::Answered(reply) = &end.outcome {
            self.check_stored(vec![reply.reply]).await?;
        }
        let shared = Arc::clone(self.runs.shared());
        let ending = self.tasks.spawn(async move { shared.ledger.end(&end).await });
        ending
            .await
            .map_err(|_| status::stopping())?
            .map_err(status::of_ledger)?;
        Ok(Response::new(wire::EndCallResponse {}))
    }
}
