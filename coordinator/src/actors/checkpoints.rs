//! Checkpoints that nothing goes on from any more, and their removal.
//!
//! Invariant: an artifact is removed only while no task and no claim of any run names it as a checkpoint, and only some
//! time after the commit that let go of it, since a message on its way may still name it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::RunId;
use tokio::time::Instant;

use super::Shared;
use super::commit::{self, decode};
use crate::error::in_words;
use crate::machine::{Claim, Run, Task};
use crate::store::{StateStore, keys, range_all};

/// A superseded checkpoint is kept for this long: several leases, so that who was about to read it has done so.
const KEPT: Duration = Duration::from_secs(60);
/// Superseded ones that are remembered; checkpoints come some seconds apart, so more are a defect. The oldest then stay.
const NOTED_MAX: usize = 1_024;

/// What a run has let go of, oldest first.
#[derive(Debug, Default)]
pub(super) struct Superseded {
    noted: VecDeque<(Instant, Digest)>,
}

impl Superseded {
    /// Notes what `before` names and `after` does not.
    pub(super) fn note(&mut self, before: &Run, after: &Run) {
        let now = Instant::now();
        for (id, task) in &before.tasks {
            if after.tasks.get(id).is_some_and(|same| Arc::ptr_eq(task, same)) {
                continue;
            }
            let is_gone = |digest: &Digest| !after.tasks.get(id).is_some_and(|task| names(task, digest));
            self.noted
                .extend(of_task(task).filter(is_gone).map(|digest| (now, digest)));
        }
        let surplus = self.noted.len().saturating_sub(NOTED_MAX);
        self.noted.drain(..surplus);
    }

    /// Those that `run` does not name again and that were kept for long enough; all of them once it has ended.
    pub(super) fn due(&mut self, run: &Run) -> BTreeSet<Digest> {
        let has_ended = run.has_ended();
        let is_due = |noted: &(Instant, Digest)| has_ended || noted.0.elapsed() >= KEPT;
        let mut due = BTreeSet::new();
        while self.noted.front().is_some_and(is_due)
            && let Some((_, digest)) = self.noted.pop_front()
        {
            if !run.tasks.values().any(|task| names(task, &digest)) {
                due.insert(digest);
            }
        }
        due
    }
}

fn of_task(task: &Task) -> impl Iterator<Item = Digest> {
    let of_claim = task.lease.as_ref().and_then(|lease| lease.claim.checkpoint);
    task.checkpoint.into_iter().chain(of_claim)
}

fn names(task: &Task, digest: &Digest) -> bool {
    of_task(task).any(|named| named == *digest)
}

/// Removes checkpoints that `run` has let go of. One that cannot be removed stays: it only takes space.
pub(super) async fn remove(shared: Arc<Shared>, run: RunId, mut digests: BTreeSet<Digest>) {
    if let Err(error) = keep_those_of_others(&*shared.store, &run, &mut digests).await {
        let error = in_words(&error);
        return tracing::warn!(run_id = %run, error, "old checkpoints stay");
    }
    let artifacts = shared.artifacts.clone();
    let removing = tokio::task::spawn_blocking(move || {
        for digest in digests {
            match artifacts.remove(&digest) {
                Ok(_) => tracing::debug!(run_id = %run, checkpoint = %digest, "old checkpoint removed"),
                Err(error) => {
                    let error = in_words(&error);
                    tracing::warn!(run_id = %run, checkpoint = %digest, error, "old checkpoint stays");
                }
            }
        }
    });
    // Cancelled only with the whole process.
    let _ = removing.await;
}

/// Strikes off what another run names, live or ended: two runs of one seed may come to the same bytes.
async fn keep_those_of_others(
    store: &dyn StateStore,
    own: &RunId,
    digests: &mut BTreeSet<Digest>,
) -> Result<(), commit::Error> {
    for entry in range_all(store, keys::SUBMITTED).await?.0 {
        if digests.is_empty() {
            return Ok(());
        }
        let Some(run) = keys::submitted_run(&entry.key).filter(|run| run != own) else {
            continue;
        };
        for checkpoint in range_all(store, &keys::checkpoints(&run)).await?.0 {
            digests.remove(&decode::<Digest>(&checkpoint)?);
        }
        for claim in range_all(store, &keys::claims(&run)).await?.0 {
            if let Some(checkpoint) = decode::<Claim>(&claim)?.checkpoint {
                digests.remove(&checkpoint);
            }
        }
    }
    Ok(())
}
