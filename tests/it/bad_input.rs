//! What users get wrong, and what the world does to them: each a clear error, nothing paid for twice, no panic.
//!
//! Invariant: every output is searched for the words of a panic; stdout holds data or nothing.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use llamaduo_tests::model;
use llamaduo_tests::process::{self, Output, llamaduo};
use llamaduo_tests::run_files::{assert_gapless, assert_same_end};
use llamaduo_tests::service::{Options, Service};
use llamaduo_tests::site::Site;
use llamaduo_tests::tiny_model;
use serde_json::{Value, json};

/// Runs a command that must be refused with `code`, saying each of `words`.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> Output {
    let output = process::run(command);
    output.assert_refused(code, words);
    output
}

/// `run` that must be refused before anything is asked of the service.
fn refused_at_once(site: &Site, settings: &[&str], words: &[&str]) {
    let service = Service::start(Options::new(0));
    refused(&mut site.run("out", service.url(), settings), 2, words);
    assert_eq!(service.requests(), [""; 0], "nothing was spent");
    assert!(!site.path("out/report.json").exists());
}

/// One row of a coverage dataset.
fn row(prompt: &str) -> String {
    json!({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "yes"}]})
        .to_string()
        + "\n"
}

/// Where nobody listens: a port that no system gives out by itself, so that no test beside this one has it either.
const NOBODY: &str = "127.0.0.1:1";

#[test]
fn a_malformed_line_is_named_with_its_file() {
    let site = Site::new();
    for broken in [
        "{\"messages\": [{\"role\":",
        "{\"messages\": []}",
        "[]",
        "{\"messages\": 7}",
        "\u{0}",
    ] {
        site.write(
            "coverage.jsonl",
            &format!("{}{}{broken}\n{}", row("a"), row("b"), row("c")),
        );
        refused_at_once(&site, &[], &["coverage.jsonl", "line 3"]);
    }
    fs::write(
        site.path("coverage.jsonl"),
        [row("a").as_bytes(), b"{\"messages\": \"\xff\xfe\"}\n"].concat(),
    )
    .unwrap();
    refused_at_once(&site, &[], &["coverage.jsonl"]);
    fs::remove_file(site.path("coverage.jsonl")).unwrap();
    refused_at_once(&site, &[], &["coverage.jsonl"]);
}

#[test]
fn an_unknown_key_suggests_the_nearest() {
    let site = Site::new();
    refused_at_once(&site, &["train.epoch=2"], &["train.epoch", "train.epochs"]);
    let config = fs::read_to_string(site.path("llamaduo.toml")).unwrap();
    site.write("llamaduo.toml", &config.replace("max_tokens", "max_tokns"));
    refused_at_once(&site, &[], &["llamaduo.toml", "infer.max_tokns", "max_tokens"]);
    site.write("llamaduo.toml", "[train\n");
    refused_at_once(&site, &[], &["llamaduo.toml", "line 1"]);
    let mut command = llamaduo();
    refused(
        command.args(["run", "--config"]).arg(site.path("nowhere.toml")),
        2,
        &["nowhere.toml", "init"],
    );
    refused(llamaduo().args(["run", "--bogus"]), 2, &["--bogus"]);
}

#[test]
fn splits_and_values_without_a_meaning_are_refused() {
    let site = Site::new();
    refused_at_once(
        &site,
        &["data.test_count=0"],
        &["`data.test_count` is 0", "2 or more", "test split empty"],
    );
    refused_at_once(
        &site,
        &["data.test_count=90"],
        &[
            "`data.test_count` is 90",
            "less than the 24 pairs",
            "train split empty",
        ],
    );
    refused_at_once(&site, &["data.test_count=1"], &["data.test_count", "at least 2"]);
    refused_at_once(
        &site,
        &["judge.gradings_per_response=0"],
        &["judge.gradings_per_response", "at least 1"],
    );
    refused_at_once(&site, &["train.learning_rate=nan"], &["train.learning_rate"]);
    refused_at_once(&site, &["train.learning_rate=\"fast\""], &["train.learning_rate"]);
    refused_at_once(&site, &["infer.max_tokens=-1"], &["infer.max_tokens"]);
}

#[test]
fn a_prompt_beyond_the_context_is_named_before_anything_is_spent() {
    let site = Site::new();
    let prompts: String = (0..4)
        .map(|i| row(&format!("{i} {}", "word ".repeat(500))))
        .collect();
    site.write("coverage.jsonl", &prompts);
    refused_at_once(
        &site,
        &["data.test_count=2"],
        &["coverage dataset", "line ", "2048", "infer.max_tokens"],
    );
    let mut stage = llamaduo();
    stage.args(["infer", "--out"]).arg(site.path("responses.jsonl"));
    site.configure(&mut stage, "http://127.0.0.1:9/v1", &["data.test_count=2"]);
    refused(&mut stage, 2, &["coverage dataset", "2048"]);
    let mut submit = llamaduo();
    submit.args(["submit", "--coordinator", "http://127.0.0.1:9"]);
    site.configure(&mut submit, "http://127.0.0.1:9/v1", &["data.test_count=2"]);
    refused(&mut submit, 2, &["coverage dataset", "2048"]);
    let mut command = llamaduo();
    command
        .args([
            "generate",
            "--greedy",
            "--prompt",
            &"word ".repeat(500),
            "--model",
        ])
        .arg(site.path("model"));
    let output = process::run(&mut command);
    assert!(
        output.code() != 0 && output.stderr.contains("2048"),
        "{} {}",
        output.code(),
        output.stderr
    );
}

#[test]
fn models_that_are_missing_or_damaged_are_named() {
    let site = Site::new();
    let service = Service::start(Options::new(0));
    let mut nowhere = site.run("out", service.url(), &["local.base=./nowhere.gguf"]);
    refused(&mut nowhere, 2, &["nowhere.gguf", "does not exist"]);
    assert_eq!(service.requests(), [""; 0], "nothing was spent");
    let eval = |model: &str| {
        let mut command = llamaduo();
        command
            .args(["eval", "--output", "json", "--data"])
            .arg(site.path("coverage.jsonl"));
        command.arg("--model").arg(site.path(model));
        command
    };
    // Cut in the metadata, in the list of tensors, and in the tensors.
    let whole = fs::read(model::smollm2()).unwrap();
    for len in [0, 3, 20, 1_000, 1_500_000, whole.len() / 2, whole.len() - 1] {
        fs::write(site.path("cut.gguf"), &whole[..len]).unwrap();
        refused(&mut eval("cut.gguf"), 1, &["cut.gguf"]);
    }
    let tensors = fs::read(site.path("model/model.safetensors")).unwrap();
    for len in [0, 7, 100, tensors.len() - 1] {
        fs::write(site.path("model/model.safetensors"), &tensors[..len]).unwrap();
        refused(&mut eval("model"), 1, &["model.safetensors"]);
    }
    for (file, text) in [
        ("config.json", "{}"),
        ("config.json", "not json"),
        ("tokenizer.json", "[]"),
    ] {
        tiny_model::write(&site.path("model")).unwrap();
        site.write(&format!("model/{file}"), text);
        refused(&mut eval("model"), 1, &[file]);
    }
}

#[test]
fn a_refused_key_stops_the_run_until_it_is_put_right() {
    let site = Site::new();
    let mut options = Options::new(0);
    options.api_key = Some("the-right-key".to_owned());
    let service = Service::start(options);
    let key_file = site.path("key");
    let setting = format!("service.api_key_file={}", key_file.display());
    let settings = [setting.as_str()];

    site.write("key", "the-wrong-key\n");
    let output = process::run(&mut site.run("out", service.url(), &settings));
    assert_eq!(output.code(), 5, "{}", output.stderr);
    let printed: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(printed["status"], "service_failed");
    assert!(
        printed["reason"].as_str().unwrap().contains("key"),
        "{}",
        printed["reason"]
    );
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(!said.contains("the-wrong-key"), "a key is never shown");
    assert_eq!(site.files("out").report()["status"], "service_failed");
    assert_eq!(site.files("out").report()["cost"]["calls"], 0);

    site.write("key", "the-right-key\n");
    let run = site.finish("out", service.url(), &settings, 3);
    assert_eq!(run.report()["status"], "gate_not_reached");
    assert_gapless(&run.events());

    fs::remove_file(&key_file).unwrap();
    let key_file = key_file.display().to_string();
    refused(
        &mut site.run("no-key", service.url(), &settings),
        2,
        &[&key_file, "service.api_key_file"],
    );
    assert!(!site.path("no-key").exists(), "nothing was begun");
    let variable = ["service.api_key_env=LLAMADUO_TEST_NO_SUCH_KEY"];
    let mut stage = llamaduo();
    stage.args(["synth", "--out"]).arg(site.path("samples.jsonl"));
    site.configure(&mut stage, service.url(), &variable);
    refused(&mut stage, 2, &["LLAMADUO_TEST_NO_SUCH_KEY"]);
    // What has ended needs no key to be shown.
    site.finish("out", service.url(), &settings, 3);
}

#[test]
fn a_spent_budget_stops_the_run_until_it_is_raised() {
    let site = Site::new();
    let service = Service::start_reliable();
    let whole = site.finish("whole", service.url(), &[], 3);
    let service = Service::start_reliable();
    let output = process::run(&mut site.run("out", service.url(), &["budget.max_calls=10"]));
    assert_eq!(output.code(), 4, "{}", output.stderr);
    let report = site.files("out").report();
    assert_eq!(report["status"], "budget_spent");
    assert!(
        report["cost"]["calls"].as_u64().unwrap() <= 10,
        "{}",
        report["cost"]
    );
    assert!(service.requests().len() <= 10);

    let mut fewer = site.run("out", service.url(), &["run.cycles_max=1"]);
    refused(
        &mut fewer,
        2,
        &["may use 2 cycles", "run.cycles_max is 1 now", "not fewer"],
    );

    // What the run was given with --set, the address of the service too, is remembered.
    let mut resume = llamaduo();
    resume.args([
        "run",
        "--resume",
        "--output",
        "json",
        "--set",
        "budget.max_calls=1000",
    ]);
    resume.arg("--config").arg(site.path("llamaduo.toml"));
    let output = process::run(resume.arg("--out").arg(site.path("out")));
    assert_eq!(output.code(), 3, "{}", output.stderr);
    let run = site.files("out");
    assert_gapless(&run.events());
    assert_same_end(&run, &whole);
    let told = fs::read_to_string(site.path("out/events.jsonl")).unwrap();
    assert!(
        told.contains("\"run_resumed\",\"was\":\"budget_spent\""),
        "{told}"
    );
    let report = || {
        let output = process::run(llamaduo().arg("report").arg(site.path("out")));
        assert_eq!(output.code(), 0, "{}", output.stderr);
        output.stderr.contains("goes on since this report was made")
    };
    assert!(!report());
    // As while it is gone on with: the report is of when it had ended before.
    let end = told.trim_end().rfind('\n').unwrap() + 1;
    site.write("out/events.jsonl", &told[..end]);
    assert!(report());
    site.write("out/events.jsonl", &told);

    let mut nothing = site.run("elsewhere", service.url(), &[]);
    refused(nothing.arg("--resume"), 2, &["elsewhere", "no run to resume"]);
    let mut other = site.run("out", service.url(), &["budget.max_calls=1000", "train.epochs=1"]);
    refused(&mut other, 2, &["train.epochs was 4.0, is 1.0", "--out"]);
}

#[test]
fn a_stage_alone_that_ended_short_goes_on_and_says_how_it_ended() {
    let site = Site::new();
    let service = Service::start_reliable();
    let out = site.path("kept.jsonl");
    let synth = |max_calls: &str| {
        let mut command = llamaduo();
        command.args(["synth", "--output", "json", "--out"]).arg(&out);
        site.configure(&mut command, service.url(), &[max_calls]);
        process::run(&mut command)
    };
    for _ in 0..2 {
        let short = synth("budget.max_calls=1");
        assert_eq!(short.code(), 4, "{}\n{}", short.stdout, short.stderr);
        let said: Value = serde_json::from_str(&short.stdout).unwrap();
        assert_eq!(said["status"], "budget_spent");
        assert!(!out.exists());
    }
    let whole = synth("budget.max_calls=100");
    assert_eq!(whole.code(), 0, "{}\n{}", whole.stdout, whole.stderr);
    assert!(fs::read_to_string(&out).unwrap().lines().count() > 1);
}

#[test]
fn a_loss_that_is_no_number_says_so_and_keeps_what_was_paid_for() {
    let site = Site::new();
    let service = Service::start(Options::new(0));
    let wild = ["train.learning_rate=1e30", "train.gradient_norm_max=0"];
    let output = process::run(&mut site.run("out", service.url(), &wild));
    assert_eq!(output.code(), 1, "{}", output.stderr);
    let printed: Value = serde_json::from_str(&output.stdout).unwrap();
    let reason = printed["reason"].as_str().unwrap();
    assert!(reason.contains("loss") && reason.contains("learning"), "{reason}");
    let report = site.files("out").report();
    assert!(
        report["base"]["similarity"]["mean"].is_number(),
        "the floor was paid for and is kept"
    );
    assert!(report["cost"]["calls"].as_u64().unwrap() > 0);
}

#[test]
fn a_service_that_is_not_there_is_named() {
    let site = Site::new();
    let address = NOBODY;
    let away = format!("http://{address}/v1");
    refused(&mut site.run("out", &away, &[]), 5, &[address, "base_url"]);
    let mut stage = llamaduo();
    stage.args(["synth", "--out"]).arg(site.path("samples.jsonl"));
    site.configure(&mut stage, &away, &[]);
    refused(&mut stage, 5, &[address, "base_url"]);
    assert!(!site.path("out").exists() && !site.path(".llamaduo").exists());
    // The same run begins as ever once the address is put right.
    let service = Service::start(Options::new(0));
    site.finish("out", service.url(), &[], 3);
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let url = format!("http://{NOBODY}");
    for arguments in [vec!["status"], vec!["watch", "run-1"], vec!["cancel", "run-1"]] {
        let mut command = llamaduo();
        refused(
            command.args(arguments).args(["--coordinator", &url]),
            1,
            &[&url, "llamaduo coordinator"],
        );
    }
}

#[test]
fn only_loopback_is_listened_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = llamaduo();
    coordinator
        .args(["coordinator", "--listen", "0.0.0.0:7400", "--data"])
        .arg(folder.path().join("data"));
    refused(
        &mut coordinator,
        2,
        &["0.0.0.0:7400", "loopback", "127.0.0.1:7400"],
    );
    refused(
        llamaduo().args(["stand-in-service", "--listen", "[::]:0"]),
        2,
        &["loopback"],
    );
}

/// Runs `script`, which may mount a small disk, in a namespace of its own; why not, where that is not allowed.
fn on_small_disk(site: &Site, script: &str) -> Result<Output, String> {
    fs::create_dir(site.path("disk")).unwrap();
    let namespace = ["--user", "--map-root-user", "--mount"];
    let probe = Command::new("unshare")
        .args(namespace)
        .args(["mount", "-t", "tmpfs", "tmpfs"])
        .arg(site.path("disk"))
        .output();
    match probe {
        Err(error) => return Err(format!("unshare: {error}")),
        Ok(probe) if !probe.status.success() => {
            return Err(String::from_utf8_lossy(&probe.stderr).trim().to_owned());
        }
        Ok(_) => {}
    }
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args(["sh", "-c", script])
        .arg(process::binary());
    Ok(process::run(
        command.current_dir(site.root()).env("NO_COLOR", "1"),
    ))
}

/// Says that a test was not done, past the capture of a passing test's words: `.ci/run` lists such lines.
fn skipped(why: &str) {
    // On a line of its own, also where the test's name stands before it.
    let line = format!("\nskipped: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

#[test]
fn a_full_disk_says_so_and_the_run_goes_on_once_there_is_space() {
    let site = Site::new();
    let service = Service::start_reliable();
    let whole = site.finish("whole", service.url(), &[], 3);
    let n_calls = service.requests().len();
    let command = format!(
        "\"$0\" run --output json --config llamaduo.toml --set service.base_url={} --out disk/out",
        service.url()
    );
    // The disk fills while the run works; space is made only once it has said so.
    let script = format!(
        "mount -t tmpfs -o size=2m tmpfs disk || exit 90
         {command} >first.json 2>first.log & run=$!
         for _ in $(seq 300); do
             if grep -q 'No space left' first.log || ! kill -0 $run; then break; fi; sleep 0.2
         done
         sleep 1
         mount -o remount,size=200m disk || exit 91
         (sleep 100; kill -9 $run) 2>/dev/null & guard=$!
         wait $run; code=$?; echo first $code; kill $guard
         if [ $code != 3 ]; then {command} >second.json 2>second.log; echo second $?; fi
         cp -r disk/out saved"
    );
    let output = match on_small_disk(&site, &script) {
        Ok(output) => output,
        Err(why) => return skipped(&format!("this machine lets nobody mount a small disk ({why})")),
    };
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap_or_default();
    let said = read("first.json") + &read("first.log") + &read("second.log");
    assert!(said.contains("No space left"), "{output:?}\n{said}");
    let remedies = [
        "check its permissions and the free space",
        "check the space on its disk",
        "free some space",
    ];
    assert!(remedies.iter().any(|remedy| said.contains(remedy)), "{said}");
    assert!(!said.contains("panicked at"), "{said}");
    let ends = ["first 3\n", "first 1\nsecond 3\n"];
    assert!(ends.contains(&output.stdout.as_str()), "{output:?}\n{said}");
    let saved = site.files("saved");
    assert_same_end(&saved, &whole);
    println!(
        "{} calls for both runs, {n_calls} for the first",
        service.requests().len()
    );
}
