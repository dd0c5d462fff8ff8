//! The command lines of the roles that run until they are stopped, and how a coordinator is found.
//!
//! Invariant: an address that cannot be a coordinator's is refused while parsing.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use llamaduo_kernels::Device;

/// How a client finds its coordinator.
#[derive(Clone, Debug, Args)]
pub(crate) struct Remote {
    /// The coordinator.
    #[arg(
        long,
        value_name = "URL",
        env = "LLAMADUO_COORDINATOR",
        default_value = "http://127.0.0.1:7400",
        value_parser = coordinator_url
    )]
    pub(crate) coordinator: String,
    #[command(flatten)]
    pub(crate) token: TokenFile,
}

/// An address as people write it: `host:port` is as good as `http://host:port`.
pub(super) fn coordinator_url(text: &str) -> Result<String, String> {
    let text = text.trim().trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if scheme != "http" {
        return Err("a coordinator is reached by http://HOST:PORT; there is no TLS yet".to_owned());
    }
    let has_port = rest.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if !has_port {
        return Err("name a host and a port, for example http://127.0.0.1:7400".to_owned());
    }
    Ok(format!("http://{rest}"))
}

/// The bearer token of a coordinator.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TokenFile {
    /// File that holds the coordinator's bearer token.
    #[arg(long, value_name = "FILE", env = "LLAMADUO_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    /// Address to listen on; only loopback addresses are allowed until there is TLS.
    #[arg(long, default_value = "127.0.0.1:7400")]
    pub(crate) listen: SocketAddr,
    /// Directory of its state and artifacts.
    #[arg(long, value_name = "DIR", default_value = "llamaduo-coordinator")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) token: TokenFile,
    /// How long a silent worker keeps its tasks, milliseconds; at least three heartbeats.
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) lease_ms: Option<u64>,
    /// How often workers give a sign of life, milliseconds.
    #[arg(long, value_name = "N", hide = true)]
    pub(crate) heartbeat_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// What local models run on: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
    #[command(flatten)]
    pub(crate) remote: Remote,
    /// Its name, stable over restarts; the host's name when absent.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Directory of its spool and artifact cache; named after the worker when absent.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Artifact directory shared with the coordinator; without it artifacts are sent over gRPC.
    #[arg(long, value_name = "DIR")]
    pub(crate) shared_artifacts: Option<PathBuf>,
    /// Train and infer tasks at once.
    #[arg(long, default_value_t = 1)]
    pub(crate) local_model_slots: u32,
    /// Tasks that call service LLMs at once.
    #[arg(long, default_value_t = 4)]
    pub(crate) service_slots: u32,
    /// Threads of the local model; all cores when absent.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct StandInService {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub(crate) listen: SocketAddr,
    /// Seed of its noise and faults.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}
