//! The state of a run between two steps, as bytes.
//!
//! Invariant: a checkpoint is only taken up by the run it came from: same base, settings, rows and starting adapter.
//!
//! Stored as safetensors: three flat tensors, and the rest as JSON in the metadata.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::StepLog;
use super::config::TrainConfig;
use super::rows::Row;
use super::trainer::OptimizerState;
use crate::error::{Error, Result};
use crate::lora::Adapter;
use crate::safetensors::{Named, SafetensorsFile, serialize_with_metadata};

/// Changes when older readers would misread what is stored.
const VERSION: u32 = 1;
const HEADER_KEY: &str = "llamaduo.checkpoint";
const TENSORS: [&str; 3] = ["params", "first_moment", "second_moment"];

/// Training state after a whole number of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    identity: RunIdentity,
    pub(super) state: OptimizerState,
    pub(super) log: Vec<StepLog>,
}

/// What decides the bytes a run ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunIdentity {
    base: String,
    settings_sha256: String,
    rows_sha256: String,
    init_sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    identity: RunIdentity,
    log: Vec<StepLog>,
}

impl RunIdentity {
    pub(super) fn new(
        base: &str,
        config: &TrainConfig,
        rows: &[Row],
        init: Option<&Adapter>,
    ) -> Result<Self> {
        // How often to save and what to keep in memory change no result.
        let settings = TrainConfig {
            checkpoint_every_steps: 0,
            recompute: false,
            ..config.clone()
        };
        let settings = to_json(&settings)?;
        let mut rows_hash = Sha256::new();
        for row in rows {
            rows_hash.update((row.ids.len() as u64).to_le_bytes());
            rows_hash.update(bytemuck::cast_slice::<u32, u8>(&row.ids));
            rows_hash.update(bytemuck::cast_slice::<u32, u8>(&row.labels));
        }
        Ok(Self {
            base: base.to_owned(),
            settings_sha256: hex(Sha256::new_with_prefix(settings)),
            rows_sha256: hex(rows_hash),
            init_sha256: init.map(|init| {
                hex(Sha256::new_with_prefix(bytemuck::cast_slice::<f32, u8>(
                    init.params(),
                )))
            }),
        })
    }
}

impl Checkpoint {
    pub(super) fn new(identity: RunIdentity, state: OptimizerState, log: Vec<StepLog>) -> Self {
        Self { identity, state, log }
    }

    /// Steps done.
    pub fn step(&self) -> u32 {
        self.log.len() as u32
    }

    /// The steps done.
    pub fn log(&self) -> &[StepLog] {
        &self.log
    }

    /// Serializes; the same state gives the same bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            version: VERSION,
            identity: self.identity.clone(),
            log: self.log.clone(),
        };
        let header = to_json(&header)?;
        let OptimizerState {
            params,
            first_moment,
            second_moment,
        } = &self.state;
        let parts = [params, first_moment, second_moment];
        let shapes = parts.map(|values| [values.len()]);
        let tensors: Vec<Named<'_>> = TENSORS
            .into_iter()
            .zip(parts)
            .zip(&shapes)
            .map(|((name, values), shape)| Named { name, shape, values })
            .collect();
        Ok(serialize_with_metadata(
            &tensors,
            &[(HEADER_KEY, header.as_str())],
        ))
    }

    /// Reads what [`Self::to_bytes`] wrote. Fails on anything else, and on another version.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let damaged = |reason: String| Error::Checkpoint { reason };
        let file = SafetensorsFile::from_bytes(Path::new("checkpoint"), Arc::new(bytes))?;
        let header = file.metadata().get(HEADER_KEY);
        let header = header.ok_or_else(|| damaged(format!("its metadata has no `{HEADER_KEY}`")))?;
        let header: Header = serde_json::from_str(header).map_err(|error| damaged(error.to_string()))?;
        if header.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, this program reads {VERSION}",
                header.version
            )));
        }
        let [params, first_moment, second_moment] =
            TENSORS.map(|name| file.f32_values(name).map(|(_, values)| values));
        let state = OptimizerState {
            params: params?,
            first_moment: first_moment?,
            second_moment: second_moment?,
        };
        let parts = [&state.params, &state.first_moment, &state.second_moment];
        if let Some(value) = parts.into_iter().flatten().find(|value| !value.is_finite()) {
            return Err(damaged(format!("it holds {value}, expected finite numbers")));
        }
        if header.log.iter().zip(1..).any(|(log, number)| log.step != number) {
            return Err(damaged(
                "its steps are not numbered from 1 without gaps".to_owned(),
            ));
        }
        Ok(Self {
            identity: header.identity,
            state,
            log: header.log,
        })
    }

    /// Refuses a checkpoint of another run.
    pub(super) fn check(&self, identity: &RunIdentity, n_params: usize) -> Result<()> {
        let ours = &self.identity;
        let what = if ours.base != identity.base {
            "base model"
        } else if ours.settings_sha256 != identity.settings_sha256 {
            "training settings"
        } else if ours.rows_sha256 != identity.rows_sha256 {
            "training rows"
        } else if ours.init_sha256 != identity.init_sha256 {
            "starting adapter"
        } else {
            let OptimizerState {
                params,
                first_moment,
                second_moment,
            } = &self.state;
            if [params, first_moment, second_moment]
                .iter()
                .all(|part| part.len() == n_params)
            {
                return Ok(());
            }
            return Err(Error::Checkpoint {
                reason: format!("it does not hold {n_params} parameters"),
            });
        };
        Err(Error::CheckpointOfOtherRun { what })
    }
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|source| Error::Json {
        path: "checkpoint".into(),
        source,
    })
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
