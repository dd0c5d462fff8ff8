//! The coordinator as a worker sees it: typed calls over one channel.
//!
//! Invariant: every request carries the token, and what comes back is checked before anyone sees it.

use std::time::Duration;

use llamaduo_proto::session::{BeginCall, CallLeave, Completion, EndCall};
use llamaduo_proto::wire;
use llamaduo_proto::wire::artifact_service_client::ArtifactServiceClient;
use llamaduo_proto::wire::worker_service_client::WorkerServiceClient;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::error::Error;
use crate::random;
use crate::secret::Secret;

/// A coordinator that does not accept a connection in this time is taken for dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for a unary answer: a coordinator answers from memory and one disk write.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest transfer of one artifact; a dead connection is noticed long before, by keep-alive.
pub(crate) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(900);

/// A silent connection is asked for life this often, and given up as long after.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// First and longest wait between two tries of a request that found nobody.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// A coordinator that answers for so long that it cannot, as with a full disk, is not asked further by this attempt.
const CANNOT_MAX: Duration = Duration::from_secs(120);

/// Who watches the log is told this often that the same request is still being repeated.
const WARN_PERIOD: Duration = Duration::from_secs(60);

/// Adds the bearer token.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(Option<AsciiMetadataValue>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

/// How the coordinator is reached.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    url: String,
    endpoint: Endpoint,
    bearer: Bearer,
}

impl Address {
    /// Checks the address and the token; nothing is dialled yet.
    pub(crate) fn new(url: &str, token: Option<&Secret>) -> Result<Self, Error> {
        let invalid = |_| Error::Options {
            field: "coordinator_url",
            expected: "an address like http://127.0.0.1:7070",
            found: url.to_owned(),
        };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(invalid)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let bearer = match token {
            None => None,
            Some(token) => Some(token.metadata().ok_or_else(|| Error::Options {
                field: "token",
                expected: "one line of visible ASCII",
                found: "other characters".to_owned(),
            })?),
        };
        Ok(Self {
            url: url.to_owned(),
            endpoint,
            bearer: Bearer(bearer),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A client that dials when it is first used and again after a break. Belongs to the calling runtime.
    pub(crate) fn client(&self) -> Coordinator {
        let channel = self.endpoint.connect_lazy();
        Coordinator {
            worker: WorkerServiceClient::with_interceptor(channel.clone(), self.bearer.clone()),
            artifacts: ArtifactServiceClient::with_interceptor(channel, self.bearer.clone()),
        }
    }
}

/// A client of the coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    pub(crate) worker: WorkerServiceClient<Service>,
    pub(crate) artifacts: ArtifactServiceClient<Service>,
}

impl Coordinator {
    /// Asks for leave to call a service. Waits for a coordinator that is away until `stopped`.
    pub(crate) async fn begin_call(
        &self,
        call: BeginCall,
        stopped: &CancellationToken,
    ) -> Result<CallLeave, Error> {
        let wire: wire::BeginCallRequest = call.into();
        let answer = patiently("begin a call", CALL_TIMEOUT, stopped, || {
            let (mut client, wire) = (self.worker.clone(), wire.clone());
            async move { client.begin_call(wire).await }
        });
        Ok(CallLeave::try_from(answer.await?)?)
    }

    /// Records a call, once.
    pub(crate) async fn end_call(&self, call: EndCall) -> Result<(), Status> {
        let request = wire::EndCallRequest::from(call);
        bounded(CALL_TIMEOUT, self.worker.clone().end_call(request))
            .await
            .map(drop)
    }

    /// Ends an attempt, once.
    pub(crate) async fn complete(&self, completion: Completion) -> Result<(), Status> {
        let request = wire::CompleteAttemptRequest::from(completion);
        bounded(CALL_TIMEOUT, self.worker.clone().complete_attempt(request))
            .await
            .map(drop)
    }
}

/// Gives up a unary call that is not answered in time. A client-side deadline of tonic's reads as `Cancelled`, which
/// would look like an answer.
async fn bounded<T>(
    time: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(time, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {} s",
            time.as_secs()
        ))),
    }
}

/// Asks until there is an answer or `stopped`: a coordinator that restarts is waited for as long as the lease lasts.
/// One that is there and keeps saying that it cannot is believed after [`CANNOT_MAX`], so that its words reach the run.
pub(crate) async fn patiently<T, F>(
    what: &'static str,
    time: Duration,
    stopped: &CancellationToken,
    mut ask: impl FnMut() -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut n_tries = 0_u32;
    let (mut cannot_since, mut told_at) = (None, None);
    loop {
        let status = tokio::select! {
            answer = bounded(time, ask()) => match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            },
            () = stopped.cancelled() => Status::cancelled("the attempt was stopped"),
        };
        let now = Instant::now();
        let has_waited = |since: Option<Instant>, most| since.is_some_and(|since| now - since >= most);
        cannot_since = is_answer(&status).then(|| cannot_since.unwrap_or(now));
        if stopped.is_cancelled() || !is_away(&status) || has_waited(cannot_since, CANNOT_MAX) {
            return Err(Error::Coordinator {
                what,
                source: Box::new(status),
            });
        }
        if told_at.is_none() || has_waited(told_at, WARN_PERIOD) {
            told_at = Some(now);
            tracing::warn!(what, n_tries, reason = %status.message(), "the coordinator does not answer as asked, trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(random::full_jitter(RETRY_FIRST, RETRY_MAX, n_tries.min(16))) => {}
            () = stopped.cancelled() => {}
        }
        n_tries = n_tries.saturating_add(1);
    }
}

/// Whether a coordinator said this: its refusals name their reason in the details, and a broken connection has none.
fn is_answer(status: &Status) -> bool {
    !status.details().is_empty()
}

/// What is at the bottom of a status, for people: the system's own word where a connection failed.
pub(crate) fn deepest(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut words = status.message().to_owned();
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    words
}

/// Whether nobody answered, or only to say that it cannot answer now: the same request may be sent again.
pub(crate) fn is_away(status: &Status) -> bool {
    match status.code() {
        // A break of the connection reads as Unknown or Internal, depending on where it breaks.
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted => true,
        Code::Unknown | Code::Internal | Code::Cancelled => true,
        _ => false,
    }
}

/// Whether the coordinator has spoken: it took what it was told, or refused it for good (`Some`). `Err` when it is away,
/// or does not know this worker's token, which a person can mend: then it is to be told again.
pub(crate) fn settled(answer: Result<(), Status>, what: &'static str) -> Result<Option<Status>, Error> {
    match answer {
        Ok(()) => Ok(None),
        Err(status)
            if is_away(&status)
                || matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) =>
        {
            Err(Error::Coordinator {
                what,
                source: Box::new(status),
            })
        }
        Err(status) => Ok(Some(status)),
    }
}

#[cfg(test)]
mod tests;
