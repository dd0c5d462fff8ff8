//! Leases and failures, one rule at a time.

use llamaduo_proto::ids::{AttemptId, TaskId};
use llamaduo_proto::run::RunStatus;
use llamaduo_proto::session::RunningAttempt;
use llamaduo_proto::task::{FailureKind, TaskStatus};

use super::world::{World, digest, incarnation, worker};
use crate::machine::{Event, Refusal};

fn first(world: &World) -> TaskId {
    world.ready()[0].clone()
}

fn heartbeat(world: &mut World, attempt: &AttemptId, checkpoint: Option<&str>) {
    let checkpoint = checkpoint.map(digest);
    let running = vec![RunningAttempt {
        attempt: attempt.clone(),
        progress: None,
        checkpoint,
    }];
    let event = Event::Heartbeat {
        worker: worker("w1"),
        running,
    };
    world.step(event).expect("never refused");
}

fn tick_for(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.pass_time(1.0);
        world.step(Event::Tick).expect("never refused");
    }
}

/// Lets the running attempt of `task` end by `kind` and waits until it may be leased again.
fn lose(world: &mut World, task: &TaskId, by: &str, process: u32) {
    world.claim_as(task, by, process);
    let event = Event::Attached {
        worker: worker(by),
        incarnation: incarnation(process + 1),
        running: vec![],
    };
    world.step(event).expect("never refused");
    tick_for(world, 61);
}

fn status(world: &World, task: &TaskId) -> TaskStatus {
    world.run.tasks[task].record.status
}

#[test]
fn one_lease_at_a_time_and_a_stale_token_changes_nothing() {
    let mut world = World::migration(1);
    let task = first(&world);
    let old = world.claim(&task, "w1");
    let again = Event::Claim {
        task: task.clone(),
        worker: worker("w2"),
        incarnation: incarnation(1),
    };
    assert_eq!(world.step(again), Err(Refusal::NotReady { task: task.clone() }));
    tick_for(&mut world, 18);
    assert_eq!(
        status(&world, &task),
        TaskStatus::Ready,
        "expired after 15 s and a fifth"
    );
    tick_for(&mut world, 2);
    let new = world.claim(&task, "w2");
    assert!(new.token > old.token && new.attempt > old.attempt);
    let before = world.run.clone();
    assert_eq!(
        world.complete(&old),
        Err(Refusal::StaleToken {
            attempt: Box::new(old.clone())
        })
    );
    assert_eq!(
        world.fail(&old, FailureKind::Permanent),
        Err(Refusal::StaleToken {
            attempt: Box::new(old)
        })
    );
    assert_eq!(world.run, before);
    world.complete(&new).expect("the lease is current");
}

#[test]
fn a_repeated_report_is_recognised_and_another_one_is_not() {
    let mut world = World::migration(1);
    let done = world.claim(&first(&world), "w1");
    world.complete(&done).expect("the lease is current");
    assert_eq!(world.complete(&done), Err(Refusal::AlreadyRecorded));
    assert!(matches!(
        world.fail(&done, FailureKind::Retryable),
        Err(Refusal::StaleToken { .. })
    ));
    let failed = world.claim(&first(&world), "w1");
    world
        .fail(&failed, FailureKind::Retryable)
        .expect("the lease is current");
    assert_eq!(
        world.fail(&failed, FailureKind::Retryable),
        Err(Refusal::AlreadyRecorded)
    );
}

#[test]
fn heartbeats_keep_a_lease_and_bring_checkpoints_to_the_next_attempt() {
    let mut world = World::migration(1);
    let task = first(&world);
    let attempt = world.claim(&task, "w1");
    for _ in 0..20 {
        tick_for(&mut world, 5);
        heartbeat(&mut world, &attempt, Some("checkpoint 1"));
    }
    assert!(world.run.current(&attempt).is_some(), "100 s on a lease of 15 s");
    tick_for(&mut world, 20);
    assert_eq!(status(&world, &task), TaskStatus::Ready);
    let record = &world.run.tasks[&task].record;
    assert!(record.lost_on.is_empty(), "a checkpoint moved it forward");
    world.claim(&task, "w2");
    let lease = world.run.tasks[&task].lease.as_ref().expect("claimed");
    assert_eq!(lease.claim.checkpoint, Some(digest("checkpoint 1")));
}

#[test]
fn a_pause_of_the_coordinator_expires_nothing() {
    let mut world = World::migration(1);
    let attempt = world.claim(&first(&world), "w1");
    tick_for(&mut world, 10);
    world.pass_time(3_600.0);
    world.step(Event::Tick).expect("never refused");
    assert!(world.run.current(&attempt).is_some(), "the pause does not count");
    tick_for(&mut world, 7);
    assert!(world.run.current(&attempt).is_some());
    tick_for(&mut world, 2);
    assert!(world.run.current(&attempt).is_none(), "time after the pause does");
}

#[test]
fn attaching_again_adopts_what_runs_and_takes_back_the_rest() {
    let mut world = World::migration(1);
    let (a, b) = (world.ready()[0].clone(), world.ready()[1].clone());
    let kept = world.claim(&a, "w1");
    let dropped = world.claim(&b, "w1");
    let running = vec![RunningAttempt {
        attempt: kept.clone(),
        progress: None,
        checkpoint: None,
    }];
    let event = Event::Attached {
        worker: worker("w1"),
        incarnation: incarnation(1),
        running,
    };
    world.step(event).expect("never refused");
    assert!(world.run.current(&kept).is_some());
    assert!(world.run.current(&dropped).is_none());
    assert_eq!(world.run.tasks[&b].record.failures[0].kind, FailureKind::Released);
    let event = Event::Attached {
        worker: worker("w1"),
        incarnation: incarnation(2),
        running: vec![],
    };
    world.step(event).expect("never refused");
    assert!(world.run.current(&kept).is_none(), "its process is gone");
    assert_eq!(
        world.run.tasks[&a].record.failures[0].kind,
        FailureKind::WorkerLost
    );
}

#[test]
fn a_result_that_a_dead_process_left_on_its_disk_is_adopted_with_its_lease() {
    let mut world = World::migration(1);
    let attempt = world.claim(&first(&world), "w1");
    let running = vec![RunningAttempt {
        attempt: attempt.clone(),
        progress: None,
        checkpoint: None,
    }];
    let event = Event::Attached {
        worker: worker("w1"),
        incarnation: incarnation(2),
        running,
    };
    world.step(event).expect("never refused");
    world
        .complete(&attempt)
        .expect("the new process speaks for the old");
}

#[test]
fn a_goodbye_gives_everything_back_without_blame() {
    let mut world = World::migration(1);
    let task = first(&world);
    world.claim(&task, "w1");
    let event = Event::Left { worker: worker("w1") };
    world.step(event).expect("never refused");
    let record = &world.run.tasks[&task].record;
    assert_eq!(
        (record.status, record.n_failed, record.lost_on.len()),
        (TaskStatus::Ready, 0, 0)
    );
}

#[test]
fn four_failed_attempts_quarantine() {
    let mut world = World::migration(1);
    let task = first(&world);
    for n in 1..=4_u32 {
        assert_eq!(status(&world, &task), TaskStatus::Ready);
        let attempt = world.claim(&task, "w1");
        world
            .fail(&attempt, FailureKind::OutOfMemory)
            .expect("the lease is current");
        assert_eq!(world.run.tasks[&task].record.batch_halvings, n);
        world.pass_time(61.0);
    }
    assert_eq!(status(&world, &task), TaskStatus::Quarantined);
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Failed);
}

#[test]
fn three_lost_workers_of_two_quarantine_and_eight_of_one() {
    let mut two = World::migration(1);
    let task = first(&two);
    lose(&mut two, &task, "w1", 1);
    lose(&mut two, &task, "w2", 1);
    assert_eq!(status(&two, &task), TaskStatus::Ready);
    lose(&mut two, &task, "w1", 3);
    assert_eq!(status(&two, &task), TaskStatus::Quarantined);

    let mut one = World::migration(1);
    for process in 1..=7 {
        lose(&mut one, &task, "w1", process);
        assert_eq!(status(&one, &task), TaskStatus::Ready, "after {process}");
    }
    lose(&mut one, &task, "w1", 8);
    assert_eq!(status(&one, &task), TaskStatus::Quarantined);
}

#[test]
fn who_restarts_a_worker_does_not_wait() {
    let mut world = World::migration(1);
    let task = first(&world);
    for process in 1..=3 {
        world.claim_as(&task, "w1", process);
        let event = Event::Attached {
            worker: worker("w1"),
            incarnation: incarnation(process + 1),
            running: vec![],
        };
        world.step(event).expect("never refused");
        let state = &world.run.tasks[&task];
        assert!(state.not_before <= world.now.clock, "free at once, {process}");
        assert_eq!(state.record.lost_on.len(), process as usize, "but counted");
    }
}

#[test]
fn a_service_that_stays_away_fails_the_run_and_not_the_task() {
    let mut world = World::migration(1);
    let task = first(&world);
    for _ in 0..4 {
        assert!(world.run.is_open());
        let attempt = world.claim(&task, "w1");
        world
            .fail(&attempt, FailureKind::ServiceUnavailable)
            .expect("the lease is current");
        world.pass_time(61.0);
    }
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::ServiceFailed);
    assert_eq!(world.run.tasks[&task].record.n_failed, 0);
}

#[test]
fn a_damaged_checkpoint_is_dropped_and_other_damage_quarantines() {
    let mut world = World::migration(1);
    let task = first(&world);
    let attempt = world.claim(&task, "w1");
    heartbeat(&mut world, &attempt, Some("checkpoint"));
    world
        .fail(&attempt, FailureKind::Retryable)
        .expect("the lease is current");
    world.pass_time(61.0);
    let attempt = world.claim(&task, "w1");
    world
        .fail(&attempt, FailureKind::CorruptInput)
        .expect("the lease is current");
    assert_eq!(
        (status(&world, &task), world.run.tasks[&task].checkpoint),
        (TaskStatus::Ready, None)
    );
    world.pass_time(61.0);
    let attempt = world.claim(&task, "w1");
    world
        .fail(&attempt, FailureKind::CorruptInput)
        .expect("the lease is current");
    assert_eq!(status(&world, &task), TaskStatus::Quarantined);
}

#[test]
fn a_result_of_another_kind_is_refused() {
    let mut world = World::migration(1);
    let attempt = world.claim(&first(&world), "w1");
    let judge = llamaduo_proto::task::TaskResult {
        manifest: digest("m"),
        output: llamaduo_proto::task::TaskOutput::Judge(llamaduo_proto::task::JudgeOutput {
            verdicts: digest("v"),
            n_graded: 1,
            n_unparsed: 0,
        }),
    };
    let event = Event::Completed {
        attempt: attempt.clone(),
        result: judge,
        digest: digest("d"),
    };
    assert!(matches!(world.step(event), Err(Refusal::WrongOutput { .. })));
    assert!(
        world.run.current(&attempt).is_some(),
        "it may still report properly"
    );
}

#[test]
fn back_off_grows_with_full_jitter_up_to_a_minute() {
    use super::super::failure::{Next, after};
    let mut delays = Vec::new();
    for jitter in [0, u64::MAX / 2, u64::MAX] {
        let world = World::migration(1);
        let mut record = world.run.tasks[&first(&world)].record.clone();
        for _ in 0..3 {
            match after(&mut record, FailureKind::Retryable, &worker("w1"), false, jitter) {
                Next::Retry(delay) => delays.push(delay.as_millis()),
                other => panic!("a retry, not {other:?}"),
            }
        }
    }
    assert_eq!(delays, [0, 0, 0, 499, 999, 1999, 999, 1999, 3999]);
}
