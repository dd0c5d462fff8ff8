//! `coordinator`, `worker` and `stand-in-service`: one role alone in this process, until it is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use llamaduo_coordinator as coordinator;
use llamaduo_proto::ids::WorkerId;
use llamaduo_worker as worker;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::remote::token;
use crate::args;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::output::Output;

#[derive(Serialize)]
struct Listening {
    url: String,
}

/// `coordinator`.
pub(super) async fn coordinator(arguments: &args::Coordinator, output: &Output) -> Result<Exit> {
    crate::directory::make_directory(&arguments.data)?;
    let listener = bind(arguments.listen).await?;
    let state = coordinator::StateLocation::Redb(arguments.data.join("state.redb"));
    let mut options = coordinator::Options::new(state, arguments.data.join("artifacts"));
    options.token = token(&arguments.token)?;
    options.lease = arguments.lease_ms.map_or(options.lease, Duration::from_millis);
    options.heartbeat = arguments
        .heartbeat_ms
        .map_or(options.heartbeat, Duration::from_millis);
    let failed = |error| Error::Coordinator(Box::new(error));
    // Before anybody is told where it listens: the state may be another process's.
    let opened = coordinator::Coordinator::open(options).await.map_err(failed)?;
    let url = format!("http://{}", listener.local_addr()?);
    output.result(&Listening { url: url.clone() }, || url.clone())?;
    output.line("coordinator listens; start workers with `llamaduo worker --coordinator URL`");
    let stop = CancellationToken::new();
    let role = opened.serve(listener, stop.clone());
    until_interrupted(async { role.await.map_err(failed) }, &stop, output).await
}

/// `worker`.
pub(super) async fn worker(arguments: &args::Worker, output: &Output) -> Result<Exit> {
    let failed = |error| Error::Worker(Box::new(error));
    let id = worker_id(arguments.name.as_deref())?;
    let directory = arguments
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("llamaduo-worker-{id}")));
    let mut options =
        worker::Options::new(&arguments.remote.coordinator, id.clone(), directory).map_err(failed)?;
    options.shared_artifacts.clone_from(&arguments.shared_artifacts);
    options.local_model_slots = arguments.local_model_slots;
    options.service_slots = arguments.service_slots;
    options.threads = arguments.threads;
    options.device = arguments.device;
    options.token = token(&arguments.remote.token)?
        .as_deref()
        .and_then(worker::Secret::new);
    let told = output.clone();
    options.tell = worker::Tell::new(move |notice| told.line(&format!("worker {id}: {notice}")));
    let stop = CancellationToken::new();
    let role = worker::run(options, stop.clone());
    until_interrupted(async { role.await.map_err(failed) }, &stop, output).await
}

/// `stand-in-service`.
pub(super) async fn stand_in_service(arguments: &args::StandInService, output: &Output) -> Result<Exit> {
    let listener = bind(arguments.listen).await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    output.result(&Listening { url: url.clone() }, || url.clone())?;
    output.line("stand-in for a service LLM listens; name it in a config as service.base_url");
    let stop = CancellationToken::new();
    let options = worker::stand_in::Options::new(arguments.seed);
    let role = worker::stand_in::serve(options, listener, stop.clone());
    until_interrupted(async { role.await.map_err(Error::from) }, &stop, output).await
}

/// Lets a role work until it ends, or until the second Ctrl-C after a first that asked it to end.
async fn until_interrupted(
    role: impl Future<Output = Result<()>>,
    stop: &CancellationToken,
    output: &Output,
) -> Result<Exit> {
    let mut interrupts = Interrupts::new()?;
    tokio::pin!(role);
    tokio::select! {
        ended = &mut role => return ended.map(|()| Exit::Ok),
        () = interrupts.next() => output.line("interrupted: finishing; Ctrl-C again stops at once"),
    }
    stop.cancel();
    tokio::select! {
        ended = &mut role => ended.map(|()| Exit::Interrupted),
        () = interrupts.next() => Ok(Exit::Interrupted),
    }
}

/// Refuses what others can reach before anything is opened or said.
async fn bind(address: std::net::SocketAddr) -> Result<TcpListener> {
    if !address.ip().is_loopback() {
        return Err(Error::Usage(format!(
            "--listen {address} can be reached from other machines, which is refused until there is TLS; name a \
             loopback address such as 127.0.0.1:{}",
            address.port()
        )));
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// The name given, or this machine's: both are stable over restarts.
fn worker_id(name: Option<&str>) -> Result<WorkerId> {
    let host = || {
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .or_else(|_| std::fs::read_to_string("/etc/hostname"))
    };
    let name = match name {
        Some(name) => name.to_owned(),
        None => host().unwrap_or_default(),
    };
    let usage =
        |error: llamaduo_proto::ids::InvalidId| Error::Usage(format!("{error}; name the worker with --name"));
    WorkerId::new(name.trim()).map_err(usage)
}
