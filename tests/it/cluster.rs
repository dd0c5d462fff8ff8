//! `coordinator`, two `worker` processes and `submit`: shards shared, a worker lost, the coordinator lost.
//!
//! Invariant: the run that lost both ends with the bytes of one in a single process.

mod clients;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use llamaduo_tests::process::{self, Process, llamaduo, pause};
use llamaduo_tests::run_files::{RunFiles, assert_gapless, assert_same_end, n_artifacts, of_kind, rows};
use llamaduo_tests::service::{Ask, Service};
use llamaduo_tests::site::Site;
use serde_json::Value;

/// Far beyond what any of these runs takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Training long enough that it is seen while it lasts.
const SETTINGS: &[&str] = &["train.epochs=8"];

/// A coordinator's address, its workers' commands, and a client's.
struct Cluster<'a> {
    site: &'a Site,
    address: String,
    url: String,
}

impl<'a> Cluster<'a> {
    fn new(site: &'a Site) -> Self {
        // The port stays the same over the coordinator's restarts, so it has to be known before.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self {
            site,
            address: free.to_string(),
            url: format!("http://{free}"),
        }
    }

    fn coordinator(&self) -> Process {
        let mut command = llamaduo();
        command
            .args(["coordinator", "--listen", &self.address, "--data"])
            .arg(self.site.path("coordinator"));
        // Short, so that a lost worker is noticed soon; long enough for two busy cores.
        command.args(["--lease-ms", "3000", "--heartbeat-ms", "500"]);
        let mut process = Process::start(&mut command, &self.site.path("coordinator.log"));
        assert!(
            process.wait_for("coordinator listens", LIMIT),
            "{}",
            process.log()
        );
        process
    }

    fn worker(&self, name: &str) -> Process {
        let mut command = llamaduo();
        command
            .args(["worker", "--name", name, "--coordinator", &self.url, "--data"])
            .arg(self.site.path(name));
        Process::start(&mut command, &self.site.path(&format!("{name}.log")))
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = llamaduo();
        command
            .args(arguments)
            .args(["--coordinator", &self.url, "--output", "json"]);
        command
    }

    /// Submits the site's config; the run's id.
    fn submit(&self, service: &Service) -> String {
        let mut command = self.client(&["submit", "--request-id", "the-one"]);
        self.site.configure(&mut command, service.url(), SETTINGS);
        let output = process::run(&mut command);
        assert_eq!(output.code(), 0, "{}", output.stderr);
        let said: Value = serde_json::from_str(&output.stdout).unwrap();
        said["run_id"].as_str().unwrap().to_owned()
    }
}

/// The events that `watch` has printed so far.
fn watched(watch: &Process) -> Vec<Value> {
    let log = watch.log();
    let events: String = log
        .split_inclusive('\n')
        .filter(|line| line.starts_with('{'))
        .collect();
    rows(&events)
}

/// Waits until an event of the running `watch` is as wanted.
fn wait_for<T>(watch: &mut Process, wanted: impl Fn(&[Value]) -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = wanted(&watched(watch)) {
            return found;
        }
        assert!(
            watch.is_running() && begun.elapsed() < LIMIT,
            "not seen in:\n{}",
            watch.log()
        );
        pause();
    }
}

/// The worker that trains in `cycle`, while it does.
fn trainer(events: &[Value], cycle: u32) -> Option<String> {
    let trains = |event: &&&Value| event["stage"] == "train" && event["cycle"] == cycle;
    if of_kind(events, "task_done").iter().any(|event| trains(&event)) {
        return None;
    }
    let started = of_kind(events, "attempt_started");
    let last = started.iter().rev().find(trains)?;
    last["worker"].as_str().map(str::to_owned)
}

#[test]
fn a_run_survives_the_loss_of_a_worker_and_of_the_coordinator() {
    let site = Site::new();
    let service = Service::start_reliable();
    let alone = site.finish("alone", service.url(), SETTINGS, 3);

    let service = Service::start_reliable();
    let cluster = Cluster::new(&site);
    let mut coordinator = cluster.coordinator();
    let mut workers = [("one", cluster.worker("one")), ("two", cluster.worker("two"))];
    let run = cluster.submit(&service);
    assert_eq!(cluster.submit(&service), run, "the same request is the same run");
    let mut watch = Process::start(&mut cluster.client(&["watch", &run]), &site.path("watch.log"));

    let victim = wait_for(&mut watch, |events| trainer(events, 1));
    // While training goes on alone, new artifacts are its checkpoints.
    let store = site.path("coordinator/artifacts");
    let n_at_start = n_artifacts(&store);
    wait_for(&mut watch, |events| {
        assert!(trainer(events, 1).is_some(), "training ended before it was seen");
        (n_artifacts(&store) >= n_at_start + 3).then_some(())
    });
    let (_, process) = workers.iter_mut().find(|(name, _)| *name == victim).unwrap();
    process.kill();
    assert_eq!(
        trainer(&watched(&watch), 1),
        Some(victim.clone()),
        "killed in the middle of training"
    );
    let other = wait_for(&mut watch, |events| {
        trainer(events, 1).filter(|name| *name != victim)
    });
    println!("{victim} was killed while it trained; {other} went on");
    *process = cluster.worker(&victim);

    let n_grades = service.count(Ask::Grade);
    wait_for(&mut watch, |_| {
        (service.count(Ask::Grade) > n_grades + 1).then_some(())
    });
    coordinator.kill();
    coordinator = cluster.coordinator();

    let status = watch.wait(LIMIT);
    assert_eq!(status.code(), Some(3), "{}", watch.log());
    let events = watched(&watch);
    assert_gapless(&events);
    check_end(&cluster, &run, &alone);
    check_sharing(&events);

    let n_calls = alone.report()["cost"]["calls"].as_u64().unwrap() as usize;
    assert_eq!(
        service.requests().len() - service.n_repeated(),
        n_calls,
        "nothing else was asked"
    );
    // Two calls in flight for each of answering, grading and writing on each of two workers, at two kills.
    assert!(
        service.n_repeated() <= 2 * 2 * 3 * 2,
        "{} calls were made again",
        service.n_repeated()
    );
    for process in workers
        .iter_mut()
        .map(|(_, process)| process)
        .chain([&mut coordinator])
    {
        assert!(process.is_running(), "{}", process.log());
        assert!(!process.log().contains("panicked at"), "{}", process.log());
    }
}

fn check_end(cluster: &Cluster<'_>, run: &str, alone: &RunFiles) {
    let out = cluster.site.path("fetched");
    let output = process::run(cluster.client(&["report", run]).arg("--out").arg(&out));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let fetched = RunFiles::at(Path::new(&out));
    assert_same_end(&fetched, alone);
    let output = process::run(&mut cluster.client(&["status", run]));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let details: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(details["run"]["status"], "gate_not_reached");
}

/// Both workers answered test prompts.
fn check_sharing(events: &[Value]) {
    let started = of_kind(events, "attempt_started");
    let infers = started.iter().filter(|event| event["stage"] == "infer");
    let workers: BTreeSet<&str> = infers.filter_map(|event| event["worker"].as_str()).collect();
    assert_eq!(workers, BTreeSet::from(["one", "two"]));
}
