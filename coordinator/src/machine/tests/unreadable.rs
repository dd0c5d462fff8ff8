//! A judge whose replies nobody can read.

use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{GateRule, MetricScore, RunStatus, Scores, Subject};

use super::world::{World, scores, spec};
use crate::machine::{Aggregate, Aggregated, Amendment, Event, Work};

fn unreadable() -> Scores {
    let metric = MetricScore {
        mean: None,
        interval: None,
        coverage: None,
    };
    Scores {
        similarity: metric,
        precision: metric,
        n_verdicts: 0,
        n_unparsed: 40,
    }
}

/// A run after cycle 0, in which nobody could read what the judge said of those that `is_unreadable` names.
fn after_cycle_0(rule: GateRule, is_unreadable: impl Fn(Subject) -> bool) -> World {
    let mut spec = spec();
    spec.gate.rule = rule;
    let mut world = World::new(Work::Migration(Box::new(spec)), 1);
    while world.run.head.cycle == Cycle(0) && world.run.is_open() {
        let Some(Aggregate::Score { cycle, subject }) = world.aggregates.first().copied() else {
            assert!(world.do_one(), "nothing is due");
            continue;
        };
        let scored = Aggregated::Scored {
            cycle,
            subject,
            scores: if is_unreadable(subject) {
                unreadable()
            } else {
                scores(50.0)
            },
        };
        world.step(Event::Aggregated(scored)).expect("never refused");
    }
    world
}

const RELATIVE: GateRule = GateRule::Relative { ratio_min: 0.9 };
const ABSOLUTE: GateRule = GateRule::Absolute {
    similarity_mean_min: 90.0,
    precision_mean_min: 90.0,
    coverage_min: 0.9,
};

#[test]
fn ends_the_run_before_anything_is_trained() {
    for rule in [RELATIVE, ABSOLUTE] {
        let mut world = after_cycle_0(rule, |_| true);
        world.do_all();
        let head = &world.run.head;
        assert_eq!((head.status, head.cycle), (RunStatus::ServiceFailed, Cycle(0)));
        assert!(
            head.reason
                .starts_with("none of the judge's 120 replies could be read"),
            "{}",
            head.reason
        );
        assert!(head.report.is_some(), "what was measured is reported");
        // What was said stays said, so going on ends alike and spends nothing.
        let n_tasks = world.run.tasks.len();
        world
            .step(Event::Resume(Amendment::default()))
            .expect("it has not passed");
        world.do_all();
        assert_eq!(world.run.head.status, RunStatus::ServiceFailed);
        assert_eq!(world.run.tasks.len(), n_tasks);
    }
}

#[test]
fn matters_only_where_the_gate_needs_it() {
    let of_service = |subject| subject == Subject::Service;
    let mut world = after_cycle_0(RELATIVE, of_service);
    world.do_all();
    assert_eq!(world.run.head.status, RunStatus::ServiceFailed);
    assert!(
        world.run.head.reason.contains("the service LLM's own answers"),
        "{}",
        world.run.head.reason
    );
    assert_eq!(after_cycle_0(ABSOLUTE, of_service).run.head.cycle, Cycle(1));
    let of_base = |subject| matches!(subject, Subject::Base(_));
    assert_eq!(after_cycle_0(RELATIVE, of_base).run.head.cycle, Cycle(1));
}
