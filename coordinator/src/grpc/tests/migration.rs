//! Whole runs.

use std::collections::BTreeSet;

use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::{Cycle, RunId};
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::run::{RunStatus, Subject};
use llamaduo_proto::task::{FailureKind, TaskSpec};
use llamaduo_proto::view::ResumeRun;
use llamaduo_proto::wire;

use super::harness::{Cluster, reason, running};

fn resume_of(run: &RunId) -> ResumeRun {
    ResumeRun {
        run: run.clone(),
        budget: None,
        service_llm: None,
        judge_llm: None,
        cycles_max: None,
        overrides: Vec::new(),
    }
}

async fn report_of(cluster: &Cluster, run: &RunId) -> serde_json::Value {
    let manifest = cluster.details(run).await.run.report.expect("a report was made");
    let manifest: Manifest =
        serde_json::from_slice(&cluster.artifacts.get(&manifest).expect("stored")).expect("a manifest");
    assert!(manifest.files.contains_key("report.html"));
    let json = manifest.files.get("report.json").expect("a report.json");
    serde_json::from_slice(&cluster.artifacts.get(json).expect("stored")).expect("JSON")
}

#[tokio::test]
async fn a_migration_passes_in_its_second_cycle() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let (mut one, mut two) = (cluster.worker("w1").await, cluster.worker("w2").await);
    let events = cluster.events(&run, 0);
    let both = async { tokio::join!(one.work_until(cluster.events(&run, 0)), two.work_until(events)) };
    let (_, events) = both.await;
    let details = cluster.details(&run).await;
    assert_eq!(
        (details.run.status, details.run.cycle),
        (RunStatus::Passed, Cycle(2)),
        "{:?}",
        details.run.reason
    );
    let subjects: Vec<Subject> = details.scores.iter().map(|scored| scored.subject).collect();
    assert!(subjects.contains(&Subject::Service) && subjects.contains(&Subject::Adapter(Cycle(2))));
    assert_eq!(
        details
            .gates
            .iter()
            .map(|gate| gate.decision.passed)
            .collect::<Vec<_>>(),
        [false, true]
    );
    let workers: BTreeSet<String> = events
        .iter()
        .filter_map(|event| match &event.kind {
            RunEventKind::AttemptStarted { worker, .. } => Some(worker.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(workers.len(), 2, "both workers share the shards");
    let curated = events.iter().find_map(|event| match &event.kind {
        RunEventKind::Curated { counts, .. } => Some(*counts),
        _ => None,
    });
    let counts = curated.expect("cycle 1 was synthesized after");
    assert_eq!(
        (
            counts.n_raw,
            counts.n_kept,
            counts.n_contaminated,
            counts.n_filtered
        ),
        (12, 4, 4, 4),
        "{counts:?}"
    );

    let report = report_of(&cluster, &run).await;
    assert_eq!(report["status"], "passed");
    assert_eq!(report["cycles"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["cycles"][0]["synthesis"]["kept"], 4);
    assert_eq!(report["cycles"][1]["gate"]["passed"], true);
    assert_eq!(report["cycles"][0]["train"]["loss_last"], 1.5);
    assert!(report["base"]["similarity"]["mean"].as_f64() < report["service"]["similarity"]["mean"].as_f64());
}

#[tokio::test]
async fn watching_from_the_middle_gives_the_rest() {
    let cluster = Cluster::start().await;
    let mut spec = cluster.spec();
    spec.cycles_max = 1;
    let run = cluster.submit(spec).await;
    let all = cluster
        .worker("w1")
        .await
        .work_until(cluster.events(&run, 1))
        .await;
    let rest = cluster.events(&run, 5).await;
    assert_eq!(rest, all[4..]);
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::GateNotReached);
    assert_eq!(report_of(&cluster, &run).await["status"], "gate_not_reached");
    let more = ResumeRun {
        cycles_max: Some(2),
        overrides: vec!["run.cycles_max=2".to_owned()],
        ..resume_of(&run)
    };
    cluster.resume(more).await.expect("it has cycles again");
    let spec = cluster.details(&run).await.spec.expect("a migration");
    assert_eq!(spec.overrides, ["run.cycles_max=2"], "for whoever goes on next");
    let next = all.len() as u64 + 1;
    cluster
        .worker("w2")
        .await
        .work_until(cluster.events(&run, next))
        .await;
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::Passed);
}

#[tokio::test]
async fn a_restarted_coordinator_goes_on_where_it_was() {
    let mut cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(worker.assignment().await);
    }
    worker.complete(&held[0]).await.expect("the lease is current");
    cluster.restart().await;
    // The lost acknowledgement: the same report again, to the new coordinator.
    let still: Vec<_> = held[1..].iter().map(running).collect();
    let mut worker = cluster
        .worker_with("w1", 1, still)
        .await
        .expect("it may attach again");
    assert!(worker.revoked.is_empty(), "its attempts were adopted");
    assert!(worker.complete(&held[0]).await.expect("a repetition is accepted"));
    for assignment in &held[1..] {
        assert!(
            !worker
                .complete(assignment)
                .await
                .expect("its old token is current")
        );
    }
    for _ in 0..4 {
        let events = cluster.events(&run, 0);
        let a_while = async {
            tokio::time::timeout(std::time::Duration::from_millis(150), events)
                .await
                .is_ok()
        };
        if worker.work_until(a_while).await {
            break;
        }
        cluster.restart().await;
        worker = cluster.worker("w1").await;
    }
    let events = worker.work_until(cluster.events(&run, 0)).await;
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::Passed);
    let mut done = BTreeSet::new();
    for event in &events {
        if let RunEventKind::TaskDone { task, .. } = &event.kind {
            assert!(done.insert(task.clone()), "{task} was done twice");
        }
    }
}

#[tokio::test]
async fn the_test_split_reaches_no_training_and_no_synthesis() {
    let cluster = Cluster::start().await;
    let spec = cluster.spec();
    let test = spec.coverage.test;
    let run = cluster.submit(spec).await;
    cluster
        .worker("w1")
        .await
        .work_until(cluster.events(&run, 0))
        .await;
    let request = wire::ListTasksRequest {
        run_id: run.to_string(),
        page_size: 1_000,
        page_token: String::new(),
    };
    let tasks = cluster
        .client()
        .list_tasks(request)
        .await
        .expect("the run exists")
        .into_inner()
        .tasks;
    let mut n_samples = 0;
    for task in tasks {
        let spec = TaskSpec::try_from(task.spec.expect("never absent")).expect("a valid spec");
        let data = match spec {
            TaskSpec::Train(task) => task.data,
            TaskSpec::Synthesize(task) => vec![task.train],
            TaskSpec::Infer(_) | TaskSpec::Judge(_) => continue,
        };
        assert!(!data.contains(&test));
        for digest in data {
            let text = String::from_utf8(cluster.artifacts.get(&digest).expect("stored")).expect("text");
            for sample in llamaduo_data::jsonl::read::<llamaduo_data::Sample>("data", &text).expect("rows") {
                n_samples += 1;
                let is_test = (100..106).any(|n| sample.instruction().ends_with(&format!("number{n}")));
                assert!(!is_test, "a test prompt is trained on: {}", sample.instruction());
            }
        }
    }
    assert!(n_samples > 24, "two trainings and a synthesis were looked at");
}

#[tokio::test]
async fn cancelling_stops_workers_and_still_makes_a_report() {
    let cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let held = worker.assignment().await;
    let request = wire::CancelRunRequest {
        run_id: run.to_string(),
        reason: "enough".to_owned(),
    };
    cluster
        .client()
        .cancel_run(request)
        .await
        .expect("the run exists");
    let events = cluster.events(&run, 0).await;
    assert!(matches!(
        &events.last().expect("there are events").kind,
        RunEventKind::RunEnded { status: RunStatus::Cancelled, reason, report: Some(_) } if reason == "enough"
    ));
    worker.heartbeat(vec![running(&held)]).await;
    assert!(worker.cancelled.contains(&held.attempt), "told at once");
    assert!(
        worker.revoked.contains(&held.attempt),
        "and with every acknowledgement"
    );
    let refused = worker.complete(&held).await.expect_err("the lease is gone");
    assert_eq!(reason(&refused), "STALE_FENCING_TOKEN");
}

#[tokio::test]
async fn a_quarantined_task_can_be_released_after_a_restart() {
    let mut cluster = Cluster::start().await;
    let run = cluster.submit(cluster.spec()).await;
    let mut worker = cluster.worker("w1").await;
    let held = worker.assignment().await;
    worker
        .fail(&held, FailureKind::Permanent)
        .await
        .expect("the lease is current");
    let events = cluster.events(&run, 0).await;
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::Failed);
    cluster.restart().await;
    let request = wire::RetryTaskRequest {
        run_id: run.to_string(),
        task_id: held.attempt.task.to_string(),
    };
    cluster
        .client()
        .retry_task(request)
        .await
        .expect("it is quarantined");
    let mut worker = cluster.worker("w1").await;
    worker
        .work_until(cluster.events(&run, events.len() as u64 + 1))
        .await;
    assert_eq!(cluster.details(&run).await.run.status, RunStatus::Passed);
}
