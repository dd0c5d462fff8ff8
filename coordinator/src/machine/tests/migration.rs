//! The course of a run without trouble, and with people's interventions.

use std::sync::Arc;

use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::ids::{Cycle, TaskId};
use llamaduo_proto::run::{Budget, Quantization, RunSpec, RunStatus, Subject, TrainFrom};
use llamaduo_proto::task::{FailureKind, TaskSpec, TaskStatus};

use super::world::{World, digest, service, spec};
use crate::machine::{Aggregate, Amendment, Event, InvalidWork, Refusal, Task, TaskKind, Work, check_work};

fn names(world: &World, prefix: &str) -> Vec<String> {
    let ids = world
        .run
        .tasks_in_order()
        .into_iter()
        .map(|(id, _)| id.to_string());
    ids.filter(|id| id.starts_with(prefix)).collect()
}

#[test]
fn a_passing_run_walks_through_its_stages() {
    let mut world = World::migration(2);
    assert_eq!(
        names(&world, "c00"),
        ["base-nf4-double", "base-none", "service"]
            .map(|subject| (0..3).map(move |i| format!("c00-infer-{subject}-{i:03}")))
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
        "10 prompts in shards of 4 for each of three subjects"
    );
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Passed);
    assert_eq!(world.run.head.cycle, Cycle(2));
    assert_eq!(world.run.head.report, Some(digest("report")));
    assert_eq!(
        names(&world, "c01-synthesize").len(),
        3,
        "12 calls in shards of 5"
    );
    assert!(
        names(&world, "c02-synthesize").is_empty(),
        "nothing is synthesized after passing"
    );
    assert_eq!(world.run.best_adapter(), world.run.adapter(Cycle(2)));
    let Some(TaskSpec::Train(train)) = world.run.task_spec(&TaskKind::Train.id(Cycle(2))) else {
        panic!("a train task")
    };
    assert_eq!(
        train.data,
        [digest("train"), digest(&format!("samples {:?}", Cycle(1)))]
    );
    assert_eq!(
        world.run.cycles[&Cycle(2)].n_samples,
        30,
        "20 train pairs and 10 kept"
    );
}

#[test]
fn judging_a_shard_begins_when_its_responses_are_there() {
    let mut world = World::migration(1);
    assert!(names(&world, "c00-judge").is_empty());
    let first = TaskKind::Infer {
        subject: Subject::Service,
        shard: 1,
    }
    .id(Cycle(0));
    let attempt = world.claim(&first, "w1");
    world.complete(&attempt).expect("the lease is current");
    assert_eq!(names(&world, "c00-judge"), ["c00-judge-service-001"]);
    let judge = TaskId::new("c00-judge-service-001").expect("a valid id");
    let Some(TaskSpec::Judge(judge)) = world.run.task_spec(&judge) else {
        panic!("a judge task")
    };
    assert_eq!(judge.responses, digest("c00-infer-service-001/responses"));
}

#[test]
fn a_run_that_never_passes_ends_after_its_cycles_and_can_be_given_more() {
    let mut world = World::migration(0);
    world.do_all();
    assert_eq!(
        (world.run.head.status, world.run.head.cycle),
        (RunStatus::GateNotReached, Cycle(3))
    );
    let reason = &world.run.head.reason;
    assert!(reason.starts_with("all 3 cycles were used: "), "{reason}");
    assert_eq!(
        world.run.best_adapter(),
        world.run.adapter(Cycle(3)),
        "the best so far"
    );
    let refused = world.step(Event::Resume(Amendment::default()));
    assert_eq!(refused, Err(Refusal::NoCyclesLeft { cycles_max: 3 }));
    world.passing_cycle = 4;
    let more = Amendment {
        cycles_max: Some(5),
        ..Amendment::default()
    };
    world.step(Event::Resume(more)).expect("it has cycles again");
    let told: Vec<&RunEventKind> = world.run.journal.iter().map(|event| &event.kind).collect();
    assert!(
        matches!(
            told[0],
            RunEventKind::RunResumed {
                was: RunStatus::GateNotReached
            }
        ),
        "{told:?}"
    );
    world.do_all();
    assert_eq!(
        (world.run.head.status, world.run.head.cycle),
        (RunStatus::Passed, Cycle(4))
    );
    assert_eq!(
        world.step(Event::Resume(Amendment::default())),
        Err(Refusal::Passed)
    );
}

#[test]
fn a_run_of_one_cycle_does_not_speak_of_all_of_them() {
    let only = RunSpec {
        cycles_max: 1,
        ..spec()
    };
    let mut world = World::new(Work::Migration(Box::new(only)), 0);
    world.do_all();
    let reason = &world.run.head.reason;
    assert!(reason.starts_with("its only cycle was used: "), "{reason}");
}

#[test]
fn a_curation_that_keeps_nothing_ends_the_run() {
    let mut world = World::migration(0);
    while world.aggregates.first() != Some(&Aggregate::Curate { cycle: Cycle(1) }) {
        assert!(world.do_one());
    }
    let counts = llamaduo_proto::run::CurationCounts {
        n_raw: 3,
        n_filtered: 3,
        ..Default::default()
    };
    let curated = crate::machine::Aggregated::Curated {
        cycle: Cycle(1),
        counts,
        manifest: digest("m"),
        samples: digest("empty"),
    };
    world.step(Event::Aggregated(curated)).expect("never refused");
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::GateNotReached);
    assert!(
        world.run.head.reason.contains("kept none of 3"),
        "{}",
        world.run.head.reason
    );
}

#[test]
fn training_continues_from_the_last_adapter_where_asked() {
    let mut spec = spec();
    spec.train.train_from = TrainFrom::LastAdapter;
    let mut world = World::new(Work::Migration(Box::new(spec)), 2);
    world.do_all();
    let init = |world: &World, cycle| match world.run.task_spec(&TaskKind::Train.id(Cycle(cycle))) {
        Some(TaskSpec::Train(train)) => train.init_adapter,
        other => panic!("a train task, not {other:?}"),
    };
    assert_eq!(init(&world, 1), None);
    assert_eq!(init(&world, 2), world.run.adapter(Cycle(1)));
}

#[test]
fn a_base_that_is_not_quantized_is_measured_once() {
    let mut spec = spec();
    spec.local_model.quantization = Quantization::None;
    let world = World::new(Work::Migration(Box::new(spec)), 1);
    assert_eq!(names(&world, "c00").len(), 6, "base and service");
}

#[test]
fn a_huge_test_split_makes_larger_shards_not_more() {
    let mut spec = spec();
    spec.coverage.n_test = 1_000_003;
    spec.infer.prompts_per_task = 1;
    let world = World::new(Work::Migration(Box::new(spec)), 1);
    assert_eq!(names(&world, "c00").len(), 96);
    let mut covered = 0;
    for shard in 0..32 {
        let id = TaskKind::Infer {
            subject: Subject::Service,
            shard,
        }
        .id(Cycle(0));
        let Some(TaskSpec::Infer(task)) = world.run.task_spec(&id) else {
            panic!("an infer task")
        };
        assert_eq!(task.first_prompt, covered);
        covered += task.n_prompts;
    }
    assert_eq!(covered, 1_000_003);
}

#[test]
fn a_single_task_passes_when_it_is_done() {
    let train = World::migration(1);
    let spec = train.run.task_spec(
        &TaskKind::Infer {
            subject: Subject::Service,
            shard: 0,
        }
        .id(Cycle(0)),
    );
    let work = Work::Single {
        name: "infer".to_owned(),
        spec: Box::new(spec.expect("an infer task")),
        budget: Budget::default(),
    };
    let mut world = World::new(work, 0);
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Passed);
}

#[test]
fn cancelling_takes_back_leases_and_keeps_results() {
    let mut world = World::migration(1);
    let task = world.ready()[0].clone();
    let held = world.claim(&task, "w1");
    world
        .step(Event::Cancel {
            reason: "enough".to_owned(),
        })
        .expect("never refused");
    assert!(world.run.current(&held).is_none());
    assert_eq!(
        world.complete(&held),
        Err(Refusal::StaleToken {
            attempt: Box::new(held.clone())
        })
    );
    world.do_all();
    assert_eq!(
        (world.run.head.status, world.run.head.reason.as_str()),
        (RunStatus::Cancelled, "enough")
    );
    let task = &world.run.tasks[&task];
    assert_eq!(world.run.status_of(task), TaskStatus::Cancelled);
    assert_eq!(task.record.n_failed, 0, "a cancelled attempt is nobody's fault");
    world
        .step(Event::Resume(Amendment::default()))
        .expect("a cancelled run can go on");
    world.pass_time(2.0);
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Passed);
}

#[test]
fn a_refused_key_ends_the_run_and_a_repaired_one_resumes_it() {
    let mut world = World::migration(1);
    let service_task = TaskKind::Infer {
        subject: Subject::Service,
        shard: 0,
    }
    .id(Cycle(0));
    let attempt = world.claim(&service_task, "w1");
    world
        .fail(&attempt, FailureKind::ServiceRefused)
        .expect("the lease is current");
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::ServiceFailed);
    let mut other = service();
    other.model = "another".to_owned();
    let refused = world.step(Event::Resume(Amendment {
        service_llm: Some(other),
        ..Amendment::default()
    }));
    assert!(matches!(refused, Err(Refusal::FixedField { .. })), "{refused:?}");
    let mut repaired = service();
    repaired.base_url = Some("http://127.0.0.1:2/v1".to_owned());
    let amendment = Amendment {
        service_llm: Some(repaired.clone()),
        ..Amendment::default()
    };
    world.step(Event::Resume(amendment)).expect("same model");
    let run_spec = world.run.spec().expect("a migration");
    assert_eq!(
        (&run_spec.service_llm, &run_spec.judge_llm),
        (&repaired, &repaired),
        "the teacher judges"
    );
    world.pass_time(100.0);
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Passed);
}

#[test]
fn a_quarantined_task_fails_the_run_until_it_is_released() {
    let mut world = World::migration(1);
    let task = world.ready()[0].clone();
    let attempt = world.claim(&task, "w1");
    world
        .fail(&attempt, FailureKind::Permanent)
        .expect("the lease is current");
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Failed);
    assert!(
        world.run.head.reason.contains("it broke"),
        "{}",
        world.run.head.reason
    );
    assert_eq!(
        world.run.status_of(&world.run.tasks[&task]),
        TaskStatus::Quarantined
    );
    let other = TaskKind::Infer {
        subject: Subject::Service,
        shard: 0,
    }
    .id(Cycle(0));
    let refused = world.step(Event::RetryTask { task: other.clone() });
    assert_eq!(refused, Err(Refusal::NotQuarantined { task: other }));
    world.step(Event::RetryTask { task }).expect("it is quarantined");
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Passed);
}

#[test]
fn a_revived_run_releases_every_task_that_was_given_up_on() {
    let mut spec = spec();
    spec.coverage.n_test = 30;
    spec.infer.prompts_per_task = 1;
    let mut world = World::new(Work::Migration(Box::new(spec)), 1);
    let first = world.ready()[0].clone();
    let attempt = world.claim(&first, "w1");
    world
        .fail(&attempt, FailureKind::Permanent)
        .expect("the lease is current");
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::Failed);
    // As when the workers of many tasks are lost at once.
    for task in world.run.tasks.values_mut() {
        Arc::make_mut(task).record.status = TaskStatus::Quarantined;
    }
    let (mut resumed, mut retried) = (world.clone(), world);
    resumed
        .step(Event::Resume(Amendment::default()))
        .expect("a failed run can go on");
    retried
        .step(Event::RetryTask { task: first })
        .expect("it is quarantined");
    for mut world in [resumed, retried] {
        let is_quarantined = |task: &Arc<Task>| task.record.status == TaskStatus::Quarantined;
        assert!(!world.run.tasks.values().any(is_quarantined));
        world.do_all();
        assert_eq!(world.run.head.status, RunStatus::Passed);
    }
}

#[test]
fn the_test_split_cannot_be_the_train_split() {
    let mut spec = spec();
    spec.coverage.train = spec.coverage.test;
    assert_eq!(
        check_work(&Work::Migration(Box::new(spec))),
        Err(InvalidWork::TrainIsTest)
    );
}

#[test]
fn an_aggregate_that_cannot_be_computed_is_tried_again_and_then_fails_the_run() {
    let mut world = World::migration(1);
    while world.aggregates.is_empty() {
        assert!(world.do_one());
    }
    for n_failures in 1..=4 {
        let aggregate = world.aggregates[0];
        let message = "the disk is full".to_owned();
        world
            .step(Event::AggregateFailed {
                aggregate,
                message,
                retryable: true,
            })
            .expect("never refused");
        assert!(n_failures == 4 || world.aggregates.is_empty(), "not at once");
        world.pass_time(60.0);
        world.step(Event::Tick).expect("never refused");
    }
    assert_eq!(world.aggregates, [Aggregate::Report]);
    world.do_all();
    assert_eq!(
        (world.run.head.status, world.run.head.reason.as_str()),
        (RunStatus::Failed, "the disk is full")
    );
}

#[test]
fn a_report_that_finds_no_space_is_waited_for() {
    let mut world = World::migration(1);
    while world.aggregates.first() != Some(&Aggregate::Report) {
        assert!(world.do_one());
    }
    for _ in 0..100 {
        let failed = Event::AggregateFailed {
            aggregate: Aggregate::Report,
            message: "the disk is full".to_owned(),
            retryable: true,
        };
        world.step(failed).expect("never refused");
        assert!(world.aggregates.is_empty(), "not at once");
        world.pass_time(31.0);
        world.step(Event::Tick).expect("never refused");
        assert_eq!(world.aggregates, [Aggregate::Report]);
    }
    world.do_all();
    assert_eq!(
        (world.run.head.status, world.run.head.report),
        (RunStatus::Passed, Some(digest("report")))
    );
}

#[test]
fn a_report_that_cannot_be_made_does_not_keep_a_run_from_ending() {
    let mut world = World::migration(1);
    while world.aggregates.first() != Some(&Aggregate::Report) {
        assert!(world.do_one());
    }
    let message = "no space".to_owned();
    let failed = Event::AggregateFailed {
        aggregate: Aggregate::Report,
        message,
        retryable: false,
    };
    world.step(failed).expect("never refused");
    assert_eq!(
        (world.run.head.status, world.run.head.report),
        (RunStatus::Passed, None)
    );
    let last = world.run.journal.last().map(|event| &event.kind);
    assert!(matches!(last, Some(RunEventKind::RunEnded { report: None, .. })));
}
