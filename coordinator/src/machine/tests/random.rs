//! Random histories of a run: whatever happens in whatever order, the invariants hold and the run ends.

use std::collections::{BTreeMap, BTreeSet};

use llamaduo_proto::ids::{AttemptId, LeaseToken, TaskId};
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::session::RunningAttempt;
use llamaduo_proto::task::{FailureKind, TaskSpec, TaskStatus};
use proptest::prelude::*;

use super::world::{World, digest, incarnation, worker};
use crate::machine::{Event, Refusal, Run, Work};

/// One thing that the world does to a run. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Move {
    Claim {
        task: usize,
        worker: u32,
    },
    Complete {
        attempt: usize,
    },
    Fail {
        attempt: usize,
        kind: usize,
    },
    Heartbeat {
        worker: u32,
        checkpoint: bool,
    },
    Attach {
        worker: u32,
        restarted: bool,
        remembers: bool,
    },
    Leave {
        worker: u32,
    },
    Aggregate {
        which: usize,
    },
    AggregateFails {
        retryable: bool,
    },
    Tick {
        seconds: u32,
    },
    RestartCoordinator,
    Cancel,
}

fn a_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        8 => (any::<usize>(), 0..3_u32).prop_map(|(task, worker)| Move::Claim { task, worker }),
        8 => any::<usize>().prop_map(|attempt| Move::Complete { attempt }),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(attempt, kind)| Move::Fail { attempt, kind }),
        4 => (0..3_u32, any::<bool>()).prop_map(|(worker, checkpoint)| Move::Heartbeat { worker, checkpoint }),
        1 => (0..3_u32, any::<bool>(), any::<bool>())
            .prop_map(|(worker, restarted, remembers)| Move::Attach { worker, restarted, remembers }),
        1 => (0..3_u32).prop_map(|worker| Move::Leave { worker }),
        6 => any::<usize>().prop_map(|which| Move::Aggregate { which }),
        1 => any::<bool>().prop_map(|retryable| Move::AggregateFails { retryable }),
        4 => (1..30_u32).prop_map(|seconds| Move::Tick { seconds }),
        1 => Just(Move::RestartCoordinator),
        // Rare, or few histories would get far.
        1 => (0..20_u32).prop_map(|n| if n == 0 { Move::Cancel } else { Move::Tick { seconds: 1 } }),
    ]
}

const KINDS: [FailureKind; 9] = [
    FailureKind::Retryable,
    FailureKind::Retryable,
    FailureKind::OutOfMemory,
    FailureKind::Released,
    FailureKind::Cancelled,
    FailureKind::CorruptInput,
    FailureKind::Permanent,
    FailureKind::ServiceRefused,
    FailureKind::ServiceUnavailable,
];

struct History {
    world: World,
    /// Every attempt ever leased, current or not: old ones are used for stale reports.
    attempts: Vec<AttemptId>,
    processes: BTreeMap<u32, u32>,
    tokens: BTreeMap<TaskId, LeaseToken>,
    done: BTreeMap<TaskId, llamaduo_proto::task::TaskResult>,
    n_events: u64,
    n_checkpoints: u32,
}

impl History {
    fn new() -> Self {
        let world = World::migration(2);
        let n_events = world.run.head.n_events;
        Self {
            world,
            attempts: vec![],
            processes: BTreeMap::new(),
            tokens: BTreeMap::new(),
            done: BTreeMap::new(),
            n_events,
            n_checkpoints: 0,
        }
    }

    fn process(&self, worker: u32) -> u32 {
        self.processes.get(&worker).copied().unwrap_or(1)
    }

    fn running_on(&self, by: u32, checkpoint: bool) -> Vec<RunningAttempt> {
        let name = format!("w{by}");
        let checkpoint = checkpoint.then(|| digest(&format!("checkpoint {}", self.n_checkpoints)));
        let running = self.world.run.tasks.iter().filter(|(_, task)| {
            task.lease
                .as_ref()
                .is_some_and(|lease| lease.claim.worker.as_str() == name)
        });
        running
            .filter_map(|(id, _)| self.world.run.attempt_id(id))
            .map(|attempt| RunningAttempt {
                attempt,
                progress: None,
                checkpoint,
            })
            .collect()
    }

    fn play(&mut self, one: Move) {
        match one {
            Move::Claim { task, worker: by } => self.claim(task, by),
            Move::Complete { attempt } => self.report(attempt, World::complete),
            Move::Fail { attempt, kind } => {
                self.report(attempt, |world, attempt| {
                    world.fail(attempt, KINDS[kind % KINDS.len()])
                });
            }
            Move::Heartbeat {
                worker: by,
                checkpoint,
            } => {
                self.n_checkpoints += u32::from(checkpoint);
                let running = self.running_on(by, checkpoint);
                self.step(Event::Heartbeat {
                    worker: worker(&format!("w{by}")),
                    running,
                });
            }
            Move::Attach {
                worker: by,
                restarted,
                remembers,
            } => self.attach(by, restarted, remembers),
            Move::Leave { worker: by } => self.step(Event::Left {
                worker: worker(&format!("w{by}")),
            }),
            Move::Aggregate { which } => {
                let due = self.world.aggregates.clone();
                if !due.is_empty() {
                    self.world
                        .aggregate(due[which % due.len()])
                        .expect("aggregates are never refused");
                }
            }
            Move::AggregateFails { retryable } => {
                if let Some(&aggregate) = self.world.aggregates.first() {
                    let message = "it broke".to_owned();
                    self.step(Event::AggregateFailed {
                        aggregate,
                        message,
                        retryable,
                    });
                }
            }
            Move::Tick { seconds } => {
                for _ in 0..seconds {
                    self.world.pass_time(1.0);
                    self.step(Event::Tick);
                }
            }
            Move::RestartCoordinator => self.restart(),
            Move::Cancel => self.step(Event::Cancel {
                reason: "enough".to_owned(),
            }),
        }
    }

    fn claim(&mut self, task: usize, by: u32) {
        let ready = self.world.ready();
        if ready.is_empty() {
            return;
        }
        let attempt = self
            .world
            .claim_as(&ready[task % ready.len()], &format!("w{by}"), self.process(by));
        let last = self.tokens.insert(attempt.task.clone(), attempt.token);
        assert!(
            last.is_none_or(|last| last < attempt.token),
            "tokens of a task grow"
        );
        self.attempts.push(attempt);
    }

    /// Reports the end of an attempt, which may be long over.
    fn report(&mut self, which: usize, report: impl FnOnce(&mut World, &AttemptId) -> Result<(), Refusal>) {
        let Some(attempt) = self.pick(which) else { return };
        let was_current = self.world.run.current(&attempt).is_some();
        let accepted = report(&mut self.world, &attempt);
        assert_eq!(
            accepted.is_ok(),
            was_current,
            "exactly the current lease is listened to: {accepted:?}"
        );
    }

    fn attach(&mut self, by: u32, restarted: bool, remembers: bool) {
        if restarted {
            *self.processes.entry(by).or_insert(1) += 1;
        }
        let running = if remembers {
            self.running_on(by, false)
        } else {
            vec![]
        };
        let (worker, incarnation) = (worker(&format!("w{by}")), incarnation(self.process(by)));
        self.step(Event::Attached {
            worker,
            incarnation,
            running,
        });
    }

    /// What is not persisted is lost; leases get a fresh deadline.
    fn restart(&mut self) {
        let deadline = self.world.now.clock + self.world.run.rules.lease_expiry;
        for task in self.world.run.tasks.values_mut() {
            let task = std::sync::Arc::make_mut(task);
            (task.not_before, task.avoid, task.progress) = Default::default();
            if let Some(lease) = &mut task.lease {
                (lease.deadline, lease.revoked) = (deadline, None);
            }
        }
        self.world.run.last_tick = self.world.now.clock;
        self.world.run.aggregate_not_before = Default::default();
        self.step(Event::Tick);
    }

    fn step(&mut self, event: Event) {
        self.world
            .step(event)
            .expect("this kind of event is never refused");
    }

    fn pick(&self, which: usize) -> Option<AttemptId> {
        // Recent attempts are likelier to be current.
        let recent = self.attempts.len().min(6);
        let from = self.attempts.len() - recent;
        (recent > 0).then(|| self.attempts[from + which % recent].clone())
    }

    fn check(&mut self, before: &Run) {
        let run = &self.world.run;
        assert!(run.head.n_events >= self.n_events);
        self.n_events = run.head.n_events;
        for (i, event) in run.journal.iter().enumerate() {
            assert_eq!(
                event.seq,
                run.head.n_events - (run.journal.len() - 1 - i) as u64,
                "numbered without gaps"
            );
        }
        for (id, task) in &run.tasks {
            let record = &task.record;
            assert_eq!(
                record.status == TaskStatus::Running,
                task.lease.is_some(),
                "{id} runs under one lease"
            );
            if let Some(result) = &record.result {
                let first = self.done.entry(id.clone()).or_insert_with(|| result.clone());
                assert_eq!(
                    (record.status, &*first),
                    (TaskStatus::Done, result),
                    "done is done"
                );
            }
            assert!(
                serde_json::to_vec(record).expect("records are JSON").len() <= 8 * 1024,
                "records stay small"
            );
        }
        if before.has_ended() {
            assert_eq!(before.head.status, run.head.status, "ended is ended");
            assert!(
                run.tasks.values().all(|task| task.lease.is_none()),
                "no leases after the end"
            );
        }
        let test = run.spec().expect("a migration").coverage.test;
        for id in run.tasks.keys() {
            let holds_test = match run.task_spec(id) {
                Some(TaskSpec::Train(task)) => task.data.contains(&test),
                Some(TaskSpec::Synthesize(task)) => task.train == test,
                Some(TaskSpec::Infer(_) | TaskSpec::Judge(_)) | None => false,
            };
            assert!(!holds_test, "the test split must not reach {id}");
        }
    }
}

/// How many store operations a commit of the difference takes, counted as the commit path writes it.
fn n_operations(before: &Run, after: &Run) -> usize {
    crate::actors::commit::txn_of(Some((before, crate::store::Revision(1))), after)
        .expect("records are JSON")
        .ops
        .len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariants_hold_in_any_order_and_the_run_ends(moves in proptest::collection::vec(a_move(), 0..400)) {
        let mut history = History::new();
        for one in moves {
            let before = history.world.run.clone();
            history.play(one);
            history.check(&before);
        }
        // Now everything goes well: the run must come to an end by itself.
        for _ in 0..5_000 {
            if history.world.run.has_ended() {
                break;
            }
            let before = history.world.run.clone();
            if !history.world.do_one() {
                history.play(Move::Tick { seconds: 1 });
            }
            history.check(&before);
        }
        prop_assert!(history.world.run.has_ended(), "stuck: {:?}", history.world.run.head);
        prop_assert_ne!(history.world.run.head.status, RunStatus::Running);
    }

    #[test]
    fn one_step_fits_in_one_transaction(n_leases in 0..96_usize, n_prompts in 1..200_u32, revive in any::<bool>()) {
        let mut spec = super::world::spec();
        spec.coverage.n_test = n_prompts;
        spec.infer.prompts_per_task = 1;
        let mut world = World::new(Work::Migration(Box::new(spec)), 1);
        let ready = world.ready();
        for task in ready.iter().take(n_leases) {
            world.claim(task, "w1");
        }
        let event = if revive {
            Event::Attached { worker: worker("w1"), incarnation: incarnation(9), running: vec![] }
        } else {
            Event::Cancel { reason: "enough".to_owned() }
        };
        let mut event = Some(event);
        let mut n_steps = 0;
        while let Some(next) = event.take() {
            let (after, actions) = crate::machine::step(&world.run, next, world.now).expect("never refused");
            let n_ops = n_operations(&world.run, &after);
            prop_assert!(n_ops <= crate::store::TXN_OPS_MAX, "{n_ops} operations");
            if actions.contains(&crate::machine::Action::StepAgain) {
                event = Some(Event::Tick);
            }
            world.run = after;
            n_steps += 1;
            prop_assert!(n_steps < 10);
        }
        let leases: BTreeSet<_> = world.run.tasks.values().filter_map(|task| task.lease.as_ref()).collect::<Vec<_>>().into_iter().map(|lease| lease.token).collect();
        prop_assert!(leases.is_empty(), "all leases are taken back");
    }
}
