//! A run's way into the store and out of it again.
//!
//! Invariant: one step is one transaction, which compares that the head and every claim it ends are as they were; so of
//! two who would change a run only one can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{LeaseToken, RunId, TaskId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::machine::{Claim, Lease, Now, Rules, Run, Task};
use crate::store::{self, Compare, Entry, Op, Revision, StateStore, Txn, keys, range_all};

/// Why a run could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not answer.
    #[error("the state store failed")]
    Store(#[from] store::Error),
    /// A record is not what this program writes.
    #[error("the record at {key} cannot be read; it was damaged or written by another version")]
    Decode {
        /// Where.
        key: String,
        /// The decoder's own word.
        #[source]
        source: serde_json::Error,
    },
    /// A record cannot be written.
    #[error("the record at {key} cannot be written as JSON")]
    Encode {
        /// Where.
        key: String,
        /// The encoder's own word.
        #[source]
        source: serde_json::Error,
    },
    /// A run without a specification.
    #[error("run {run} has no record at {key}")]
    Incomplete {
        /// The run.
        run: RunId,
        /// What is missing.
        key: String,
    },
}

pub(crate) fn encode<T: Serialize>(key: String, record: &T) -> Result<Op, Error> {
    match serde_json::to_vec(record) {
        Ok(value) => Ok(Op::Put(key, value)),
        Err(source) => Err(Error::Encode { key, source }),
    }
}

pub(crate) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value).map_err(|source| Error::Decode {
        key: entry.key.clone(),
        source,
    })
}

/// The transaction that makes the store's `before` (with the revision of its head) into `after`. Has no operations
/// when nothing that is persisted differs.
pub(crate) fn txn_of(before: Option<(&Run, Revision)>, after: &Run) -> Result<Txn, Error> {
    let id = &after.id;
    let mut txn = Txn::default();
    let old = before.map(|(run, _)| run);
    if old.is_none_or(|old| old.work != after.work) {
        txn.ops.push(encode(keys::spec(id), &*after.work)?);
    }
    for (cycle, record) in &after.cycles {
        let same = |old: &Run| {
            old.cycles
                .get(cycle)
                .is_some_and(|old| Arc::ptr_eq(old, record) || old == record)
        };
        if !old.is_some_and(same) {
            txn.ops.push(encode(keys::cycle(id, *cycle), &**record)?);
        }
    }
    for (task_id, task) in &after.tasks {
        let old_task = old.and_then(|old| old.tasks.get(task_id));
        if !old_task.is_some_and(|old| Arc::ptr_eq(old, task)) {
            put_task(&mut txn, id, task_id, old_task.map(|task| &**task), task)?;
        }
    }
    for event in &after.journal {
        txn.ops.push(encode(keys::event(id, event.seq), event)?);
    }
    put_indexes(&mut txn, old, after)?;
    if txn.ops.is_empty() {
        return Ok(txn);
    }
    txn.compares.push(match before {
        Some((_, revision)) => Compare::Modified(keys::head(id), revision),
        None => Compare::Absent(keys::head(id)),
    });
    txn.ops.push(encode(keys::head(id), &after.head)?);
    Ok(txn)
}

fn put_task(txn: &mut Txn, run: &RunId, id: &TaskId, old: Option<&Task>, task: &Task) -> Result<(), Error> {
    if old.is_none_or(|old| old.record != task.record) {
        txn.ops.push(encode(keys::task(run, id), &task.record)?);
    }
    let claim = keys::claim(run, id);
    match (old.and_then(|old| old.lease.as_ref()), &task.lease) {
        (Some(old), Some(new)) if old.claim == new.claim => {}
        (None, None) => {}
        (None, Some(new)) => {
            txn.compares.push(Compare::Absent(claim.clone()));
            txn.ops.push(encode(claim, &new.claim)?);
        }
        (Some(old), new) => {
            txn.compares
                .push(Compare::Modified(claim.clone(), Revision(old.token.0)));
            txn.ops.push(match new {
                Some(new) => encode(claim, &new.claim)?,
                None => Op::Delete(claim),
            });
        }
    }
    let checkpoint = keys::checkpoint(run, id);
    match (old.and_then(|old| old.checkpoint), task.checkpoint) {
        (old, new) if old == new => {}
        (_, Some(new)) => txn.ops.push(encode(checkpoint, &new)?),
        (_, None) => txn.ops.push(Op::Delete(checkpoint)),
    }
    Ok(())
}

fn put_indexes(txn: &mut Txn, old: Option<&Run>, run: &Run) -> Result<(), Error> {
    if old.is_none() {
        let request = keys::request(&run.head.request);
        txn.compares.push(Compare::Absent(request.clone()));
        txn.ops.push(encode(request, &run.id)?);
        txn.ops.push(Op::Put(
            keys::submitted(run.head.submitted_at_ms, &run.id),
            Vec::new(),
        ));
    }
    let was_live = old.is_some_and(|old| !old.has_ended());
    match (was_live, !run.has_ended()) {
        (false, true) => txn.ops.push(Op::Put(keys::live(&run.id), Vec::new())),
        (true, false) => txn.ops.push(Op::Delete(keys::live(&run.id))),
        (true, true) | (false, false) => {}
    }
    Ok(())
}

/// Reads a run as it is in the store, with the revision of its head; every lease gets a fresh deadline. `None` when
/// there is no such run.
pub(crate) async fn load(
    store: &dyn StateStore,
    id: &RunId,
    rules: Rules,
    now: Now,
) -> Result<Option<(Run, Revision)>, Error> {
    let Some(head) = store.get(&keys::head(id)).await? else {
        return Ok(None);
    };
    let spec = keys::spec(id);
    let Some(work) = store.get(&spec).await? else {
        return Err(Error::Incomplete {
            run: id.clone(),
            key: spec,
        });
    };
    let mut run = Run {
        id: id.clone(),
        work: Arc::new(decode(&work)?),
        head: decode(&head)?,
        cycles: BTreeMap::new(),
        tasks: BTreeMap::new(),
        journal: Vec::new(),
        rules,
        last_tick: now.clock,
        aggregate_not_before: Duration::ZERO,
    };
    for entry in range_all(store, &keys::cycles(id)).await?.0 {
        if let Ok(cycle) = keys::last_part(&entry.key).parse() {
            run.cycles
                .insert(llamaduo_proto::ids::Cycle(cycle), Arc::new(decode(&entry)?));
        }
    }
    let mut claims = by_task(store, &keys::claims(id)).await?;
    let mut checkpoints = by_task(store, &keys::checkpoints(id)).await?;
    for (task_id, entry) in by_task(store, &keys::tasks(id)).await? {
        let mut task = Task::new(decode(&entry)?);
        if let Some(claim) = claims.remove(&task_id) {
            task.lease = Some(Lease {
                claim: decode::<Claim>(&claim)?,
                token: LeaseToken(claim.modified.0),
                deadline: now.clock + rules.lease_expiry,
                revoked: None,
            });
        }
        if let Some(checkpoint) = checkpoints.remove(&task_id) {
            task.checkpoint = Some(decode::<Digest>(&checkpoint)?);
        }
        run.tasks.insert(task_id, Arc::new(task));
    }
    Ok(Some((run, head.modified)))
}

async fn by_task(store: &dyn StateStore, prefix: &str) -> Result<BTreeMap<TaskId, Entry>, Error> {
    let entries = range_all(store, prefix).await?.0.into_iter();
    let named = |entry: Entry| Some((TaskId::new(keys::last_part(&entry.key)).ok()?, entry));
    Ok(entries.filter_map(named).collect())
}
