//! Why a coordinator cannot start or go on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would be reachable from other machines.
    #[error(
        "refusing to listen on {address}: without TLS only loopback addresses are allowed; \
         listen on 127.0.0.1 and reach it through a tunnel"
    )]
    NotLoopback {
        /// The listener's address.
        address: SocketAddr,
    },
    /// The listener has no address.
    #[error("the listener has no local address; bind it before it is handed over")]
    Listener {
        /// The system's own word.
        #[source]
        source: std::io::Error,
    },
    /// The durations contradict each other.
    #[error(
        "a lease of {} ms with a heartbeat every {} ms leaves no time to miss one; make the lease at least 3 heartbeats \
         long and the heartbeat at least 10 ms", .lease.as_millis(), .heartbeat.as_millis()
    )]
    Timing {
        /// Asked for.
        lease: Duration,
        /// Asked for.
        heartbeat: Duration,
    },
    /// The bearer token cannot be sent in a header.
    #[error(
        "the bearer token is empty or holds characters that a header cannot; use visible ASCII characters"
    )]
    Token,
    /// Another coordinator has the directory.
    #[error("{directory} is in use by the coordinator of {holder}; stop that one, or name another directory")]
    InUse {
        /// The state's directory.
        directory: PathBuf,
        /// Who has it.
        holder: llamaduo_artifacts::Holder,
    },
    /// The directory cannot be locked.
    #[error("the state's directory cannot be locked")]
    Lock {
        /// Why.
        #[source]
        source: llamaduo_artifacts::LockError,
    },
    /// The state cannot be opened.
    #[error("the coordinator's state cannot be opened")]
    State {
        /// The store's own word.
        #[source]
        source: crate::store::Error,
    },
    /// The state can be opened but not read.
    #[error("the coordinator's state cannot be read")]
    Read {
        /// What is wrong with it.
        #[source]
        source: crate::actors::commit::Error,
    },
    /// The artifacts cannot be opened.
    #[error("the artifact store cannot be opened")]
    Artifacts {
        /// The store's own word.
        #[source]
        source: llamaduo_artifacts::Error,
    },
    /// The descriptors for reflection are damaged.
    #[error("the descriptors built into this program cannot be read; build it anew")]
    Reflection {
        /// The library's own word.
        #[source]
        source: tonic_reflection::server::Error,
    },
    /// The server stopped.
    #[error("the gRPC server failed")]
    Serve {
        /// The library's own word.
        #[source]
        source: tonic::transport::Error,
    },
    /// A part of the coordinator panicked: a defect.
    #[error("a part of the coordinator stopped ({part}); everything committed is safe, start it again")]
    Stopped {
        /// Which.
        part: &'static str,
    },
}

impl Error {
    /// Whether starting again may succeed without any change.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Serve { .. } | Self::Stopped { .. } => true,
            Self::State { source } => source.is_retryable(),
            Self::Artifacts { source } => source.is_retryable(),
            Self::InUse { .. }
            | Self::Lock { .. }
            | Self::NotLoopback { .. }
            | Self::Listener { .. }
            | Self::Timing { .. }
            | Self::Token
            | Self::Read { .. }
            | Self::Reflection { .. } => false,
        }
    }
}

/// An error with everything that led to it, in one line for logs and messages.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
