//! The coordinator's face: gRPC services that check what comes in, ask the actors, and put the answer into words.
//!
//! Invariant: nothing is decided here. Every request is parsed once by the proto crate before anything else looks at it.

mod artifacts;
mod auth;
mod runs;
mod session;
mod status;
mod views;
mod workers;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::wire;
use llamaduo_proto::wire::artifact_service_server::ArtifactServiceServer;
use llamaduo_proto::wire::run_service_server::RunServiceServer;
use llamaduo_proto::wire::worker_service_server::WorkerServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::actors::runs::Runs;
use crate::actors::scheduler;
use crate::error::Error;
pub(crate) use auth::Auth;

/// Largest message in either direction: a heartbeat of hundreds of attempts or a page of tasks.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// How often an idle connection is asked for a sign of life, and how long that may take: together longer than a lease,
/// since leases and not connections tell who is alive.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Requests of one connection under way at once: a worker's calls to service LLMs and its streams.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// Streams get this long to end when the coordinator stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// What every service holds.
#[derive(Clone, Debug)]
struct Services {
    runs: Arc<Runs>,
    scheduler: mpsc::Sender<scheduler::Message>,
    /// Joined before the server returns.
    tasks: TaskTracker,
    /// Permits for uploads.
    uploads: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Serves until `stop`, then waits for open streams, but not for ever.
pub(crate) async fn serve(
    listener: TcpListener,
    auth: Auth,
    runs: Arc<Runs>,
    scheduler: mpsc::Sender<scheduler::Message>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let services = Services {
        runs,
        scheduler,
        tasks: TaskTracker::new(),
        uploads: Arc::new(Semaphore::new(artifacts::UPLOADS_MAX)),
        stop: stop.clone(),
    };
    let tasks = services.tasks.clone();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<RunServiceServer<Services>>().await;
    health.set_serving::<WorkerServiceServer<Services>>().await;
    health.set_serving::<ArtifactServiceServer<Services>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|source| Error::Reflection { source })?;
    macro_rules! bounded {
        ($server:ident) => {
            InterceptedService::new(
                $server::new(services.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
                auth.clone(),
            )
        };
    }
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .add_service(health_service)
        .add_service(InterceptedService::new(reflection, auth.clone()))
        .add_service(bounded!(RunServiceServer))
        .add_service(bounded!(WorkerServiceServer))
        .add_service(bounded!(ArtifactServiceServer));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let last_words = async {
        stop.cancelled().await;
        tokio::time::sleep(GOODBYE).await;
    };
    let outcome = tokio::select! {
        outcome = serving => outcome.map_err(|source| Error::Serve { source }),
        () = last_words => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    outcome
}
