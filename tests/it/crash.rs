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

/// Training long enough that a kill meets it.
const SETTINGS: &[&str] = &["train.epochs=8"];

/// Local work cannot be held back as the service's answers can: a busy machine may show a moment when it has passed.
const TRIES: u32 = 5;

#[test]
fn a_run_killed_in_every_stage_ends_as_if_nothing_had_happened() {
    let site = Site::new();
    let service = Service::start_reliable();
    let begun = Instant::now();
    let undisturbed = site.finish("undisturbed", service.url(), SETTINGS, 3);
    println!("undisturbed: {:.1} s", begun.elapsed().as_secs_f64());
    let calls = undisturbed.report()["cost"]["calls"].as_u64().unwrap();
    assert_eq!(
        service.requests().len() as u64,
        calls,
        "each call is counted, and none is made twice"
    );
    assert_eq!(service.n_repeated(), 0);

    let (out, service, kills) = (1..=TRIES)
        .find_map(|n| {
            let (out, service) = (format!("killed-{n}"), Service::start_reliable());
            match kill_in_each_stage(&site, &out, &service, &undisturbed) {
                Ok(kills) => Some((out, service, kills)),
                Err(missed) => {
                    println!("begun anew: {missed}");
                    None
                }
            }
        })
        .expect("this machine lets a process of its own look often enough");
    let begun = Instant::now();
    let killed = site.finish(&out, service.url(), SETTINGS, 3);
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
    let again = site.finish(&out, service.url(), SETTINGS, 3);
    assert_eq!(service.requests().len() - repeated, calls as usize);
    assert_eq!(again.events(), killed.events());
}

/// When to kill.
enum Moment {
    /// The service has answered two such requests of this process and holds back the next.
    Asking(Ask),
    /// Training has left this many checkpoints.
    Checkpoints(usize),
    /// An attempt has been started.
    Started,
}

/// The stages in the order in which a run comes to them.
const MOMENTS: [(&str, u32, Moment); 5] = [
    ("judge", 0, Moment::Asking(Ask::Grade)),
    ("train", 1, Moment::Checkpoints(3)),
    ("infer", 1, Moment::Started),
    ("judge", 1, Moment::Asking(Ask::Grade)),
    ("synthesize", 1, Moment::Asking(Ask::Synthesize)),
];

/// Kills the run in each stage; where and when, or which moment was missed.
fn kill_in_each_stage(
    site: &Site,
    out: &str,
    service: &Service,
    undisturbed: &RunFiles,
) -> Result<Vec<String>, String> {
    let files = site.files(out);
    let log = site.path(&format!("{out}.log"));
    let mut kills = Vec::new();
    for (stage, cycle, moment) in &MOMENTS {
        let begun = Instant::now();
        let is_now = watch(&files, service, stage, *cycle, moment);
        let mut process = Process::start(&mut site.run(out, service.url(), SETTINGS), &log);
        let mut has_come = false;
        while process.is_running() && !has_come {
            has_come = is_now();
            assert!(
                begun.elapsed() < LIMIT,
                "never came to {stage} {cycle}:\n{}",
                process.log()
            );
            pause();
        }
        process.kill();
        service.hold_nothing();
        assert!(!process.log().contains("panicked at"), "{}", process.log());
        let n_all = tasks_done(&undisturbed.events(), stage, *cycle);
        let n_done = tasks_done(&files.events(), stage, *cycle);
        if n_done == n_all {
            return Err(format!("all {n_all} tasks of cycle {cycle}, {stage}, were done"));
        }
        assert!(
            has_come,
            "ended before cycle {cycle}, {stage}:\n{}",
            process.log()
        );
        let seconds = begun.elapsed().as_secs_f64();
        kills.push(format!("cycle {cycle}, {stage}, after {seconds:.1} s"));
    }
    Ok(kills)
}

/// Whether the moment has come, for the process that is started next.
fn watch<'a>(
    files: &'a RunFiles,
    service: &'a Service,
    stage: &'a str,
    cycle: u32,
    moment: &'a Moment,
) -> Box<dyn Fn() -> bool + 'a> {
    let n_events = files.events().len();
    // What earlier processes began is begun again by this one.
    let begins = move || {
        let events = files.events();
        let started = of_kind(events.get(n_events..).unwrap_or_default(), "attempt_started");
        started
            .iter()
            .any(|event| event["stage"] == stage && event["cycle"] == cycle)
    };
    match moment {
        Moment::Asking(ask) => {
            let n_asked = service.count(*ask);
            service.hold_after(*ask, 2);
            Box::new(move || service.count(*ask) > n_asked + 2)
        }
        Moment::Checkpoints(n) => {
            // While training goes on alone, new artifacts are its checkpoints.
            let store = files.path(".llamaduo/artifacts");
            let at_start = OnceCell::new();
            let n_new =
                move || n_artifacts(&store).saturating_sub(*at_start.get_or_init(|| n_artifacts(&store)));
            Box::new(move || begins() && n_new() >= *n)
        }
        Moment::Started => Box::new(begins),
    }
}

fn tasks_done(events: &[Value], stage: &str, cycle: u32) -> usize {
    let done = of_kind(events, "task_done");
    done.iter()
        .filter(|event| event["stage"] == stage && event["cycle"] == cycle)
        .count()
}
