//! Coordinator and worker in this process, talking over gRPC as they would between machines.
//!
//! Invariant: both are stopped and joined before the call returns, unless the user asks a second time to stop.

use std::path::Path;
use std::time::Duration;

use llamaduo_coordinator as coordinator;
use llamaduo_kernels::Device;
use llamaduo_proto::ids::WorkerId;
use llamaduo_worker as worker;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::interrupt::Interrupts;
use crate::output::Output;

/// What a coordinator without work needs at most to close its store.
const COORDINATOR_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Does `work` with a coordinator and a worker whose state lies in `state`.
pub(crate) async fn with_cluster<T>(
    state: &Path,
    device: Device,
    output: &Output,
    work: impl AsyncFnOnce(Client) -> Result<T>,
) -> Result<T> {
    let mut interrupts = Interrupts::new()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    // Before anything else starts: the state may be another process's.
    let opened = open(state).await?;
    let mut head = Part::start("coordinator", |stop| async move {
        opened.serve(listener, stop).await.map_err(coordinator_error)
    });
    let mut hands = Part::start("worker", |stop| run_worker(state, url.clone(), device, stop));
    let outcome = tokio::select! {
        outcome = async { work(Client::connect(&url, None).await?).await } => outcome,
        ended = head.join() => Err(ended.err().unwrap_or_else(|| stopped("coordinator"))),
        ended = hands.join() => Err(ended.err().unwrap_or_else(|| stopped("worker"))),
        () = interrupts.next() => {
            output.line("interrupted: saving what runs; Ctrl-C again stops at once");
            Err(Error::Interrupted)
        }
    };
    hands.stop.cancel();
    tokio::select! {
        ended = hands.join() => log_end(&ended),
        () = interrupts.next() => return Err(Error::Interrupted),
    }
    head.stop.cancel();
    match tokio::time::timeout(COORDINATOR_STOP_TIMEOUT, head.join()).await {
        Ok(ended) => log_end(&ended),
        Err(_) => tracing::warn!("coordinator did not stop in time; its state is safe"),
    }
    outcome
}

/// One role of this process.
struct Part {
    name: &'static str,
    stop: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Part {
    fn start<F>(name: &'static str, role: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(role(stop.clone()));
        Self { name, stop, task }
    }

    /// Waits for its end; at once when it has ended.
    async fn join(&mut self) -> Result<()> {
        match self.task.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(stopped(self.name)),
            None => Ok(()),
        }
    }
}

fn stopped(what: &str) -> Error {
    Error::Stopped {
        what: what.to_owned(),
    }
}

/// An end that came after the outcome was known.
fn log_end(ended: &Result<()>) {
    if let Err(error) = ended {
        tracing::warn!(error = %crate::output::describe(error), "a role ended with an error");
    }
}

async fn open(state: &Path) -> Result<coordinator::Coordinator> {
    let options = coordinator::Options::new(
        coordinator::StateLocation::Redb(state.join("state.redb")),
        state.join("artifacts"),
    );
    coordinator::Coordinator::open(options)
        .await
        .map_err(coordinator_error)
}

/// In the words of a command that has no coordinator as far as its user knows.
fn coordinator_error(error: coordinator::Error) -> Error {
    match error {
        coordinator::Error::InUse { directory, holder } => Error::InUse { directory, holder },
        coordinator::Error::State { source } => Error::Local(Box::new(source)),
        coordinator::Error::Artifacts { source } => Error::Local(Box::new(source)),
        other => Error::Local(Box::new(other)),
    }
}

fn run_worker(
    state: &Path,
    url: String,
    device: Device,
    stop: CancellationToken,
) -> impl Future<Output = Result<()>> + Send + 'static {
    let (directory, artifacts) = (state.join("worker"), state.join("artifacts"));
    async move {
        let failed = |error| Error::Local(Box::new(error));
        let id = WorkerId::new("local").map_err(|error| Error::Usage(error.to_string()))?;
        let mut options = worker::Options::new(&url, id, directory).map_err(failed)?;
        options.shared_artifacts = Some(artifacts);
        options.device = device;
        worker::run(options, stop).await.map_err(failed)
    }
}
