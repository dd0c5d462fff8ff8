//! Actors under paused time, and over a store that fails.

mod flaky;
mod names;

use std::sync::Arc;
use std::time::Duration;

use llamaduo_artifacts::Directory;
use llamaduo_proto::Digest;
use llamaduo_proto::event::RunEvent;
use llamaduo_proto::ids::{DirectoryId, Incarnation, RequestId, RunId, TaskId, WorkerId};
use llamaduo_proto::run::{Budget, RunStatus, Subject};
use llamaduo_proto::session::{Assignment, Credits, Hello, RunningAttempt, ToWorker};
use llamaduo_proto::task::{TaskSpec, TaskStatus};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::commit::decode;
use super::runs::Runs;
use super::scheduler::{AttachError, Cancels, Message, OUTBOX_LEN, Scheduler, SessionId};
use super::{Shared, Timing};
use crate::machine::tests::world::{World, digest, result_of};
use crate::machine::{Event, TaskKind, Work};
use crate::store::memory::Memory;
use crate::store::{Compare, Op, Outcome, StateStore, Txn, keys, range_all};

/// A coordinator without a face.
struct Coordinator {
    runs: Arc<Runs>,
    scheduler: mpsc::Sender<Message>,
    parts: JoinSet<()>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Coordinator {
    fn start(store: Arc<dyn StateStore>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let artifacts = Directory::open(directory.path()).expect("a new directory");
        let (cancels, cancelled) = Cancels::new();
        let timing = Timing::new(crate::LEASE, crate::HEARTBEAT);
        let shared = Arc::new(Shared::new(store, artifacts, timing, cancels));
        let stop = CancellationToken::new();
        let runs = Arc::new(Runs::new(shared, stop.clone()));
        let (scheduler, mailbox) = Scheduler::new(Arc::clone(&runs), cancelled);
        let mut parts = JoinSet::new();
        parts.spawn(scheduler.run(stop.clone()));
        let supervised = Arc::clone(&runs);
        parts.spawn(async move { supervised.supervise().await });
        Self {
            runs,
            scheduler: mailbox,
            parts,
            stop,
            _directory: directory,
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.parts.join_next().await {
            ended.expect("no panic");
        }
    }

    async fn attach(&self, name: &str, process: u32, running: Vec<RunningAttempt>) -> Worker {
        self.attach_from(name, name, process, running)
            .await
            .expect("it may attach")
    }

    async fn attach_from(
        &self,
        directory: &str,
        name: &str,
        process: u32,
        running: Vec<RunningAttempt>,
    ) -> Result<Worker, AttachError> {
        let hello = Hello {
            worker: WorkerId::new(name).expect("a valid id"),
            incarnation: Incarnation::new(&format!("{name}-{process}")).expect("a valid id"),
            device: String::new(),
            credits: Credits {
                local_model_slots: 1,
                service_slots: 1,
            },
            running,
            directory: Some(DirectoryId::new(directory).expect("a valid id")),
        };
        let (outbox, inbox) = mpsc::channel(OUTBOX_LEN);
        let (reply, answer) = oneshot::channel();
        let close = CancellationToken::new();
        self.scheduler
            .send(Message::Attach {
                hello,
                outbox,
                close,
                reply,
            })
            .await
            .expect("it runs");
        let id = answer.await.expect("it answers")?;
        let mut worker = Worker { id, inbox };
        assert!(
            matches!(worker.inbox.recv().await, Some(ToWorker::Welcome(_))),
            "a welcome comes first"
        );
        Ok(worker)
    }

    async fn status(&self, run: &RunId) -> RunStatus {
        self.runs
            .find(run)
            .await
            .expect("the store answers")
            .expect("it exists")
            .head
            .status
    }
}

struct Worker {
    id: SessionId,
    inbox: mpsc::Receiver<ToWorker>,
}

impl Worker {
    async fn assignment(&mut self) -> Assignment {
        loop {
            if let ToWorker::Assignment(assignment) = self.inbox.recv().await.expect("the session goes on") {
                return *assignment;
            }
        }
    }
}

fn single() -> Work {
    let world = World::migration(1);
    let id = TaskKind::Infer {
        subject: Subject::Service,
        shard: 0,
    }
    .id(llamaduo_proto::ids::Cycle(0));
    let spec = world.run.task_spec(&id).expect("an infer task");
    Work::Single {
        name: "one task".to_owned(),
        spec: Box::new(spec),
        budget: Budget::default(),
    }
}

fn request(name: &str) -> RequestId {
    RequestId::new(name).expect("a valid id")
}

fn completion(assignment: &Assignment, spec: &TaskSpec) -> Event {
    let result = result_of(&assignment.attempt.task, spec);
    let digest = digest(&format!("{:?}", assignment.attempt));
    Event::Completed {
        attempt: assignment.attempt.clone(),
        result,
        digest,
    }
}

/// Every event of a run, as the store holds it.
async fn events(store: &dyn StateStore, run: &RunId) -> Vec<RunEvent> {
    let (entries, _) = range_all(store, &keys::events(run))
        .await
        .expect("the store answers");
    entries
        .iter()
        .map(|entry| decode(entry).expect("an event"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_lease_without_heartbeats_expires_after_eighteen_seconds() {
    let coordinator = Coordinator::start(Arc::new(Memory::new()));
    let (run, _) = coordinator
        .runs
        .submit(request("a"), single())
        .await
        .expect("accepted");
    let mut silent = coordinator.attach("silent", 1, vec![]).await;
    let old = silent.assignment().await;
    let leased_at = Instant::now();
    let mut other = coordinator.attach("other", 1, vec![]).await;
    let heard = || Message::Heard {
        session: other.id.clone(),
    };
    let mut next = None;
    for _ in 0..8 {
        coordinator.scheduler.send(heard()).await.expect("it runs");
        if let Ok(message) = timeout(Duration::from_secs(5), other.inbox.recv()).await {
            next = message;
            break;
        }
    }
    let Some(ToWorker::Assignment(new)) = next else {
        panic!("an assignment, not {next:?}")
    };
    let waited = leased_at.elapsed();
    assert!(
        waited >= Duration::from_secs(18) && waited < Duration::from_secs(22),
        "{waited:?}"
    );
    assert!(new.attempt.token > old.attempt.token);
    let refused = coordinator.runs.step(&run.id, completion(&old, &old.spec)).await;
    assert!(refused.is_err(), "the old token is stale");
    coordinator
        .runs
        .step(&run.id, completion(&new, &new.spec))
        .await
        .expect("the lease is current");
    assert_eq!(coordinator.status(&run.id).await, RunStatus::Passed);
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_gives_each_running_attempt_one_fresh_lease() {
    let store: Arc<dyn StateStore> = Arc::new(Memory::new());
    let first = Coordinator::start(Arc::clone(&store));
    let (run, _) = first.runs.submit(request("a"), single()).await.expect("accepted");
    let held = first.attach("w1", 1, vec![]).await.assignment().await;
    tokio::time::sleep(Duration::from_secs(17)).await;
    first.stop().await;
    let second = Coordinator::start(store);
    tokio::time::sleep(Duration::from_secs(17)).await;
    let now = second
        .runs
        .find(&run.id)
        .await
        .expect("the store answers")
        .expect("it exists");
    assert!(
        now.current(&held.attempt).is_some(),
        "34 s after the claim, 17 s after the restart"
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = second
        .runs
        .find(&run.id)
        .await
        .expect("the store answers")
        .expect("it exists");
    assert!(now.current(&held.attempt).is_none(), "one lease, not two");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_silent_for_a_lease_gets_nothing_new() {
    let coordinator = Coordinator::start(Arc::new(Memory::new()));
    let mut worker = coordinator.attach("w1", 1, vec![]).await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    coordinator
        .runs
        .submit(request("a"), single())
        .await
        .expect("accepted");
    assert!(
        timeout(Duration::from_secs(5), worker.assignment())
            .await
            .is_err()
    );
    let session = worker.id.clone();
    coordinator
        .scheduler
        .send(Message::Heard { session })
        .await
        .expect("it runs");
    timeout(Duration::from_secs(2), worker.assignment())
        .await
        .expect("it spoke, so it gets the task");
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_worker_finishes_and_takes_nothing_new() {
    let coordinator = Coordinator::start(Arc::new(Memory::new()));
    let mut worker = coordinator.attach("w1", 1, vec![]).await;
    let (reply, answer) = oneshot::channel();
    let id = worker.id.worker.clone();
    coordinator
        .scheduler
        .send(Message::Drain { worker: id, reply })
        .await
        .expect("it runs");
    assert!(answer.await.expect("it answers"));
    assert!(matches!(worker.inbox.recv().await, Some(ToWorker::Drain)));
    coordinator
        .runs
        .submit(request("a"), single())
        .await
        .expect("accepted");
    assert!(
        timeout(Duration::from_secs(5), worker.assignment())
            .await
            .is_err()
    );
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_writer_of_a_run_is_noticed_and_nothing_is_lost() {
    let store: Arc<dyn StateStore> = Arc::new(Memory::new());
    let coordinator = Coordinator::start(Arc::clone(&store));
    let (run, _) = coordinator
        .runs
        .submit(request("a"), single())
        .await
        .expect("accepted");
    let head = store
        .get(&keys::head(&run.id))
        .await
        .expect("the store answers")
        .expect("it exists");
    let rewrite = Txn {
        compares: vec![Compare::Modified(head.key.clone(), head.modified)],
        ops: vec![Op::Put(head.key.clone(), head.value)],
    };
    assert!(matches!(store.txn(rewrite).await, Ok(Outcome::Committed(_))));
    let cancelled = coordinator
        .runs
        .step(
            &run.id,
            Event::Cancel {
                reason: "enough".to_owned(),
            },
        )
        .await;
    assert_eq!(
        cancelled.expect("it was tried again").head.status,
        RunStatus::Cancelled
    );
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_now_and_then_neither_loses_nor_repeats_anything() {
    for seed in 0..40 {
        let memory = Arc::new(Memory::new());
        let store = Arc::new(flaky::Flaky::new(Arc::clone(&memory), seed));
        let coordinator = Coordinator::start(store);
        let run = loop {
            if let Ok((run, _)) = coordinator.runs.submit(request("a"), single()).await {
                break run.id.clone();
            }
        };
        let mut process = 1;
        let mut worker = coordinator.attach("w1", process, vec![]).await;
        while coordinator.status(&run).await != RunStatus::Passed {
            let Ok(held) = timeout(Duration::from_secs(20), worker.assignment()).await else {
                // A claim of unknown outcome was never sent; the worker speaks up and gets it after the lease.
                process += 1;
                worker = coordinator.attach("w1", process, vec![]).await;
                continue;
            };
            // A worker repeats its report until it is told that it is recorded or refused.
            while let Err(super::run::StepError::Unavailable) =
                coordinator.runs.step(&run, completion(&held, &held.spec)).await
            {}
        }
        let task = TaskId::new("task").expect("a valid id");
        let now = coordinator
            .runs
            .find(&run)
            .await
            .expect("the store answers")
            .expect("it exists");
        assert_eq!(now.tasks[&task].record.status, TaskStatus::Done);
        coordinator.stop().await;
        let events = events(&*memory, &run).await;
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>(), "seed {seed}");
        let n_done = events
            .iter()
            .filter(|event| format!("{:?}", event.kind).starts_with("TaskDone"))
            .count();
        assert_eq!(n_done, 1, "seed {seed}: done once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_goes_some_time_after_nothing_names_it_any_more() {
    let store: Arc<dyn StateStore> = Arc::new(Memory::new());
    let coordinator = Coordinator::start(store);
    let (first, _) = coordinator
        .runs
        .submit(request("a"), single())
        .await
        .expect("accepted");
    let mut w1 = coordinator.attach("w1", 1, vec![]).await;
    let task = w1.assignment().await;
    let (other, _) = coordinator
        .runs
        .submit(request("b"), single())
        .await
        .expect("accepted");
    let mut w2 = coordinator.attach("w2", 1, vec![]).await;
    let others = w2.assignment().await;
    let artifacts = coordinator.runs.shared().artifacts.clone();
    let put = |text: &str| artifacts.put(text.as_bytes()).expect("stored");
    let [old, new, shared] = ["old", "new", "shared"].map(put);
    let beat = async |name: &str, of: &Assignment, checkpoint: Digest| {
        let event = Event::Heartbeat {
            worker: WorkerId::new(name).expect("a valid id"),
            running: vec![RunningAttempt {
                attempt: of.attempt.clone(),
                progress: None,
                checkpoint: Some(checkpoint),
            }],
        };
        let run = &of.attempt.run;
        coordinator.runs.step(run, event).await.expect("never refused");
    };
    beat("w1", &task, shared).await;
    beat("w1", &task, old).await;
    for _ in 0..20 {
        assert!(artifacts.contains(&shared).expect("looked up"), "kept");
        beat("w1", &task, new).await;
        beat("w2", &others, shared).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let is_there = |digest| artifacts.contains(&digest).expect("looked up");
    assert!(!is_there(old) && is_there(new) && is_there(shared));
    // Done: nothing goes on from it any more.
    for (of, run) in [(&task, &first), (&others, &other)] {
        coordinator
            .runs
            .step(&run.id, completion(of, &of.spec))
            .await
            .expect("the lease is current");
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!is_there(new) && !is_there(shared));
    coordinator.stop().await;
}
