//! Who may report what, and when.

use std::time::Duration;

use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::session::{FromWorker, RunningAttempt};
use llamaduo_proto::task::{FailureKind, Progress};

use super::harness::{Cluster, reason, running};

/// Short, so that a test can wait for it.
const SHORT_LEASE: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_silent_worker_loses_its_lease_and_its_late_result_is_refused() {
    let cluster = Cluster::start_with_lease(SHORT_LEASE).await;
    let run = cluster.submit(cluster.spec()).await;
    let mut silent = cluster.worker("silent").await;
    let old = silent.assignment().await;
    let mut other = cluster.worker("other").await;
    let new = loop {
        let assignment = other.assignment().await;
        if assignment.attempt.task == old.attempt.task {
            break assignment;
        }
        other.complete(&assignment).await.expect("the lease is current");
    };
    assert_eq!(new.attempt.run, run);
    assert!(new.attempt.token > old.attempt.token && new.attempt.attempt.0 == 2);
    let refused = silent.complete(&old).await.expect_err("the lease is gone");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
    let refused = silent
        .fail(&old, FailureKind::Permanent)
        .await
        .expect_err("the lease is gone");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
    assert!(!other.complete(&new).await.expect("the lease is current"));
    assert!(other.complete(&new).await.expect("a repetition is accepted"));
    let refused = other
        .fail(&new, FailureKind::Retryable)
        .await
        .expect_err("another outcome is not");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
}

#[tokio::test]
async fn a_checkpoint_in_a_heartbeat_reaches_the_next_attempt() {
    let cluster = Cluster::start_with_lease(SHORT_LEASE).await;
    cluster.submit(cluster.spec()).await;
    let mut first = cluster.worker("first").await;
    let old = first.assignment().await;
    let checkpoint = cluster.artifacts.put(b"half of the work").expect("stored");
    let progress = Progress {
        n_done: 1,
        n_total: 2,
        unit: "steps".to_owned(),
        detail: String::new(),
    };
    let listed = RunningAttempt {
        checkpoint: Some(checkpoint),
        progress: Some(progress),
        ..running(&old)
    };
    first.heartbeat(vec![listed]).await;
    let nowhere = llamaduo_proto::Digest::of(b"never stored");
    first
        .heartbeat(vec![RunningAttempt {
            checkpoint: Some(nowhere),
            ..running(&old)
        }])
        .await;
    drop(first);
    let mut second = cluster.worker("second").await;
    loop {
        let assignment = second.assignment().await;
        if assignment.attempt.task == old.attempt.task {
            assert_eq!(assignment.checkpoint, Some(checkpoint));
            return;
        }
        second.complete(&assignment).await.expect("the lease is current");
    }
}

#[tokio::test]
async fn a_new_process_takes_the_place_of_the_old_at_once() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut old = cluster.worker("w1").await;
    let held = old.assignment().await;
    let mut new = cluster.worker_with("w1", 2, vec![]).await.expect("it may attach");
    while old.next().await.is_some() {}
    let refused = old.complete(&held).await.expect_err("its process is gone");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
    let Err(refused) = cluster.worker_with("w1", 1, vec![]).await else {
        panic!("the old process is superseded")
    };
    assert_eq!(reason(&refused), "SUPERSEDED_INCARNATION");
    let events = new.work_until(cluster.events(&run, 0)).await;
    let lost = events.iter().find_map(|event| match &event.kind {
        RunEventKind::AttemptFailed { failure, .. } => Some(failure.kind),
        _ => None,
    });
    assert_eq!(lost, Some(FailureKind::WorkerLost));
}

#[tokio::test]
async fn a_namesake_from_another_directory_is_refused_while_the_first_is_at_work() {
    let cluster = Cluster::start().await;
    cluster.submit(cluster.spec()).await;
    let mut first = cluster.worker("w1").await;
    let held = first.assignment().await;
    let Err(refused) = cluster.worker_from("w1", 2, Some("elsewhere"), vec![]).await else {
        panic!("its name is taken")
    };
    assert_eq!(reason(&refused), "WORKER_NAME_TAKEN");
    first.complete(&held).await.expect("it was not disturbed");
}

#[tokio::test]
async fn a_goodbye_frees_tasks_without_waiting_and_a_broken_stream_does_not() {
    let cluster = Cluster::start().await;
    cluster.submit(cluster.spec()).await;
    let mut leaving = cluster.worker("leaving").await;
    let given_back = leaving.assignment().await;
    leaving
        .say(FromWorker::Goodbye {
            reason: "done for today".to_owned(),
        })
        .await;
    while leaving.next().await.is_some() {}
    let mut broken = cluster.worker("broken").await;
    let kept = broken.assignment().await;
    drop(broken);
    let mut again = cluster
        .worker_with("broken", 1, vec![running(&kept)])
        .await
        .expect("it may attach");
    assert!(again.revoked.is_empty());
    again
        .complete(&kept)
        .await
        .expect("the broken stream took nothing away");
    let refused = leaving.complete(&given_back).await.expect_err("it gave it back");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
}

#[tokio::test]
async fn a_result_whose_artifacts_are_not_stored_is_refused() {
    let cluster = Cluster::start().await;
    cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let assignment = worker.assignment().await;
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let stored_here = worker.artifacts.clone();
    // The inputs are copied, the outputs go to a directory that the coordinator does not see.
    worker.artifacts = llamaduo_artifacts::Directory::open(elsewhere.path()).expect("a new directory");
    let refused = worker
        .complete(&assignment)
        .await
        .expect_err("nothing was published");
    assert_eq!(reason(&refused), "ARTIFACT_MISSING");
    worker.artifacts = stored_here;
    worker.complete(&assignment).await.expect("published now");
}
