//! The whole key tree.
//!
//! ```text
//! requests/<request>            the run that a client's request made
//! submitted/<~ms>-<run>         empty; in key order, newest first (~ms = u64::MAX - milliseconds since 1970)
//! workers/<worker>              the process that has the worker's name, until it leaves or was silent for a lease
//! live/<run>                    empty; runs on which work remains: those that a starting coordinator takes up
//! runs/<run>/spec               what was submitted, as amended by a resume
//! runs/<run>/head               status, cycle, number of events; compared by every commit of the run
//! runs/<run>/cycles/<cycle>     scores, gate decision, curation of a cycle
//! runs/<run>/tasks/<task>       where a task stands, its failures, its result
//! runs/<run>/claims/<task>      who holds the lease of its running attempt; its revision is the fencing token
//! runs/<run>/checkpoints/<task> newest checkpoint; apart, since a claim must not change while it is held
//! runs/<run>/events/<seq>       what happened, numbered from 1 without gaps
//! runs/<run>/calls/<hash>       a service-LLM call: its reply, cost and open reservations
//! ```
//!
//! Invariant: values are JSON of at most a few kilobytes; bytes of data live in the artifact store.

use llamaduo_proto::Digest;
use llamaduo_proto::ids::{Cycle, RequestId, RunId, TaskId, WorkerId};

/// Under which every live run is listed.
pub const LIVE: &str = "live/";
/// Under which the processes of workers are kept.
pub const WORKERS: &str = "workers/";
/// Under which every run is listed, newest first.
pub const SUBMITTED: &str = "submitted/";

/// The run that a request made.
pub fn request(request: &RequestId) -> String {
    format!("requests/{request}")
}

/// The process that has a worker's name.
pub fn worker(worker: &WorkerId) -> String {
    format!("{WORKERS}{worker}")
}

/// Lists a run by the time of its submission, newest first.
pub fn submitted(time_ms: u64, run: &RunId) -> String {
    format!("{SUBMITTED}{:020}-{run}", u64::MAX - time_ms)
}

/// The run that a key made by [`submitted`] names.
pub fn submitted_run(key: &str) -> Option<RunId> {
    let (_, run) = key.strip_prefix(SUBMITTED)?.split_once('-')?;
    RunId::new(run).ok()
}

/// Lists a run that has work left.
pub fn live(run: &RunId) -> String {
    format!("{LIVE}{run}")
}

/// The run that a key made by [`live`] names.
pub fn live_run(key: &str) -> Option<RunId> {
    RunId::new(key.strip_prefix(LIVE)?).ok()
}

/// What was submitted.
pub fn spec(run: &RunId) -> String {
    format!("runs/{run}/spec")
}

/// Where the run stands.
pub fn head(run: &RunId) -> String {
    format!("runs/{run}/head")
}

/// All cycles.
pub fn cycles(run: &RunId) -> String {
    format!("runs/{run}/cycles/")
}

/// One cycle.
pub fn cycle(run: &RunId, cycle: Cycle) -> String {
    format!("runs/{run}/cycles/{:010}", cycle.0)
}

/// All tasks.
pub fn tasks(run: &RunId) -> String {
    format!("runs/{run}/tasks/")
}

/// One task.
pub fn task(run: &RunId, task: &TaskId) -> String {
    format!("runs/{run}/tasks/{task}")
}

/// All claims.
pub fn claims(run: &RunId) -> String {
    format!("runs/{run}/claims/")
}

/// The claim of one task.
pub fn claim(run: &RunId, task: &TaskId) -> String {
    format!("runs/{run}/claims/{task}")
}

/// All checkpoints.
pub fn checkpoints(run: &RunId) -> String {
    format!("runs/{run}/checkpoints/")
}

/// The checkpoint of one task.
pub fn checkpoint(run: &RunId, task: &TaskId) -> String {
    format!("runs/{run}/checkpoints/{task}")
}

/// All events.
pub fn events(run: &RunId) -> String {
    format!("runs/{run}/events/")
}

/// One event.
pub fn event(run: &RunId, seq: u64) -> String {
    format!("runs/{run}/events/{seq:020}")
}

/// All calls.
pub fn calls(run: &RunId) -> String {
    format!("runs/{run}/calls/")
}

/// One call.
pub fn call(run: &RunId, hash: &Digest) -> String {
    format!("runs/{run}/calls/{hash}")
}

/// The last part of a key.
pub fn last_part(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}
