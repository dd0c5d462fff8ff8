//! What clients and second processes are told, at a coordinator that nobody works for.
//!
//! Invariant: no worker takes a task here, so that every answer is the same on any machine.

use super::*;

/// A command that must end with `code`, with what it printed.
fn said(command: &mut Command, code: i32) -> String {
    let output = process::run(command);
    assert_eq!(output.code(), code, "{}\n{}", output.stdout, output.stderr);
    format!("{}{}", output.stdout, output.stderr)
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

#[test]
fn a_used_directory_or_name_is_refused_by_who_has_it() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let coordinator = cluster.coordinator();
    let mut second = llamaduo();
    second
        .args(["coordinator", "--listen", "127.0.0.1:0", "--data"])
        .arg(site.path("coordinator"));
    let output = process::run(&mut second);
    assert_eq!(
        (output.code(), output.stdout.as_str()),
        (1, ""),
        "{}",
        output.stderr
    );
    let number = format!("process {}", coordinator.id());
    assert_says(&output.stderr, &["in use", &number, "coordinator"]);

    let mut worker = cluster.worker("one");
    assert!(worker.wait_for("attached", LIMIT), "{}", worker.log());
    let again = |data: &str| {
        let mut command = llamaduo();
        command
            .args(["worker", "--name", "one", "--coordinator", &cluster.url, "--data"])
            .arg(site.path(data));
        command
    };
    let number = format!("process {}", worker.id());
    assert_says(&said(&mut again("one"), 1), &["in use", &number, "--name"]);
    assert_says(
        &said(&mut again("elsewhere"), 1),
        &["another process is at work as one", "--name"],
    );
    assert!(worker.is_running(), "{}", worker.log());
    // A restart is taken at once, and so is what a client sees of it.
    worker.kill();
    std::fs::remove_file(site.path("one.log")).unwrap();
    let mut worker = cluster.worker("one");
    assert!(worker.wait_for("attached", LIMIT), "{}", worker.log());
    let overview = said(llamaduo().args(["status", "--coordinator", &cluster.url]), 0);
    assert_says(&overview, &["worker one (cpu", "idle"]);
}

#[test]
fn a_run_is_submitted_once_cancelled_and_gone_on_with() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    let submit = |more: &[&str], settings: &[&str]| {
        let mut command = llamaduo();
        command.args(["submit", "--coordinator", &cluster.url]).args(more);
        site.configure(&mut command, "http://127.0.0.1:9/v1", settings);
        command
    };
    let named = ["--request-id", "the-one"];
    let submitted = process::run(&mut submit(&named, &[]));
    let run = submitted.stdout.trim().to_owned();
    assert_says(
        &submitted.stderr,
        &[
            "note: seen from this machine",
            "127.0.0.1:9",
            "its workers may reach it",
        ],
    );
    assert_says(&said(&mut submit(&named, &[]), 0), &[&run, "before"]);
    assert_says(
        &said(&mut submit(&named, &["train.epochs=1"]), 2),
        &["the-one", &run, "other settings"],
    );
    assert_says(
        &said(&mut submit(&named, &["budget.max_calls=7"]), 2),
        &["the-one", &run, "--resume"],
    );
    let client = |arguments: &[&str], code| {
        let mut command = llamaduo();
        said(
            command.args(arguments).args(["--coordinator", &cluster.url]),
            code,
        )
    };
    assert_says(
        &client(&["status", &run], 0),
        &["running", "no worker is connected"],
    );
    assert_says(&client(&["cancel", &run], 0), &["cancelled", "submit --resume"]);
    assert_says(&client(&["watch", &run], 1), &["run ended, cancelled"]);
    assert_says(&client(&["cancel", &run], 0), &["had ended already: cancelled"]);
    assert_says(
        &client(&["watch", &run, "--from", "999"], 1),
        &["has ended and has no event number 999"],
    );

    let resume = ["--resume", run.as_str()];
    assert_says(
        &said(&mut submit(&resume, &["train.epochs=1"]), 2),
        &["train.epochs", "without --resume"],
    );
    assert_says(
        &said(&mut submit(&resume, &["infer.max_tokens=7"]), 2),
        &["infer.max_tokens was 48, is 7", "--set infer.max_tokens=48"],
    );
    assert_says(
        &said(&mut submit(&resume, &["run.cycles_max=1"]), 2),
        &[&run, "may use 2 cycles", "not fewer"],
    );
    assert_says(
        &said(&mut submit(&resume, &["budget.max_calls=7"]), 0),
        &[&run, "goes on"],
    );
    assert_says(&client(&["status", &run], 0), &["running"]);
    assert_says(
        &said(&mut submit(&resume, &["budget.max_calls=7"]), 0),
        &["running already"],
    );
    client(&["cancel", &run], 0);
    assert_says(
        &client(&["watch", &run], 1),
        &["the run goes on; it had ended before: cancelled"],
    );
}

#[test]
fn who_answers_as_no_coordinator_is_told_from_one() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let status = |url: &str, code| {
        let mut command = llamaduo();
        said(command.args(["status", "--coordinator", url]), code)
    };
    assert_says(
        &status(&cluster.url, 1),
        &["no coordinator answers at", &cluster.url],
    );
    let _coordinator = cluster.coordinator();
    assert_says(&status(&cluster.address, 0), &["no runs"]);
    let service = Service::start_reliable();
    let url = service.url().trim_end_matches("/v1");
    assert_says(&status(url, 1), &["what answers at", url, "is no coordinator"]);
    assert_says(&status("https://127.0.0.1:1", 2), &["no TLS"]);
    assert_says(&status("localhost", 2), &["a host and a port"]);
}

#[test]
fn a_worker_without_a_coordinator_says_so_once() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let mut worker = cluster.worker("one");
    assert!(
        worker.wait_for("no coordinator answers at", LIMIT),
        "{}",
        worker.log()
    );
    let _coordinator = cluster.coordinator();
    assert!(
        worker.wait_for("connected to the coordinator at", LIMIT),
        "{}",
        worker.log()
    );
    let log = worker.log();
    assert_eq!(log.matches("no coordinator answers").count(), 1, "{log}");
    assert!(!log.contains("WARN"), "{log}");
}
