//! Who gets which task.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use llamaduo_proto::ids::{RunId, TaskId};
use llamaduo_proto::session::Credits;
use llamaduo_proto::task::Lane;
use proptest::prelude::*;

use super::world::{incarnation, worker};
use crate::machine::{Assignment, ReadyTask, WorkerView, place};

const NOW: Duration = Duration::from_secs(100);

fn run(name: &str) -> RunId {
    RunId::new(name).expect("a valid id")
}

fn task(of: &str, name: &str, lane: Lane) -> ReadyTask {
    let task = TaskId::new(name).expect("a valid id");
    ReadyTask {
        run: run(of),
        task,
        lane,
        not_before: Duration::ZERO,
        avoid: None,
    }
}

fn view(name: &str, local_model_slots: u32, service_slots: u32) -> WorkerView {
    let credits = Credits {
        local_model_slots,
        service_slots,
    };
    WorkerView {
        worker: worker(name),
        incarnation: incarnation(1),
        credits,
        held: vec![],
    }
}

fn pairs(assignments: &[Assignment]) -> Vec<(String, String)> {
    assignments
        .iter()
        .map(|a| (format!("{}/{}", a.run, a.task), a.worker.to_string()))
        .collect()
}

#[test]
fn lanes_have_slots_of_their_own() {
    let ready = [
        task("r", "train", Lane::LocalModel),
        task("r", "infer", Lane::LocalModel),
        task("r", "judge", Lane::Service),
    ];
    let placed = place(&ready, &[view("w1", 1, 2)], NOW);
    assert_eq!(
        pairs(&placed),
        [("r/train".into(), "w1".into()), ("r/judge".into(), "w1".into())]
    );
}

#[test]
fn runs_take_turns_whatever_their_size() {
    let mut ready: Vec<_> = (0..10)
        .map(|i| task("large", &format!("a{i}"), Lane::Service))
        .collect();
    ready.push(task("small", "b0", Lane::Service));
    ready.push(task("small", "b1", Lane::Service));
    let mut busy = view("w1", 0, 6);
    busy.held = vec![(run("large"), Lane::Service); 2];
    let names: Vec<String> = pairs(&place(&ready, &[busy], NOW))
        .into_iter()
        .map(|(task, _)| task)
        .collect();
    assert_eq!(
        names,
        ["small/b0", "small/b1", "large/a0", "large/a1"],
        "large holds two already"
    );
}

#[test]
fn tasks_spread_over_workers() {
    let ready = [task("r", "a", Lane::LocalModel), task("r", "b", Lane::LocalModel)];
    let placed = place(&ready, &[view("w1", 2, 0), view("w2", 2, 0)], NOW);
    let workers: BTreeSet<String> = pairs(&placed).into_iter().map(|(_, worker)| worker).collect();
    assert_eq!(workers.len(), 2);
}

#[test]
fn the_worker_that_failed_a_task_is_avoided_for_a_while_unless_it_is_alone() {
    let mut failed = task("r", "a", Lane::LocalModel);
    failed.avoid = Some((worker("w1"), NOW + Duration::from_secs(1)));
    let alone = place(
        std::slice::from_ref(&failed),
        &[view("w1", 1, 0), view("judge-only", 0, 4)],
        NOW,
    );
    assert_eq!(pairs(&alone), [("r/a".into(), "w1".into())]);
    let mut busy = view("w2", 1, 0);
    busy.held = vec![(run("other"), Lane::LocalModel)];
    let workers = [view("w1", 1, 0), busy];
    assert!(
        place(std::slice::from_ref(&failed), &workers, NOW).is_empty(),
        "the other one is waited for"
    );
    let later = place(&[failed], &workers, NOW + Duration::from_secs(1));
    assert_eq!(pairs(&later), [("r/a".into(), "w1".into())], "but not for ever");
}

#[test]
fn a_task_backing_off_is_not_placed() {
    let mut waiting = task("r", "a", Lane::LocalModel);
    waiting.not_before = NOW + Duration::from_millis(1);
    assert!(place(&[waiting], &[view("w1", 1, 0)], NOW).is_empty());
}

proptest! {
    #[test]
    fn slots_are_never_exceeded_and_none_stays_free_while_a_task_waits(
        n_tasks in 0..40_usize,
        n_runs in 1..5_usize,
        workers in proptest::collection::vec((0..4_u32, 0..4_u32, 0..3_usize), 0..6),
    ) {
        let lane = |i: usize| if i.is_multiple_of(3) { Lane::LocalModel } else { Lane::Service };
        let ready: Vec<_> = (0..n_tasks).map(|i| task(&format!("r{}", i % n_runs), &format!("t{i}"), lane(i))).collect();
        let workers: Vec<_> = workers.iter().enumerate().map(|(i, &(local, service, n_held))| {
            let mut view = view(&format!("w{i}"), local, service);
            view.held = vec![(run("r0"), Lane::Service); n_held];
            view
        }).collect();
        let placed = place(&ready, &workers, NOW);
        let tasks: BTreeSet<_> = placed.iter().map(|a| (a.run.clone(), a.task.clone())).collect();
        prop_assert_eq!(tasks.len(), placed.len(), "no task twice");
        for wanted in [Lane::LocalModel, Lane::Service] {
            let mut given: BTreeMap<String, usize> = BTreeMap::new();
            for assignment in &placed {
                let task = ready.iter().find(|t| t.task == assignment.task).expect("it was ready");
                if task.lane == wanted {
                    *given.entry(assignment.worker.to_string()).or_default() += 1;
                }
            }
            let mut n_free = 0;
            for worker in &workers {
                let slots = match wanted {
                    Lane::LocalModel => worker.credits.local_model_slots,
                    Lane::Service => worker.credits.service_slots,
                } as usize;
                let held = worker.held.iter().filter(|(_, lane)| *lane == wanted).count();
                let free = slots.saturating_sub(held);
                let n_given = given.get(worker.worker.as_str()).copied().unwrap_or(0);
                prop_assert!(n_given <= free);
                n_free += free - n_given;
            }
            let n_wanted = ready.iter().filter(|task| task.lane == wanted).count();
            let n_given: usize = given.values().sum();
            prop_assert!(n_free == 0 || n_given == n_wanted, "a slot stays free while a task waits");
        }
    }
}
