//! What a worker is told when it starts.
//!
//! Invariant: checked once, by [`Options::validate`], before anything is opened or dialled.

use std::path::PathBuf;
use std::time::Duration;

use llamaduo_data::price::PriceBook;
use llamaduo_engine::Device;
use llamaduo_proto::ids::WorkerId;

use crate::error::Error;
use crate::models::Places;
use crate::notice::Tell;
use crate::secret::Secret;

/// Options of a worker.
#[derive(Clone, Debug)]
pub struct Options {
    /// For example `http://127.0.0.1:7070`.
    pub coordinator_url: String,
    /// Stable over restarts, and different for each worker.
    pub worker_id: WorkerId,
    /// This worker's own: what it has to tell, and its cache of artifacts.
    pub directory: PathBuf,
    /// The coordinator's artifact directory, where both see the same disk. `None` sends artifacts over gRPC.
    pub shared_artifacts: Option<PathBuf>,
    /// Attempts at once on the local model; each holds a model in memory.
    pub local_model_slots: u32,
    /// Attempts at once that call service LLMs.
    pub service_slots: u32,
    /// Threads that compute; `None` is one for each core.
    pub threads: Option<usize>,
    /// What the local model runs on.
    pub device: Device,
    /// Proves to the coordinator that this worker may join.
    pub token: Option<Secret>,
    /// Where models are looked for.
    pub models: Places,
    /// What calls cost where a run does not say.
    pub prices: PriceBook,
    /// How long a shutdown waits for attempts to stop at a checkpoint and for their ends to be told.
    pub shutdown_grace: Duration,
    /// Who is told how the worker gets on with its coordinator.
    pub tell: Tell,
}

/// Most slots of both lanes together: what the protocol's lists hold, with room for attempts that have ended here and
/// are not yet told.
const SLOTS_MAX: u32 = 800;

/// Most compute threads: beyond any machine's cores.
const THREADS_MAX: usize = 1_024;

/// Long enough for a training step and the replies that are on their way, short enough for an orchestrator's patience.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);

impl Options {
    /// Usual options: one local model, four attempts that call services, everything else from the environment.
    pub fn new(coordinator_url: &str, worker_id: WorkerId, directory: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            coordinator_url: coordinator_url.to_owned(),
            worker_id,
            directory,
            shared_artifacts: None,
            local_model_slots: 1,
            service_slots: 4,
            threads: None,
            device: Device::Auto,
            token: None,
            models: Places::from_env(),
            prices: PriceBook::builtin()?,
            shutdown_grace: SHUTDOWN_GRACE,
            tell: Tell::nobody(),
        })
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |field, expected, found: String| {
            Err(Error::Options {
                field,
                expected,
                found,
            })
        };
        let n_slots = self.local_model_slots.saturating_add(self.service_slots);
        if n_slots > SLOTS_MAX {
            let expected = "at most 800, together with local_model_slots";
            return refuse("service_slots", expected, n_slots.to_string());
        }
        if self.local_model_slots == 0 && self.service_slots == 0 {
            return refuse(
                "local_model_slots",
                "a slot of at least one kind",
                "none".to_owned(),
            );
        }
        match self.threads {
            Some(threads) if threads == 0 || threads > THREADS_MAX => {
                refuse("threads", "1 to 1,024", threads.to_string())
            }
            _ => Ok(()),
        }
    }
}
