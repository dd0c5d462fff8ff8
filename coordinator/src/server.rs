//! A whole coordinator: opens its state, takes up what was left, serves until it is told to stop.
//!
//! Invariant: who has opened a state directory is the only one who has it, and says nothing of serving before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use llamaduo_artifacts::{Directory, LockError, ProcessLock};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::actors::runs::Runs;
use crate::actors::scheduler::{Cancels, Scheduler};
use crate::actors::{Shared, Timing};
use crate::error::Error;
use crate::grpc;
use crate::store::StateStore;
use crate::store::embedded::Embedded;
use crate::store::memory::Memory;

/// Lease of an attempt: long enough that a busy machine does not lose it, short enough that a dead one is noticed soon.
pub const LEASE: Duration = Duration::from_secs(15);
/// Heartbeats of a worker: three may be lost before a lease is.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Shortest heartbeat, for tests: below it scheduling jitter decides.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// In the state's directory: one coordinator at a time.
const LOCK: &str = "coordinator.lock";

/// How long the state file may take to close: a last commit on a slow disk.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Where the state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateLocation {
    /// In this file, which is made if there is none.
    Redb(PathBuf),
    /// Nowhere: it is gone with the process.
    Memory,
}

/// How a coordinator is to run.
#[derive(Clone)]
pub struct Options {
    /// Where the state is kept.
    pub state: StateLocation,
    /// The artifact store's directory.
    pub artifacts: PathBuf,
    /// Bearer token that requests must carry; `None` lets everybody on this machine in.
    pub token: Option<String>,
    /// How long a lease lasts after an acknowledged heartbeat, at least 3 heartbeats.
    pub lease: Duration,
    /// How often workers give a sign of life.
    pub heartbeat: Duration,
}

impl Options {
    /// The usual durations and no token.
    pub fn new(state: StateLocation, artifacts: impl Into<PathBuf>) -> Self {
        Self {
            state,
            artifacts: artifacts.into(),
            token: None,
            lease: LEASE,
            heartbeat: HEARTBEAT,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("state", &self.state)
            .field("artifacts", &self.artifacts)
            .field("token", &self.token.as_ref().map(|_| "hidden"))
            .field("lease", &self.lease)
            .field("heartbeat", &self.heartbeat)
            .finish()
    }
}

/// A coordinator with its state open, which nobody else can open meanwhile. Nothing is served yet.
#[derive(Debug)]
pub struct Coordinator {
    opened: Opened,
    auth: grpc::Auth,
    timing: Timing,
}

impl Coordinator {
    /// Checks the options and opens the state.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let Options {
            state,
            artifacts,
            token,
            lease,
            heartbeat,
        } = options;
        if heartbeat < HEARTBEAT_MIN || lease < heartbeat * 3 {
            return Err(Error::Timing { lease, heartbeat });
        }
        let auth = grpc::Auth::new(token.as_deref())?;
        let opening = tokio::task::spawn_blocking(move || open(state, artifacts));
        let opened = opening.await.map_err(|_| Error::Stopped {
            part: "opening the state",
        })??;
        Ok(Self {
            opened,
            auth,
            timing: Timing::new(lease, heartbeat),
        })
    }

    /// Serves on `listener`, which must be on a loopback address, until `shutdown`. When it returns, the state file is
    /// closed and all tasks are done.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        check_loopback(&listener)?;
        let Self { opened, auth, timing } = self;
        let (cancels, cancelled) = Cancels::new();
        let shared = Arc::new(Shared::new(opened.store, opened.artifacts, timing, cancels));
        let stop = shutdown.child_token();
        let outcome = run(shared, cancelled, listener, auth, stop).await;
        if let Some(thread) = opened.thread {
            close(thread).await;
        }
        drop(opened.lock);
        outcome
    }
}

/// Runs a coordinator on `listener`, which must be on a loopback address, until `shutdown`.
pub async fn serve(
    options: Options,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    check_loopback(&listener)?;
    Coordinator::open(options).await?.serve(listener, shutdown).await
}

fn check_loopback(listener: &TcpListener) -> Result<(), Error> {
    let address = listener
        .local_addr()
        .map_err(|source| Error::Listener { source })?;
    if address.ip().is_loopback() {
        Ok(())
    } else {
        Err(Error::NotLoopback { address })
    }
}

/// Waits until the store's thread has closed its file. A connection that does not end holds it open; it is not waited
/// for longer than it takes to notice.
async fn close(thread: std::thread::JoinHandle<()>) {
    let deadline = tokio::time::Instant::now() + CLOSE_WITHIN;
    while !thread.is_finished() {
        if tokio::time::Instant::now() > deadline {
            tracing::warn!("a connection keeps the state file open");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if thread.join().is_err() {
        tracing::error!("the state store's thread failed");
    }
}

/// Takes the state's directory, or says who has it.
fn lock(directory: &Path) -> Result<ProcessLock, Error> {
    ProcessLock::take(&directory.join(LOCK)).map_err(|error| match error {
        LockError::Held { holder, .. } => Error::InUse {
            directory: directory.to_owned(),
            holder,
        },
        source @ LockError::Io { .. } => Error::Lock { source },
    })
}

#[derive(Debug)]
struct Opened {
    store: Arc<dyn StateStore>,
    thread: Option<std::thread::JoinHandle<()>>,
    artifacts: Directory,
    /// Of the state's directory, where it has one.
    lock: Option<ProcessLock>,
}

fn open(state: StateLocation, artifacts: PathBuf) -> Result<Opened, Error> {
    let lock = match &state {
        StateLocation::Memory => None,
        StateLocation::Redb(path) => Some(lock(path.parent().unwrap_or(Path::new("")))?),
    };
    let artifacts = Directory::open(artifacts).map_err(|source| Error::Artifacts { source })?;
    let (store, thread): (Arc<dyn StateStore>, _) = match state {
        StateLocation::Memory => (Arc::new(Memory::new()), None),
        StateLocation::Redb(path) => {
            let (store, thread) = Embedded::open(&path).map_err(|source| Error::State { source })?;
            (Arc::new(store), Some(thread))
        }
    };
    Ok(Opened {
        store,
        thread,
        artifacts,
        lock,
    })
}

async fn run(
    shared: Arc<Shared>,
    cancelled: crate::actors::scheduler::Cancelled,
    listener: TcpListener,
    auth: grpc::Auth,
    stop: CancellationToken,
) -> Result<(), Error> {
    let runs = Arc::new(Runs::new(shared, stop.clone()));
    runs.reconcile().await.map_err(|source| Error::Read { source })?;
    let (scheduler, mailbox) = Scheduler::new(Arc::clone(&runs), cancelled);
    let mut parts = JoinSet::new();
    let (supervised, stopped) = (Arc::clone(&runs), stop.clone());
    parts.spawn(async move {
        supervised.supervise().await;
        ("supervisor", Ok(()))
    });
    parts.spawn(async move {
        scheduler.run(stopped).await;
        ("scheduler", Ok(()))
    });
    let stopped = stop.clone();
    parts.spawn(async move {
        (
            "server",
            grpc::serve(listener, auth, runs, mailbox, stopped).await,
        )
    });
    let mut outcome = Ok(());
    while let Some(ended) = parts.join_next().await {
        let was_asked = stop.is_cancelled();
        let this = match ended {
            Ok((part, Ok(()))) if !was_asked => Err(Error::Stopped { part }),
            Ok((_, outcome)) => outcome,
            Err(_) => Err(Error::Stopped { part: "an actor" }),
        };
        // One part cannot go on without the others.
        stop.cancel();
        outcome = outcome.and(this);
    }
    outcome
}
