//! The stand-in service in this process, behind a relay that counts what it is asked and can hold requests back.
//!
//! Invariant: every request that reaches the stand-in is in the list, as sent, before its answer is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llamaduo_worker::stand_in;
use serde_json::Value;
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use llamaduo_worker::stand_in::{FaultRates, Flaws, Options};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The service LLM's own answer to a test prompt.
    Answer,
    /// A grading.
    Grade,
    /// New pairs.
    Synthesize,
}

/// A stand-in that runs until it is dropped.
#[derive(Debug)]
pub struct Service {
    url: String,
    log: Log,
    stop: CancellationToken,
    parts: JoinSet<()>,
    runtime: Option<Runtime>,
}

/// What the relay knows.
#[derive(Debug, Default)]
struct Relayed {
    /// The bodies received so far.
    requests: Vec<String>,
    /// Requests of the kind are held back while the list has more than so many of them.
    held: Option<(Ask, usize)>,
}

impl Relayed {
    fn count(&self, ask: Ask) -> usize {
        self.requests.iter().filter(|body| ask_of(body) == ask).count()
    }

    /// Takes a request into the list; whether it is to be held back.
    fn take(&mut self, body: String) -> bool {
        let ask = ask_of(&body);
        self.requests.push(body);
        self.held
            .is_some_and(|(held, n_answered)| held == ask && self.count(ask) > n_answered)
    }
}

type Log = Arc<Mutex<Relayed>>;

impl Service {
    /// Starts one on a free port.
    pub fn start(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let bind = || async {
            TcpListener::bind("127.0.0.1:0")
                .await
                .expect("loopback has a free port")
        };
        let (inner, outer) = runtime.block_on(async { (bind().await, bind().await) });
        let address = |listener: &TcpListener| listener.local_addr().expect("a listener has an address");
        let (upstream, url) = (address(&inner), format!("http://{}/v1", address(&outer)));
        let (log, stop) = (Log::default(), CancellationToken::new());
        let (relayed, stopped, serving) = (Arc::clone(&log), stop.clone(), stop.clone());
        let mut parts = JoinSet::new();
        parts.spawn_on(
            async move {
                stand_in::serve(options, inner, serving)
                    .await
                    .expect("the stand-in serves")
            },
            runtime.handle(),
        );
        parts.spawn_on(relay_all(outer, upstream, relayed, stopped), runtime.handle());
        Self {
            url,
            log,
            stop,
            parts,
            runtime: Some(runtime),
        }
    }

    /// One without faults, since a fault depends on how often a request was seen, which a crash changes; slow enough
    /// that a kill finds calls under way.
    pub fn start_reliable() -> Self {
        let mut options = Options::new(0);
        options.faults = FaultRates::NONE;
        options.latency = Duration::from_millis(40);
        Self::start(options)
    }

    /// For `service.base_url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The bodies of all requests so far, in the order of arrival.
    pub fn requests(&self) -> Vec<String> {
        self.relayed().requests.clone()
    }

    /// How many requests asked for `ask`.
    pub fn count(&self, ask: Ask) -> usize {
        self.relayed().count(ask)
    }

    /// Answers `n` more requests for `ask`; later ones wait until whoever asked has gone.
    pub fn hold_after(&self, ask: Ask, n: usize) {
        let mut relayed = self.relayed();
        relayed.held = Some((ask, relayed.count(ask) + n));
    }

    /// Answers whatever is asked from now on.
    pub fn hold_nothing(&self) {
        self.relayed().held = None;
    }

    fn relayed(&self) -> MutexGuard<'_, Relayed> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests were made beyond the first of each.
    pub fn n_repeated(&self) -> usize {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for body in self.requests() {
            *seen.entry(body).or_default() += 1;
        }
        seen.values().map(|n| n - 1).sum()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
        self.parts.abort_all();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Gradings and synthesis ask for JSON, each by a schema of its own.
pub fn ask_of(body: &str) -> Ask {
    let body: Value = serde_json::from_str(body).expect("the product sends JSON");
    match body.get("response_format").map(Value::to_string) {
        None => Ask::Answer,
        Some(format) if format.contains("similarity_assessment") => Ask::Grade,
        Some(_) => Ask::Synthesize,
    }
}

async fn relay_all(listener: TcpListener, upstream: SocketAddr, log: Log, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let log = Arc::clone(&log);
                // A client that was killed breaks its connection: that is what these tests do.
                connections.spawn(async move { relay(client, upstream, &log).await.unwrap_or_default() });
            }
            () = stop.cancelled() => return,
        }
    }
}

/// One request and its answer; the end of the answer is the end of the stream.
async fn relay(mut client: TcpStream, upstream: SocketAddr, log: &Log) -> io::Result<()> {
    let mut request = Vec::new();
    let mut head_len = None;
    let (head, body) = loop {
        if head_len.is_none() {
            head_len = request
                .windows(4)
                .position(|end| end == b"\r\n\r\n")
                .map(|end| end + 4);
        }
        if let Some(len) = head_len {
            let (head, body) = request.split_at(len);
            let head = String::from_utf8_lossy(head).into_owned();
            if body.len() >= content_length(&head) {
                break (head, body.to_vec());
            }
        }
        if client.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let is_held = log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(String::from_utf8_lossy(&body).into_owned());
    if is_held {
        while client.read_buf(&mut request).await? > 0 {}
        return Ok(());
    }
    let mut server = TcpStream::connect(upstream).await?;
    let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await?;
    server.write_all(&body).await?;
    io::copy(&mut server, &mut client).await?;
    Ok(())
}

fn content_length(head: &str) -> usize {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
