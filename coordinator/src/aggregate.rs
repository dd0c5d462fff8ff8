//! What is computed from artifacts between the stages: scores, the gate, curation and the report.
//!
//! Invariant: an aggregate is a function of a run and its artifacts, and a report's also of the time and of what was
//! spent so far. What the run goes on from (scores, the gate, kept samples) has the same digests however often it is
//! computed; a crash between computing and committing costs time and nothing else.

mod curate;
mod gate;
mod inputs;
mod report;
mod score;

use std::sync::Arc;

use llamaduo_artifacts::Directory;
use llamaduo_proto::Digest;
use llamaduo_proto::run::Cost;

use crate::actors::Shared;
use crate::error::in_words;
use crate::machine::{Aggregate, Aggregated, Event, Run};

pub use curate::config as curation_config;
pub(crate) use inputs::check_coverage;

/// Why an aggregate could not be computed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An artifact cannot be read or written.
    #[error("{what} cannot be read or stored")]
    Artifact {
        /// What it holds.
        what: &'static str,
        /// The store's own word.
        #[source]
        source: llamaduo_artifacts::Error,
    },
    /// An artifact does not hold what it should.
    #[error("{what} in artifact {digest} cannot be used")]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The artifact.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: llamaduo_data::Error,
    },
    /// Bytes that are no text.
    #[error(
        "{what} in artifact {digest} is not UTF-8 text; it was stored by something else than this program"
    )]
    NotText {
        /// What it should hold.
        what: &'static str,
        /// The artifact.
        digest: Digest,
    },
    /// A number of rows that contradicts the submission.
    #[error(
        "{what} has {found} rows where the submission says {expected}; correct the number or the artifact"
    )]
    RowCount {
        /// Which split.
        what: &'static str,
        /// Rows of the artifact.
        found: usize,
        /// Rows promised.
        expected: u32,
    },
    /// Something that should have been made before is not there.
    #[error("{what} is missing, though the run says that it was made")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// The outcome cannot be written down.
    #[error("{what} cannot be written")]
    Encode {
        /// What.
        what: &'static str,
        /// The encoder's own word.
        #[source]
        source: llamaduo_data::Error,
    },
    /// The sums of the ledger cannot be read.
    #[error("the cost of the run cannot be counted")]
    Cost {
        /// The ledger's own word.
        #[source]
        source: crate::actors::ledger::Error,
    },
    /// A defect: the computation stopped without an outcome.
    #[error("the computation stopped without an outcome; the coordinator's log says more")]
    Stopped,
}

impl Error {
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Artifact { source, .. } => source.is_retryable(),
            Self::Cost { .. } | Self::Stopped => true,
            Self::Content { .. }
            | Self::NotText { .. }
            | Self::RowCount { .. }
            | Self::Missing { .. }
            | Self::Encode { .. } => false,
        }
    }
}

/// Computes `aggregate` on a thread of its own and says what came of it.
pub(crate) async fn compute(shared: &Arc<Shared>, run: Arc<Run>, aggregate: Aggregate) -> Event {
    match try_compute(shared, run, aggregate).await {
        Ok(aggregated) => Event::Aggregated(aggregated),
        Err(error) => {
            let (message, retryable) = (in_words(&error), error.is_retryable());
            tracing::warn!(message, retryable, "aggregate failed");
            Event::AggregateFailed {
                aggregate,
                message,
                retryable,
            }
        }
    }
}

async fn try_compute(shared: &Arc<Shared>, run: Arc<Run>, aggregate: Aggregate) -> Result<Aggregated, Error> {
    let cost = match aggregate {
        Aggregate::Report => shared
            .ledger
            .cost(&run)
            .await
            .map_err(|source| Error::Cost { source })?,
        Aggregate::Score { .. } | Aggregate::Gate { .. } | Aggregate::Curate { .. } => Cost::default(),
    };
    let (artifacts, time_ms) = (shared.artifacts.clone(), shared.now().time_ms);
    let computation =
        tokio::task::spawn_blocking(move || on_thread(&artifacts, &run, aggregate, cost, time_ms));
    computation.await.unwrap_or(Err(Error::Stopped))
}

fn on_thread(
    artifacts: &Directory,
    run: &Run,
    aggregate: Aggregate,
    cost: Cost,
    time_ms: u64,
) -> Result<Aggregated, Error> {
    let Some(spec) = run.spec() else {
        return Err(Error::Missing {
            what: "the migration's specification",
        });
    };
    match aggregate {
        Aggregate::Score { cycle, subject } => {
            let scores = score::scores(&inputs::judged(artifacts, run, spec, cycle, subject)?);
            Ok(Aggregated::Scored {
                cycle,
                subject,
                scores,
            })
        }
        Aggregate::Gate { cycle } => Ok(Aggregated::Gated {
            cycle,
            decision: gate::decide(artifacts, run, spec, cycle)?,
        }),
        Aggregate::Curate { cycle } => curate::curate(artifacts, run, spec, cycle),
        Aggregate::Report => Ok(Aggregated::Reported {
            manifest: report::make(artifacts, run, spec, cost, time_ms)?,
        }),
    }
}

#[cfg(test)]
mod tests;
