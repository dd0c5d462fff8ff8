//! What can end a command early, and with which exit code.
//!
//! Invariant: every message says what failed and what to do; causes are sources, printed once below it.

use std::path::PathBuf;

use llamaduo_proto::convert::InvalidMessage;
use llamaduo_proto::ids::RunId;

use crate::config;
use crate::exit::Exit;

/// The result of everything here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error of the command line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The config.
    #[error(transparent)]
    Config(Box<config::Error>),
    /// The command line says something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A dataset or result file of the user's.
    #[error("cannot use the input")]
    Input(#[source] Box<llamaduo_data::Error>),
    /// A file that cannot be read.
    #[error("cannot read {path}; {}", advice(source))]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file or directory that cannot be written.
    #[error(
        "cannot write {path}; check its permissions and the free space, then give the same command again"
    )]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file of ours that makes no sense.
    #[error("{path} is not what this program wrote: {problem}; move it away to start anew")]
    Damaged { path: PathBuf, problem: String },
    /// The output is gone.
    #[error("cannot write to stdout")]
    Stdout(#[from] std::io::Error),
    /// No coordinator.
    #[error(
        "no coordinator answers at {url}; start one with `llamaduo coordinator`, or name it with --coordinator"
    )]
    Connect {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    /// Something else.
    #[error(
        "what answers at {url} is no coordinator ({problem}); name the address that `llamaduo coordinator` printed with \
         --coordinator"
    )]
    NoCoordinator { url: String, problem: String },
    /// Another process of this program has the directory.
    #[error(
        "{directory} is in use by another llamaduo command ({holder}); wait for it or stop it, or name another directory \
         with --out"
    )]
    InUse {
        directory: PathBuf,
        holder: llamaduo_artifacts::Holder,
    },
    /// What a command in this process keeps.
    #[error("this command cannot go on")]
    Local(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The coordinator refused.
    #[error("cannot {doing}: {message}")]
    Refused {
        doing: &'static str,
        code: tonic::Code,
        message: String,
    },
    /// A run that the coordinator does not have.
    #[error("the coordinator has no run {run}; `llamaduo status` lists the runs that it has")]
    UnknownRun { run: RunId },
    /// The coordinator said something unexpected.
    #[error("the coordinator's answer breaks the protocol; use the same version of llamaduo on both sides")]
    Protocol(#[from] InvalidMessage),
    /// An artifact that is not what its name says.
    #[error(
        "artifact {digest} is damaged or not what was expected: {problem}; give the same command again, and begin anew in \
         another directory if it stays so"
    )]
    Artifact { digest: String, problem: String },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] llamaduo_engine::Error),
    /// The device that was asked for.
    #[error(transparent)]
    Device(#[from] llamaduo_kernels::DeviceError),
    /// No such model, or it cannot be fetched.
    #[error(transparent)]
    Model(#[from] llamaduo_worker::models::Error),
    /// The coordinator in this process.
    #[error("the coordinator cannot go on")]
    Coordinator(#[source] Box<llamaduo_coordinator::Error>),
    /// The worker in this process.
    #[error("the worker cannot go on")]
    Worker(#[source] Box<llamaduo_worker::Error>),
    /// The stand-in in this process.
    #[error(transparent)]
    StandIn(#[from] llamaduo_worker::stand_in::Error),
    /// A service LLM that cannot be reached.
    #[error("{0}")]
    Service(String),
    /// An address that cannot be had.
    #[error("cannot listen on {address}; name a free address with --listen")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    /// A thread of this process is gone.
    #[error("a part of this process stopped unexpectedly: {what}; give the same command again to go on")]
    Stopped { what: String },
    /// Ctrl-C.
    #[error("interrupted; give the same command again to go on")]
    Interrupted,
}

impl Error {
    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::Input(_) | Self::UnknownRun { .. } => Exit::Usage,
            // Named on the command line or in the config, and not there: files of our own are made when they are missing.
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Exit::Usage,
            Self::Engine(llamaduo_engine::Error::NoModel { .. }) => Exit::Usage,
            Self::Device(error) if !error.is_retryable() => Exit::Usage,
            // A place that did not answer may have it: that is no mistake of the user's.
            Self::Model(error) if !error.is_retryable() => Exit::Usage,
            Self::Refused {
                code: tonic::Code::InvalidArgument | tonic::Code::NotFound | tonic::Code::AlreadyExists,
                ..
            } => Exit::Usage,
            Self::Service(_) => Exit::ServiceFailed,
            Self::Interrupted => Exit::Interrupted,
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Damaged { .. }
            | Self::Stdout(_)
            | Self::Connect { .. }
            | Self::NoCoordinator { .. }
            | Self::InUse { .. }
            | Self::Local(_)
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::Artifact { .. }
            | Self::Engine(_)
            | Self::Device(_)
            | Self::Model(_)
            | Self::Coordinator(_)
            | Self::Worker(_)
            | Self::StandIn(_)
            | Self::Listen { .. }
            | Self::Stopped { .. } => Exit::Failed,
        }
    }
}

/// What to do about a file that cannot be read.
fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::InvalidData => {
            "it holds no text, so it is another kind of file than is wanted here"
        }
        std::io::ErrorKind::IsADirectory => "name a file in it",
        _ => "check that it exists and may be read",
    }
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Self::Config(Box::new(error))
    }
}

impl From<llamaduo_data::Error> for Error {
    fn from(error: llamaduo_data::Error) -> Self {
        Self::Input(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_exit_code() {
        let refused = |code| Error::Refused {
            doing: "x",
            code,
            message: String::new(),
        };
        let io = || std::io::Error::other("x");
        let model_not_found = |retryable| {
            Error::Model(llamaduo_worker::models::Error::NotFound {
                reference: String::new(),
                tried: Vec::new(),
                retryable,
            })
        };
        let cases = [
            (Error::from(config::Error::Set { text: String::new() }), 2),
            (Error::Usage(String::new()), 2),
            (
                Error::from(llamaduo_data::Error::NoRows { name: String::new() }),
                2,
            ),
            (refused(tonic::Code::InvalidArgument), 2),
            (refused(tonic::Code::NotFound), 2),
            (refused(tonic::Code::AlreadyExists), 2),
            (Error::Service(String::new()), 5),
            (refused(tonic::Code::Internal), 1),
            (
                Error::Read {
                    path: PathBuf::new(),
                    source: io(),
                },
                1,
            ),
            (
                Error::Read {
                    path: PathBuf::new(),
                    source: std::io::ErrorKind::NotFound.into(),
                },
                2,
            ),
            (model_not_found(false), 2),
            (model_not_found(true), 1),
            (Error::Stdout(io()), 1),
            (Error::Interrupted, 130),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit().code(), code, "{error:?}");
        }
    }
}
