//! A run that has ended: what the commands say of it, and that none of them changes it by mistake.
//!
//! Invariant: nothing here asks a service anything once the run has ended.

use llamaduo_tests::process::{self, Output, llamaduo};
use llamaduo_tests::run_files::RunFiles;
use llamaduo_tests::service::Service;
use llamaduo_tests::site::Site;
use serde_json::Value;

/// A command in the site's directory.
fn command(site: &Site, words: &[&str]) -> Output {
    process::run(llamaduo().args(words).current_dir(site.root()))
}

#[test]
fn a_run_that_has_ended_says_so_and_is_changed_by_no_mistake() {
    let site = Site::new();
    let service = Service::start_reliable();
    let run = site.finish("out", service.url(), &[], 3);
    let (n_asked, report, adapter) = (service.requests().len(), run.report(), run.adapter());

    check_same_command(&site, &service);
    check_fewer_cycles(&site, &service);
    check_other_commands(&site, &service, &run);

    assert_eq!(service.requests().len(), n_asked, "nothing was asked");
    assert!(
        run.report() == report && run.adapter() == adapter,
        "nothing was changed"
    );
}

/// The command that began it prints what it came to, why it is over, and what would go on with it.
fn check_same_command(site: &Site, service: &Service) {
    let again = process::run(&mut site.run("out", service.url(), &[]));
    assert_eq!(again.code(), 3, "{}", again.stderr);
    let printed: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(
        (&printed["ended_before"], &printed["status"]),
        (&true.into(), &"gate_not_reached".into())
    );
    for words in [
        "had ended before, so nothing was done now",
        "it used all its 2 cycles without passing its gate",
        "--resume --set run.cycles_max=3",
        "--out",
    ] {
        assert!(again.stderr.contains(words), "no `{words}` in: {}", again.stderr);
    }
    assert!(!again.stderr.contains("going on with"), "{}", again.stderr);
}

fn check_fewer_cycles(site: &Site, service: &Service) {
    for resume in [&[][..], &["--resume"]] {
        let mut fewer = site.run("out", service.url(), &["run.cycles_max=1"]);
        let output = process::run(fewer.args(resume));
        output.assert_refused(
            2,
            &[
                "may use 2 cycles",
                "not fewer",
                "/cycles/N/adapter",
                "llamaduo report",
            ],
        );
        assert!(!output.stderr.contains("llamaduo cancel"), "{}", output.stderr);
    }
}

fn check_other_commands(site: &Site, service: &Service, run: &RunFiles) {
    let into_run = |words: &[&str]| {
        let mut command = llamaduo();
        command.args(words).current_dir(site.root());
        site.configure(&mut command, service.url(), &[]);
        process::run(&mut command)
    };
    std::fs::create_dir(site.path("mine")).unwrap();
    for (stage, place, elsewhere) in [
        ("train", "out", "train/adapter"),
        ("train", "out/adapter", "train/adapter"),
        ("train", "out/cycles/1/adapter", "train/adapter"),
        ("infer", "out/mine.jsonl", "infer/responses.jsonl"),
        ("infer", "out/cycles/1/responses.jsonl", "infer/responses.jsonl"),
        ("synth", "out/new/one/samples.jsonl", "synthesize/samples.jsonl"),
        ("synth", "mine/../out/samples.jsonl", "synthesize/samples.jsonl"),
    ] {
        let lies = format!("--out {place} would write into out, the directory of a run");
        let such = format!("such as {elsewhere}\n");
        into_run(&[stage, "--out", place]).assert_refused(2, &[&lies, &such]);
    }
    // Nobody listens there: it is refused before a coordinator is asked.
    let elsewhere = ["--coordinator", "http://127.0.0.1:9"];
    for words in [
        ["train", "--out", "out/cycles/1/adapter"],
        ["infer", "--out", "out/report.json"],
    ] {
        into_run(&[&words[..], &elsewhere].concat()).assert_refused(2, &["the directory of a run"]);
    }
    assert!(!run.path("cycles/1/.llamaduo").exists(), "nothing was begun");

    for asked in ["watch", "status", "cancel"] {
        command(site, &[asked, "out"]).assert_refused(
            2,
            &[
                "out is the directory of a run on this machine",
                "`llamaduo report out`",
            ],
        );
        command(site, &[asked, "out/report.json"]).assert_refused(
            2,
            &["out/report.json is a path on this machine", "llamaduo status"],
        );
    }
    let shown = command(site, &["report", "out"]);
    assert_eq!(shown.code(), 0, "{}", shown.stderr);
    for words in ["pauses included", "nearest to passing"] {
        assert!(shown.stdout.contains(words), "no `{words}` in: {}", shown.stdout);
    }
}

#[test]
fn more_cycles_for_a_run_that_is_over_are_not_remembered() {
    let site = Site::new();
    let service = Service::start_reliable();
    let passes = [
        "gate.rule=absolute",
        "gate.similarity_mean_min=1",
        "gate.precision_mean_min=1",
        "gate.coverage_min=0",
    ];
    let keeps_nothing = ["synthesis.curation.prompt_words_min=999"];
    for (out, settings, code, why) in [
        ("passed", &passes[..], 0, "it passed its gate"),
        ("nothing", &keeps_nothing, 3, "curation kept none of the pairs"),
    ] {
        site.finish(out, service.url(), settings, code);
        let more = [settings, &["run.cycles_max=5"]].concat();
        for settings in [&more[..], settings] {
            let again = process::run(&mut site.run(out, service.url(), settings));
            assert_eq!(again.code(), code, "{}", again.stderr);
            for words in ["so nothing was done now", why] {
                assert!(again.stderr.contains(words), "no `{words}` in: {}", again.stderr);
            }
            assert!(!again.stderr.contains("going on with"), "{}", again.stderr);
        }
    }
}

#[test]
fn a_directory_without_a_run_is_no_copy_of_a_report() {
    let site = Site::new();
    std::fs::create_dir(site.path("empty")).unwrap();
    let output = command(&site, &["report", "empty"]);
    output.assert_refused(2, &["there is no run in empty"]);
    assert!(
        output.stderr.starts_with("error: there is no run"),
        "{}",
        output.stderr
    );
}
