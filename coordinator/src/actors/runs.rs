//! Who is in charge of which run: starts an actor for every live run and finds it again.
//!
//! Invariant: `reconcile` takes no input but the store; a run whose actor died or was never started gets one at the
//! next tick.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llamaduo_proto::ids::{RequestId, RunId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::commit::{self, decode};
use super::run::{RunActor, RunHandle, StepError};
use crate::error::in_words;
use crate::machine::{Event, Run, Work, is_same_run};
use crate::store::{self, Outcome, keys, range_all};

/// How often live runs without an actor are looked for.
const RECONCILE_PERIOD: Duration = Duration::from_secs(1);
/// Runs whose cost is remembered, a few numbers each: beyond it what the ended ones cost is counted anew, which keeps
/// the calls of live runs waiting, when somebody asks.
const COSTS_MAX: usize = 16_384;
/// Times an event is offered to an actor that goes away under it.
const OFFERS_MAX: u32 = 3;

/// Why nothing was submitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    /// The name of the submission is that of another.
    #[error(
        "request id {request} made run {run}, which has other settings; choose another request id for a new run"
    )]
    RequestReused { request: RequestId, run: RunId },
    /// The store.
    #[error(transparent)]
    Commit(#[from] commit::Error),
}

impl From<store::Error> for SubmitError {
    fn from(error: store::Error) -> Self {
        Self::Commit(error.into())
    }
}

/// All runs.
#[derive(Debug)]
pub(crate) struct Runs {
    shared: Arc<Shared>,
    live: Mutex<Live>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Live {
    handles: BTreeMap<RunId, RunHandle>,
    actors: JoinSet<()>,
}

impl Runs {
    pub(crate) fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self {
            shared,
            live: Mutex::default(),
            stop,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Nothing panics while the lock is held, so a poisoned lock still guards whole maps.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a run of `work`, or finds the one that this request made before. The flag says whether it is new.
    pub(crate) async fn submit(
        &self,
        request: RequestId,
        work: Work,
    ) -> Result<(Arc<Run>, bool), SubmitError> {
        let store = &*self.shared.store;
        for _ in 0..OFFERS_MAX {
            if let Some(entry) = store.get(&keys::request(&request)).await? {
                let id: RunId = decode(&entry)?;
                let missing = || commit::Error::Incomplete {
                    run: id.clone(),
                    key: keys::head(&id),
                };
                let run = self.find(&id).await?.ok_or_else(missing)?;
                if is_same_run(&run.work, &work) {
                    return Ok((run, false));
                }
                return Err(SubmitError::RequestReused { request, run: id });
            }
            let (rules, now) = (self.shared.timing.rules, self.shared.now());
            let id = run_id(work.name(), &request);
            let (run, _) = Run::submitted(id, request.clone(), work.clone(), rules, now);
            if let Outcome::Committed(head) = store.txn(commit::txn_of(None, &run)?).await? {
                tracing::info!(run_id = %run.id, "run submitted");
                let handle = self.start(run, head);
                // The first step asks for whatever is to be done.
                let _ = handle.step(Event::Tick).await;
                return Ok((handle.snapshot(), true));
            }
            // Another call with this request came first; it is found now.
        }
        Err(store::Error::Unavailable {
            reason: "a submission conflicts with others again and again",
        }
        .into())
    }

    /// A run as last committed, live or ended.
    pub(crate) async fn find(&self, id: &RunId) -> Result<Option<Arc<Run>>, commit::Error> {
        if let Some(handle) = self.live_handle(id)
            && let Some(run) = handle.read().await
        {
            return Ok(Some(run));
        }
        let (rules, now) = (self.shared.timing.rules, self.shared.now());
        let loaded = commit::load(&*self.shared.store, id, rules, now).await?;
        Ok(loaded.map(|(run, _)| Arc::new(run)))
    }

    /// Every run that has an actor, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<Arc<Run>> {
        let mut runs: Vec<Arc<Run>> = self.live().handles.values().map(RunHandle::snapshot).collect();
        runs.sort_by(|a, b| (a.head.submitted_at_ms, &a.id).cmp(&(b.head.submitted_at_ms, &b.id)));
        runs
    }

    /// Has `event` happen to a run, and gives the run after it.
    pub(crate) async fn step(&self, id: &RunId, event: Event) -> Result<Arc<Run>, StepError> {
        for _ in 0..OFFERS_MAX {
            let handle = match self.live_handle(id) {
                Some(handle) => handle,
                None => self.load(id).await?,
            };
            if let Some(outcome) = handle.step(event.clone()).await {
                return outcome;
            }
        }
        Err(StepError::Unavailable)
    }

    /// Whether a run has not ended. A run that cannot be looked up counts as live: nothing is taken away on a guess.
    pub(crate) async fn is_live(&self, id: &RunId) -> bool {
        match self.find(id).await {
            Ok(run) => run.is_some_and(|run| !run.has_ended()),
            Err(_) => true,
        }
    }

    fn live_handle(&self, id: &RunId) -> Option<RunHandle> {
        self.live()
            .handles
            .get(id)
            .filter(|handle| !handle.is_closed())
            .cloned()
    }

    async fn load(&self, id: &RunId) -> Result<RunHandle, StepError> {
        let (rules, now) = (self.shared.timing.rules, self.shared.now());
        match commit::load(&*self.shared.store, id, rules, now).await {
            Ok(Some((run, head))) => Ok(self.start(run, head)),
            Ok(None) => Err(StepError::UnknownRun),
            Err(error) => {
                let error = in_words(&error);
                tracing::error!(run_id = %id, error, "run cannot be read");
                Err(StepError::Unavailable)
            }
        }
    }

    /// Starts an actor, unless somebody was faster.
    fn start(&self, run: Run, head: crate::store::Revision) -> RunHandle {
        let mut live = self.live();
        if let Some(handle) = live.handles.get(&run.id).filter(|handle| !handle.is_closed()) {
            return handle.clone();
        }
        let id = run.id.clone();
        let (actor, handle) = RunActor::new(Arc::clone(&self.shared), run, head, self.stop.child_token());
        live.actors.spawn(actor.run());
        live.handles.insert(id, handle.clone());
        handle
    }

    /// Reconciles until the coordinator stops, then waits for every actor.
    pub(crate) async fn supervise(&self) {
        let mut ticks = tokio::time::interval(RECONCILE_PERIOD);
        while self.stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.reconcile().await {
                let error = in_words(&error);
                tracing::warn!(error, "live runs cannot be listed now");
            }
        }
        let mut actors = std::mem::take(&mut self.live().actors);
        while actors.join_next().await.is_some() {}
    }

    /// Gives every live run an actor and lets go of those that ended.
    pub(crate) async fn reconcile(&self) -> Result<(), commit::Error> {
        {
            let mut live = self.live();
            while let Some(ended) = live.actors.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(%error, "run actor failed");
                }
            }
            live.handles
                .retain(|_, handle| !handle.is_closed() && !handle.snapshot().has_ended());
        }
        self.shared
            .ledger
            .forget(COSTS_MAX, |run| self.live().handles.contains_key(run))
            .await;
        let (entries, _) = range_all(&*self.shared.store, keys::LIVE).await?;
        for id in entries.iter().filter_map(|entry| keys::live_run(&entry.key)) {
            if self.live_handle(&id).is_none() && self.load(&id).await.is_ok() {
                tracing::info!(run_id = %id, "run taken up");
            }
        }
        Ok(())
    }
}

/// A readable id: the start of the run's name and of the request's hash.
fn run_id(name: &str, request: &RequestId) -> RunId {
    let slug: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    let hash = llamaduo_proto::Digest::of(request.as_str().as_bytes()).to_string();
    let hash: String = hash.chars().take(12).collect();
    let text = format!("{}-{hash}", slug.trim_matches('-'));
    RunId::new(text.trim_matches('-')).expect("letters, digits and hyphens, 12 to 53 characters")
}
