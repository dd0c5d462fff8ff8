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

impl Cluster<'_> {
    /// `submit` of the site's config with `more` arguments and `settings`, which must end with `code`.
    fn submitted(&self, more: &[&str], settings: &[&str], code: i32) -> String {
        let mut command = llamaduo();
        command.args(["submit", "--coordinator", &self.url]).args(more);
        self.site
            .configure(&mut command, "http://127.0.0.1:9/v1", settings);
        said(&mut command, code)
    }

    /// Any other command.
    fn told(&self, arguments: &[&str], code: i32) -> String {
        let mut command = llamaduo();
        said(command.args(arguments).args(["--coordinator", &self.url]), code)
    }
}

/// The run that was submitted: the first line of stdout.
fn run_of(said: &str) -> String {
    said.lines().next().unwrap().to_owned()
}

#[test]
fn an_adapter_in_the_way_is_told_of_before_anything_is_sent() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    std::fs::create_dir(site.path("mine")).unwrap();
    site.write("mine/adapter_config.json", "{}");
    let mut train = llamaduo();
    train.args(["train", "--coordinator", &cluster.url, "--out"]);
    train.arg(site.path("mine"));
    site.configure(&mut train, "http://127.0.0.1:9/v1", &[]);
    process::run(&mut train).assert_refused(2, &["mine holds another adapter"]);
    assert_eq!(n_artifacts(&site.path("coordinator/artifacts")), 0);
    assert_says(&cluster.told(&["status"], 0), &["no runs"]);
}

#[test]
fn a_request_id_names_one_submission() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    let named = ["--request-id", "the-one"];
    let submitted = cluster.submitted(&named, &[], 0);
    let run = run_of(&submitted);
    assert_says(
        &submitted,
        &[
            "note: seen from this machine",
            "127.0.0.1:9",
            "its workers may reach it",
        ],
    );
    assert_says(&cluster.submitted(&named, &[], 0), &[&run, "before"]);
    // What a default says anyway is no other setting.
    assert_says(&cluster.submitted(&named, &["run.seed=0"], 0), &[&run, "before"]);
    assert_says(
        &cluster.submitted(&named, &["train.epochs=1"], 2),
        &["the-one", &run, "other settings"],
    );
    assert_says(
        &cluster.submitted(&named, &["budget.max_calls=7"], 2),
        &["the-one", &run, "--resume", "budget.max_calls was not set, is 7"],
    );
}

#[test]
fn a_run_is_cancelled_and_gone_on_with() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    let run = run_of(&cluster.submitted(&[], &[], 0));
    assert_says(
        &cluster.told(&["status", &run], 0),
        &["running", "no worker is connected"],
    );
    assert_says(
        &cluster.told(&["cancel", &run], 0),
        &["cancelled", "submit --resume"],
    );
    assert_says(&cluster.told(&["watch", &run], 1), &["run ended, cancelled"]);
    assert_says(
        &cluster.told(&["cancel", &run], 0),
        &["had ended already: cancelled"],
    );
    assert_says(
        &cluster.told(&["watch", &run, "--from", "999"], 1),
        &["has ended and has no event number 999"],
    );

    let resume = ["--resume", run.as_str()];
    assert_says(
        &cluster.submitted(&resume, &["train.epochs=1"], 2),
        &["train.epochs", "without --resume"],
    );
    assert_says(
        &cluster.submitted(&resume, &["infer.max_tokens=7"], 2),
        &["infer.max_tokens was 48, is 7", "--set infer.max_tokens=48"],
    );
    assert_says(
        &cluster.submitted(&resume, &["run.cycles_max=1"], 2),
        &[&run, "may use 2 cycles", "not fewer"],
    );
    assert_says(
        &cluster.submitted(&resume, &["budget.max_calls=7"], 0),
        &[&run, "goes on"],
    );
    assert_says(&cluster.told(&["status", &run], 0), &["running"]);
    assert_says(
        &cluster.submitted(&resume, &["budget.max_calls=7"], 0),
        &["running already"],
    );
    cluster.told(&["cancel", &run], 0);
    assert_says(
        &cluster.told(&["watch", &run], 1),
        &["the run goes on; it had ended before: cancelled"],
    );
}

#[test]
fn a_run_that_is_not_there_is_looked_for_in_the_list() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    for asked in ["watch", "status", "cancel", "report"] {
        assert_says(
            &cluster.told(&[asked, "no-such-run"], 2),
            &["the coordinator has no run no-such-run; `llamaduo status` lists the runs that it has"],
        );
    }
    assert_says(
        &cluster.submitted(&["--resume", "no-such-run"], &[], 2),
        &["the coordinator has no run no-such-run"],
    );
    let all = cluster.told(&["status", "-o", "json"], 0);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    assert_eq!(
        (&all["runs"], &all["workers"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
}

#[test]
fn a_run_is_gone_on_with_as_its_command_line_made_it() {
    let site = Site::new();
    let cluster = Cluster::new(&site);
    let _coordinator = cluster.coordinator();
    let run = run_of(&cluster.submitted(&[], &["train.epochs=1", "budget.max_calls=5"], 0));
    cluster.told(&["cancel", &run], 0);
    let config = site.path("llamaduo.toml");
    let resume = |more: &[&str], code| {
        let mut command = llamaduo();
        command.args(["submit", "--resume", &run, "--coordinator", &cluster.url]);
        said(command.arg("--config").arg(&config).args(more), code)
    };
    // Neither the file nor this command line says what the first one did.
    let told = resume(&["--set", "budget.max_calls=9"], 0);
    assert_says(
        &told,
        &[
            "as this run was given before: --set service.base_url=http://127.0.0.1:9/v1 --set train.epochs=1\n",
            "goes on",
        ],
    );
    // What was given on the way is remembered too, and comes in place of what had been.
    let told = resume(&[], 0);
    assert_says(
        &told,
        &[
            "--set train.epochs=1 --set budget.max_calls=9\n",
            "running already",
        ],
    );
    // What is given now is said to differ, not what is remembered.
    assert_says(
        &resume(&["--set", "train.epochs=2"], 2),
        &["train.epochs was 1.0, is 2.0"],
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
