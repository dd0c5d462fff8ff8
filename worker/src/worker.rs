//! One worker from start to end: opens what it needs, runs what it is assigned, and leaves in order.
//!
//! Invariant: each attempt that came in ends in the spool, whether it succeeded, failed, was stopped or panicked;
//! only one whose lease is gone leaves nothing, since nobody would take it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use llamaduo_engine::Device;
use llamaduo_proto::ids::{Incarnation, WorkerId};
use llamaduo_proto::session::{Assignment, AttemptFailure, AttemptOutcome, Completion, Credits};
use llamaduo_proto::task::TaskResult;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::artifacts::Artifacts;
use crate::calls::PaidCalls;
use crate::coordinator::Address;
use crate::error::{Error, Stop};
use crate::home::Home;
use crate::link::{AttemptHandle, Courier, Entry, Link, LinkThread, Registry, Spool};
use crate::models::Models;
use crate::notice::Telling;
use crate::options::Options;
use crate::random;
use crate::service_llm::Services;
use crate::tasks::{self, Bench, Executor};

/// Far in the future: a timer that is not set.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Works until `shutdown`, until the coordinator drains this worker, or until it refuses it.
///
/// On `shutdown` running attempts stop at their next step and are given back. Returns `Ok` after an orderly end; what
/// could not be told in time is on disk and told by the next start in the same directory.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    options.validate()?;
    let address = Address::new(&options.coordinator_url, options.token.as_ref())?;
    let home = Home::open(&options.directory)?;
    let coordinator = address.client();
    let artifacts = match &options.shared_artifacts {
        Some(path) => Artifacts::shared(path)?,
        None => Artifacts::remote(&options.directory.join("artifacts"), coordinator.clone())?,
    };
    let spool = Arc::new(Spool::open(&options.directory.join("spool"))?);
    let registry = Arc::new(Registry::new());
    let telling = Telling::new(options.tell.clone());
    let told = CancellationToken::new();
    let courier = Courier {
        spool: Arc::clone(&spool),
        registry: Arc::clone(&registry),
        coordinator: coordinator.clone(),
        artifacts: artifacts.clone(),
        telling: telling.clone(),
        url: address.url().to_owned(),
        ended: told.clone(),
    };
    tokio::select! {
        () = courier.deliver_left_over() => {}
        () = shutdown.cancelled() => return Ok(()),
    }

    let calls = PaidCalls::new(
        coordinator,
        artifacts.clone(),
        Arc::clone(&spool),
        options.prices.clone(),
    );
    let mut worker = Worker {
        id: options.worker_id.clone(),
        home,
        bench: Arc::new(Bench {
            artifacts,
            calls,
            services: Services::default(),
            models: Models::new(options.models.clone()),
            executor: Executor::start(options.local_model_slots, options.threads, options.device)?,
        }),
        spool,
        registry,
        attempts: JoinSet::new(),
        handles: HashMap::new(),
    };
    let mut courier_task = JoinSet::new();
    courier_task.spawn(courier.run());
    let ended = worker.attach(address, telling, &options, &shutdown).await;
    // After an orderly end nothing runs any more; after another, a model thread must not go on for nobody.
    worker.registry.stop_all(&Stop::Draining);
    told.cancel();
    courier_task.shutdown().await;
    worker.attempts.shutdown().await;
    worker.bench.executor.close().await;
    ended
}

fn incarnation() -> Result<Incarnation, Error> {
    let text = format!("{:016x}{:016x}", random::bits(), random::bits());
    Incarnation::new(&text).map_err(|error| Error::Options {
        field: "incarnation",
        expected: "a valid id",
        found: error.to_string(),
    })
}

fn device(options: &Options) -> String {
    if let Device::Cuda(_) = options.device {
        return options.device.to_string();
    }
    let n_threads = options
        .threads
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from));
    format!("cpu, {} threads", n_threads.unwrap_or(1))
}

struct Worker {
    id: WorkerId,
    /// Held for as long as anything of this worker lives.
    home: Home,
    bench: Arc<Bench>,
    spool: Arc<Spool>,
    registry: Arc<Registry>,
    attempts: JoinSet<()>,
    /// Whose task is whose attempt, to end one that panicked.
    handles: HashMap<Id, Arc<AttemptHandle>>,
}

impl Worker {
    /// Links to the coordinator and works until the end.
    async fn attach(
        &mut self,
        address: Address,
        telling: Telling,
        options: &Options,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let credits = Credits {
            local_model_slots: options.local_model_slots,
            service_slots: options.service_slots,
        };
        let n_slots = options.local_model_slots.saturating_add(options.service_slots) as usize;
        let (assignments, inbox) = mpsc::channel(n_slots);
        let finished = CancellationToken::new();
        let mut link = LinkThread::start(Link {
            address,
            telling,
            worker: self.id.clone(),
            incarnation: incarnation()?,
            directory: self.home.id.clone(),
            device: device(options),
            credits,
            registry: Arc::clone(&self.registry),
            assignments,
            finished: finished.clone(),
        })?;
        tokio::select! {
            () = self.work(inbox, shutdown, options.shutdown_grace) => {}
            ended = link.ended() => {
                // What was paid for or trained is kept, even if this coordinator does not want it now.
                self.wind_up(options.shutdown_grace).await;
                return ended;
            }
        }
        finished.cancel();
        link.ended().await
    }

    /// Runs what is assigned until there is nothing left to run, or no time.
    async fn work(
        &mut self,
        mut inbox: mpsc::Receiver<(Assignment, Arc<AttemptHandle>)>,
        shutdown: &CancellationToken,
        grace: Duration,
    ) {
        let registry = Arc::clone(&self.registry);
        let draining = registry.draining();
        let mut deadline = Instant::now() + NEVER;
        let mut is_leaving = false;
        loop {
            tokio::select! {
                Some((assignment, handle)) = inbox.recv() => self.begin(assignment, handle),
                Some(joined) = self.attempts.join_next_with_id() => self.joined(joined).await,
                () = shutdown.cancelled(), if !is_leaving => {
                    tracing::info!(worker_id = %self.id, "shutting down");
                    is_leaving = true;
                    deadline = Instant::now() + grace;
                    registry.drain();
                    registry.stop_all(&Stop::Draining);
                }
                () = registry.emptied(), if draining.is_cancelled() => return,
                () = draining.cancelled(), if !draining.is_cancelled() => {}
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(worker_id = %self.id, "leaving before everything was told; the spool keeps it");
                    return;
                }
            }
        }
    }

    /// Stops every attempt and waits until it has left what it did in the spool, at most for `grace`.
    async fn wind_up(&mut self, grace: Duration) {
        self.registry.drain();
        self.registry.stop_all(&Stop::Draining);
        let deadline = Instant::now() + grace;
        while let Ok(Some(joined)) =
            tokio::time::timeout_at(deadline, self.attempts.join_next_with_id()).await
        {
            self.joined(joined).await;
        }
    }

    fn begin(&mut self, assignment: Assignment, handle: Arc<AttemptHandle>) {
        tracing::info!(
            run_id = %handle.id.run,
            task_id = %handle.id.task,
            attempt = handle.id.attempt.0,
            "attempt begins"
        );
        let (bench, spool, registry) = (
            Arc::clone(&self.bench),
            Arc::clone(&self.spool),
            Arc::clone(&self.registry),
        );
        let (worker, attempt) = (self.id.clone(), Arc::clone(&handle));
        let task = self.attempts.spawn(async move {
            let result = tasks::run(&bench, &assignment, &attempt).await;
            end(&spool, &registry, worker, &attempt, result).await;
        });
        self.handles.insert(task.id(), handle);
    }

    async fn joined(&mut self, joined: Result<(Id, ()), tokio::task::JoinError>) {
        match joined {
            Ok((id, ())) => drop(self.handles.remove(&id)),
            Err(error) => {
                if let Some(handle) = self.handles.remove(&error.id()) {
                    let result = Err(Error::Gone("attempt"));
                    end(&self.spool, &self.registry, self.id.clone(), &handle, result).await;
                }
            }
        }
    }
}

/// Puts the end of an attempt where the courier finds it.
async fn end(
    spool: &Arc<Spool>,
    registry: &Registry,
    worker: WorkerId,
    attempt: &AttemptHandle,
    result: Result<TaskResult, Error>,
) {
    let id = attempt.id.clone();
    if attempt.stop_reason() == Some(&Stop::Revoked) {
        tracing::info!(run_id = %id.run, task_id = %id.task, "attempt dropped, its lease is gone");
        return registry.forget(&id);
    }
    let outcome = match result {
        Ok(result) => AttemptOutcome::Done(result),
        Err(error) => AttemptOutcome::Failed(failure(attempt, &error)),
    };
    match &outcome {
        AttemptOutcome::Done(_) => tracing::info!(run_id = %id.run, task_id = %id.task, "attempt done"),
        AttemptOutcome::Failed(failure) => tracing::warn!(
            run_id = %id.run,
            task_id = %id.task,
            kind = ?failure.kind,
            reason = failure.message,
            "attempt failed"
        ),
    }
    let completion = Completion {
        attempt: id.clone(),
        worker,
        outcome,
    };
    let spool = Arc::clone(spool);
    let spooled = tokio::task::spawn_blocking(move || spool.put(Entry::End(completion))).await;
    if let Err(error) = spooled.unwrap_or(Err(Error::Gone("disk task"))) {
        // Unlisted, its lease runs out and the coordinator gives it to somebody with room on the disk.
        tracing::error!(run_id = %id.run, task_id = %id.task, reason = error.message(), "cannot spool the attempt's end");
        registry.forget(&id);
    }
}

/// An error as the end of an attempt. Whatever broke because the attempt was being stopped is told as the stop.
fn failure(attempt: &AttemptHandle, error: &Error) -> AttemptFailure {
    let stopped = attempt.stop_reason().map(|stop| Error::Stopped(stop.clone()));
    let error = stopped.as_ref().unwrap_or(error);
    AttemptFailure {
        kind: error.failure_kind(),
        message: error.message(),
        checkpoint: attempt.checkpoint(),
    }
}

#[cfg(test)]
mod tests;
