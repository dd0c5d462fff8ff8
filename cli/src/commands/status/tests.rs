use expect_test::expect;
use llamaduo_proto::ids::{Cycle, RunId};
use llamaduo_proto::run::{Cost, Stage};
use llamaduo_proto::view::StageCount;

use super::*;

fn run(status: RunStatus, ending: Option<RunStatus>) -> RunView {
    RunView {
        run: RunId::new("tickets-1").unwrap(),
        name: "tickets".to_owned(),
        status,
        reason: None,
        cycle: Cycle(1),
        stages: vec![StageCount {
            stage: Stage::Train,
            n_done: 0,
            n_total: 1,
        }],
        cost: Cost::default(),
        report: None,
        adapter: None,
        submitted_at_ms: 0,
        ending,
    }
}

fn worker(name: &str, running: &[&str]) -> WorkerView {
    let task = |task: &&str| (RunId::new("tickets-1").unwrap(), TaskId::new(task).unwrap());
    WorkerView {
        worker: WorkerId::new(name).unwrap(),
        device: "cpu, 2 threads".to_owned(),
        running: running.iter().map(task).collect(),
        draining: name == "two",
    }
}

fn now(run: RunView, tasks_running: Vec<RunningTask>, workers: Vec<WorkerView>) -> RunStatusNow {
    let details = RunDetails {
        run,
        spec: None,
        scores: Vec::new(),
        gates: Vec::new(),
        curations: Vec::new(),
    };
    RunStatusNow {
        details,
        tasks_running,
        workers,
    }
}

#[test]
fn what_runs_is_shown_with_its_worker_and_how_far_it_is() {
    let progress = Progress {
        n_done: 12,
        n_total: 40,
        unit: "steps".to_owned(),
        detail: "loss 1.2".to_owned(),
    };
    let task = |name: &str, attempt, progress| RunningTask {
        task: TaskId::new(name).unwrap(),
        attempt,
        worker: Some(WorkerId::new("one").unwrap()),
        progress,
    };
    let tasks = vec![
        task("c01-train", 2, Some(progress)),
        task("c01-infer-adapter-000", 1, None),
    ];
    let workers = vec![worker("one", &["c01-train"]), worker("two", &[])];
    let shown = text(&now(run(RunStatus::Running, None), tasks, workers));
    expect![[r#"
        tickets-1 "tickets": running, cycle 1
          train      0/1 tasks
          c01-train on one, attempt 2: 12/40 steps loss 1.2
          c01-infer-adapter-000 on one
          0 calls, $0.00
          worker one (cpu, 2 threads): tickets-1/c01-train
          worker two (cpu, 2 threads, takes nothing new): idle"#]]
    .assert_eq(&shown);
}

#[test]
fn what_hinders_a_run_is_said() {
    let shown = text(&now(
        run(RunStatus::Running, Some(RunStatus::Cancelled)),
        vec![],
        vec![],
    ));
    assert!(
        shown.contains("being cancelled") && shown.contains(NO_WORKER),
        "{shown}"
    );
    let shown = overview(&[run(RunStatus::Running, Some(RunStatus::BudgetSpent))], &[]);
    assert!(
        shown.contains("ending: budget spent") && shown.contains(NO_WORKER),
        "{shown}"
    );
    let shown = overview(&[run(RunStatus::Passed, None)], &[worker("one", &[])]);
    assert!(shown.contains("passed") && shown.contains("idle"), "{shown}");
    assert!(overview(&[], &[]).contains("llamaduo submit"));
}

#[test]
fn programs_are_told_of_the_workers_too() {
    let all = Overview {
        runs: vec![run(RunStatus::Running, None)],
        workers: vec![worker("one", &["c01-train"])],
    };
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["runs"][0]["run"], "tickets-1");
    assert_eq!(json["workers"][0]["worker"], "one");
    assert_eq!(json["workers"][0]["running"].as_array().unwrap().len(), 1);
}
