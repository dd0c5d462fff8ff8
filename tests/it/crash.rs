//! `run` killed in the middle of every stage and given again, against the same run undisturbed.
//!
//! Invariant: SIGKILL at a moment that the run itself shows, and both runs compared by bytes.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use llamaduo_tests::process::{Process, pause};
use llamaduo_tests::run_files::{RunFiles, assert_gapless, assert_same_end, n_artifacts, of_kind};
use llamaduo_tests::service::{Ask, Service};
use llamaduo_tests::site::Site;
use serde_json::Value;

/// Far beyond what any of these runs takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Calls in flight: `service.concurrency` of the site's config, for the service and the judge each.
const IN_FLIGHT_MAX: usize = 2 * 2;

/// Whether an attempt of `stage` in `cycle` was started, and none of its tasks is done.
fn is_under_way(events: &[Value], stage: &str, cycle: u32) -> bool {
    let of = |kind: &str| {
        let of_kind = of_kind(events, kind);
        of_kind
            .iter()
            .any(|event| event["stage"] == stage && event["cycle"] == cycle)
    };
    of("attempt_started") && !of("task_done")
}

#[test]
fn a_run_killed_in_every_stage_ends_as_if_nothing_had_happened() {
    let site = Site::new();
    let service = Service::start_reliable();
    let begun = Instant::now();
    let undisturbed = site.finish("undisturbed", service.url(), &[], 3);
    println!("undisturbed: {:.1} s", begun.elapsed().as_secs_f64());
    let calls = undisturbed.report()["cost"]["calls"].as_u64().unwrap();
    assert_eq!(
        service.requests().len() as u64,
        calls,
        "each call is counted, and none is made twice"
    );
    assert_eq!(service.n_repeated(), 0);

    let service = Service::start_reliable();
    let kills = kill_in_each_stage(&site, &service, &undisturbed);
    let begun = Instant::now();
    let killed = site.finish("killed", service.url(), &[], 3);
    println!("the last part: {:.1} s", begun.elapsed().as_secs_f64());

    assert_gapless(&killed.events());
    assert_same_end(&killed, &undisturbed);
    let repeated = service.n_repeated();
    println!(
        "killed in {}; {repeated} of {} calls were in flight",
        kills.join("; "),
        service.requests().len()
    );
    assert!(
        repeated <= kills.len() * IN_FLIGHT_MAX,
        "{repeated} calls were made again"
    );
    assert_eq!(service.requests().len() - repeated, calls as usize);

    // A finished run is not run again.
    let again = site.finish("killed", service.url(), &[], 3);
    assert_eq!(service.requests().len() - repeated, calls as usize);
    assert_eq!(again.events(), killed.events());
}

/// What the killed run had come to when a new process took it up.
struct Before {
    n_events: usize,
    n_requests: usize,
}

/// Whether the moment for a kill has come.
type IsNow<'a> = dyn Fn(&Before) -> bool + 'a;

/// Kills the run in each stage, in the order in which it comes to them; where and when.
fn kill_in_each_stage(site: &Site, service: &Service, undisturbed: &RunFiles) -> Vec<String> {
    let files = site.files("killed");
    // Of this process: what earlier ones began is begun again by it.
    let begins = |before: &Before, stage: &str, cycle: u32| {
        is_under_way(
            files.events().get(before.n_events..).unwrap_or_default(),
            stage,
            cycle,
        )
    };
    let n_asked = |before: &Before| service.requests().len() - before.n_requests;
    // While training goes on alone, new artifacts are its checkpoints.
    let store = files.path(".llamaduo/artifacts");
    let at_start = OnceCell::new();
    let n_checkpoints = || n_artifacts(&store) - *at_start.get_or_init(|| n_artifacts(&store));
    let moments: [(&str, u32, &IsNow<'_>); 5] = [
        ("judge", 0, &|_| service.count(Ask::Grade) >= 3),
        ("train", 1, &|before| {
            begins(before, "train", 1) && n_checkpoints() >= 3
        }),
        ("infer", 1, &|before| begins(before, "infer", 1)),
        ("judge", 1, &|before| {
            begins(before, "judge", 1) && n_asked(before) >= 2
        }),
        ("synthesize", 1, &|before| {
            begins(before, "synthesize", 1) && n_asked(before) >= 2
        }),
    ];
    let mut kills = Vec::new();
    for (stage, cycle, is_now) in &moments {
        let begun = Instant::now();
        let before = Before {
            n_events: files.events().len(),
            n_requests: service.requests().len(),
        };
        let mut process = Process::start(
            &mut site.run("killed", service.url(), &[]),
            &site.path("killed.log"),
        );
        while !is_now(&before) {
            assert!(
                process.is_running(),
                "ended before {stage} {cycle}:\n{}",
                process.log()
            );
            assert!(
                begun.elapsed() < LIMIT,
                "never came to {stage} {cycle}:\n{}",
                process.log()
            );
            pause();
        }
        process.kill();
        assert!(!process.log().contains("panicked at"), "{}", process.log());
        kills.push(format!(
            "cycle {cycle}, {stage}, after {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        let n_all = tasks_done(&undisturbed.events(), stage, *cycle);
        let n_done = tasks_done(&files.events(), stage, *cycle);
        assert!(
            n_done < n_all,
            "the kill came after cycle {cycle}, {stage}: all {n_all} tasks were done"
        );
    }
    kills
}

fn tasks_done(events: &[Value], stage: &str, cycle: u32) -> usize {
    let done = of_kind(events, "task_done");
    done.iter()
        .filter(|event| event["stage"] == stage && event["cycle"] == cycle)
        .count()
}
