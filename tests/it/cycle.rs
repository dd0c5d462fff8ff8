//! A whole migration of the tiny model against `llamaduo stand-in-service`, as a script would run it.
//!
//! Invariant: what is checked is what the run leaves behind; the test split is followed into everything trained on.

use std::collections::BTreeSet;
use std::time::Duration;

use llamaduo_data::curate::rouge::rouge_l;
use llamaduo_tests::process::{self, Process, llamaduo};
use llamaduo_tests::run_files::{RunFiles, assert_gapless, assert_same_end, of_kind, rows};
use llamaduo_tests::service::{Ask, Flaws, Options, Service, ask_of};
use llamaduo_tests::site::Site;
use serde_json::{Value, json};

/// Starts the stand-in as a user would; its process and its address.
fn stand_in(site: &Site) -> (Process, String) {
    let mut command = llamaduo();
    command.args(["stand-in-service", "--listen", "127.0.0.1:0", "--output", "json"]);
    let mut process = Process::start(&mut command, &site.path("stand-in.log"));
    assert!(
        process.wait_for("\"url\"", Duration::from_secs(10)),
        "{}",
        process.log()
    );
    let log = process.log();
    let line = log.lines().find(|line| line.contains("\"url\"")).unwrap();
    let said: Value = serde_json::from_str(line).unwrap();
    (process, said["url"].as_str().unwrap().to_owned())
}

#[test]
fn a_run_leaves_what_it_promises() {
    let site = Site::new();
    let (_stand_in, url) = stand_in(&site);
    let output = process::run(&mut site.run(
        "out",
        &url,
        &["run.measure_base_unquantized=true", "local.compute=bf16"],
    ));
    assert_eq!(output.code(), 3, "{}", output.stderr);

    let run = site.files("out");
    let report = run.report();
    let printed: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(printed["status"], "gate_not_reached");
    assert_eq!(printed["report"], report);
    check_report(&report);
    check_files(&run, &report);

    let again = process::run(llamaduo().args(["report", "--output", "json"]).arg(run.path("")));
    assert_eq!(again.code(), 0, "{}", again.stderr);
    assert_eq!(serde_json::from_str::<Value>(&again.stdout).unwrap(), report);
}

/// The fields that scripts may rely on, and what must hold between them.
fn check_report(report: &Value) {
    assert_eq!(report["status"], "gate_not_reached");
    assert!(report["base_unquantized"].is_object());
    assert_eq!(report["about"]["compute"], "bf16");
    let cycles = report["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 2);
    for subject in [&report["base"], &report["service"]].into_iter().chain(cycles) {
        for metric in ["similarity", "precision"] {
            let (mean, coverage) = (
                number(&subject[metric]["mean"]),
                number(&subject[metric]["coverage"]),
            );
            assert!((1.0..=100.0).contains(&mean), "{metric} {mean}");
            assert!((0.0..=1.0).contains(&coverage), "{metric} {coverage}");
        }
        assert_eq!(subject["verdicts"], 6, "one for each test prompt");
        assert!(subject["unparsed"].as_u64().unwrap() <= 6);
    }
    let base = number(&report["base"]["similarity"]["mean"]);
    assert!(
        number(&report["service"]["similarity"]["mean"]) > base + 50.0,
        "the ceiling is far above the floor"
    );
    for (cycle, number_of) in cycles.iter().zip(1..) {
        assert_eq!(cycle["cycle"], number_of);
        let train = &cycle["train"];
        assert!(train["tokens"].as_u64().unwrap() > 0 && number(&train["seconds"]) > 0.0);
        assert!(
            number(&train["loss_last"]) < number(&train["loss_first"]),
            "{train}"
        );
        assert_eq!(cycle["gate"]["passed"], false);
        assert!(!cycle["gate"]["rule"].as_str().unwrap().is_empty());
        assert!(!cycle["gate"]["reason"].as_str().unwrap().is_empty());
    }
    assert_eq!(cycles[0]["train"]["samples"], 18);
    let synthesis = &cycles[0]["synthesis"];
    let count = |name: &str| synthesis[name].as_u64().unwrap();
    assert!(count("raw") >= 18 && count("kept") > 0);
    assert_eq!(
        count("raw"),
        count("kept") + count("duplicates") + count("filtered") + count("contaminated")
    );
    assert_eq!(
        cycles[1]["train"]["samples"].as_u64().unwrap(),
        18 + count("kept")
    );
    let cost = &report["cost"];
    assert!(cost["calls"].as_u64().unwrap() > 0);
    let (input, output) = (number(&cost["input_tokens"]), number(&cost["output_tokens"]));
    let usd = (input * 0.5 + output * 2.0) / 1e6;
    assert!(
        (number(&cost["usd"]) - usd).abs() < 1e-9 * cost["calls"].as_f64().unwrap(),
        "{cost}"
    );
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn check_files(run: &RunFiles, report: &Value) {
    let adapter = run.adapter();
    // Each cycle's is kept, and the best of them is delivered.
    let delivered = report["about"]["adapter_cycle"].as_u64().unwrap();
    for cycle in [1, 2] {
        let trained = RunFiles::at(&run.path(&format!("cycles/{cycle}"))).adapter();
        assert!(trained.keys().eq(adapter.keys()), "{:?}", trained.keys());
        assert_eq!(trained == adapter, cycle == delivered, "cycle {cycle}");
    }
    assert!(
        !run.path("cycles/0/adapter").exists(),
        "nothing is trained in cycle 0"
    );
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        assert!(
            adapter.get(name).is_some_and(|bytes| !bytes.is_empty()),
            "{:?}",
            adapter.keys()
        );
    }
    let config: Value = serde_json::from_slice(&adapter["adapter_config.json"]).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(4)));

    let events = run.events();
    assert_gapless(&events);
    assert_eq!(of_kind(&events, "gate_decided").len(), 2);

    let html = std::fs::read_to_string(run.path("report.html")).unwrap();
    assert!(
        html.contains("<svg") && !html.contains("src=\"http"),
        "the page needs no other file"
    );
    for entry in std::fs::read_dir(run.path("plots")).unwrap() {
        let svg = entry.unwrap().path();
        assert!(
            svg.with_extension("svg").is_file() && svg.with_extension("csv").is_file(),
            "{svg:?}"
        );
    }
    let in_cycle = |cycle: u32, name: &str| run.rows(&format!("cycles/{cycle}/{name}.jsonl")).len();
    // Base in two forms and the service; then the adapter.
    assert_eq!((in_cycle(0, "responses"), in_cycle(0, "verdicts")), (18, 18));
    for cycle in [1, 2] {
        assert_eq!(
            (in_cycle(cycle, "responses"), in_cycle(cycle, "verdicts")),
            (6, 6)
        );
    }
    let synthesis = &report["cycles"][0]["synthesis"];
    assert_eq!(json!(in_cycle(1, "samples")), synthesis["kept"]);
    assert_eq!(json!(in_cycle(1, "raw_samples")), synthesis["raw"]);
    assert_eq!(
        in_cycle(1, "samples") + in_cycle(1, "dropped"),
        in_cycle(1, "raw_samples"),
        "each is kept or dropped"
    );
}

#[test]
fn a_gate_that_is_reached_ends_the_run_with_success() {
    let site = Site::new();
    let (_stand_in, url) = stand_in(&site);
    let low = [
        "gate.rule=absolute",
        "gate.similarity_mean_min=1",
        "gate.precision_mean_min=1",
        "gate.coverage_min=0",
    ];
    let run = site.finish("out", &url, &low, 0);
    let report = run.report();
    assert_eq!(report["status"], "passed");
    assert_eq!(report["cycles"].as_array().unwrap().len(), 1);
    assert_eq!(report["cycles"][0]["gate"]["passed"], true);
    assert!(
        report["cycles"][0]["synthesis"].is_null(),
        "nothing more is paid for"
    );
    assert_gapless(&run.events());
}

/// ROUGE-L with a test prompt from which a pair is dropped: the config's default.
const CONTAMINATION_ROUGE_L: f64 = 0.6;

/// The words of test prompts: each is in its own split only.
fn user_words(rows: &[Value]) -> BTreeSet<String> {
    let messages = rows.iter().flat_map(|row| row["messages"].as_array().unwrap());
    let said = messages.filter(|message| message["role"] == "user");
    said.map(|message| message["content"].as_str().unwrap().to_owned())
        .collect()
}

fn artifact_rows(run: &RunFiles, digest: &str) -> Vec<Value> {
    rows(&String::from_utf8(run.artifact(digest)).unwrap())
}

/// How many artifacts the run's adapters were trained on, none of which holds a test prompt or what is close to one.
fn n_training_sets_without(
    test: &BTreeSet<String>,
    run: &RunFiles,
    test_digest: &str,
    train_digest: &str,
) -> usize {
    let events = run.events();
    let done = of_kind(&events, "task_done");
    let trained = done.iter().filter(|event| event["stage"] == "train");
    let mut n_training_sets = 0;
    for event in trained {
        let manifest = run.artifact(event["result"]["manifest"].as_str().unwrap());
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["kind"], "adapter");
        for parent in manifest["parents"].as_array().unwrap() {
            let parent = parent.as_str().unwrap();
            assert_ne!(parent, test_digest);
            let words = user_words(&artifact_rows(run, parent));
            assert!(!words.is_empty());
            assert!(
                words.is_disjoint(test),
                "a test prompt is in the training data {parent}"
            );
            // The split of the user's own pairs is by whole rows; what was synthesized may not even be close.
            let is_synthesized = parent != train_digest;
            let pairs = words
                .iter()
                .flat_map(|words| test.iter().map(move |test| (words, test)));
            for (words, test) in pairs.filter(|_| is_synthesized) {
                let likeness = rouge_l(words, test);
                assert!(
                    likeness < CONTAMINATION_ROUGE_L,
                    "{likeness}: {words:?} beside the test prompt {test:?}"
                );
            }
            n_training_sets += 1;
        }
    }
    n_training_sets
}

#[test]
fn the_test_split_never_reaches_training_or_synthesis() {
    let site = Site::new();
    // Copies of any of the 150 pairs that the test split was drawn from: enough that some are of test pairs.
    let mut options = Options::new(0);
    options.flaws = Flaws {
        near_copies: 1.0,
        duplicates: 0.0,
        malformed: 0.0,
        wrong_labels: 0.0,
    };
    let service = Service::start(options);
    let settings = ["synthesis.samples_per_cycle=120", "train.epochs=1"];
    let run = site.finish("out", service.url(), &settings, 3);
    let record: Value =
        serde_json::from_slice(&std::fs::read(run.path(".llamaduo/run.json")).unwrap()).unwrap();
    let test_digest = record["spec"]["coverage"]["test"].as_str().unwrap();
    let train_digest = record["spec"]["coverage"]["train"].as_str().unwrap();
    let test = user_words(&artifact_rows(&run, test_digest));
    assert_eq!(test.len(), 6);
    assert!(
        run.report()["cycles"][0]["synthesis"]["contaminated"]
            .as_u64()
            .unwrap()
            > 0,
        "there was what to catch"
    );

    let n_training_sets = n_training_sets_without(&test, &run, test_digest, train_digest);
    assert_eq!(
        n_training_sets,
        1 + 2,
        "the train split, then it and what was synthesized"
    );

    let requests = service.requests();
    let synthesis: Vec<&String> = requests
        .iter()
        .filter(|body| ask_of(body) == Ask::Synthesize)
        .collect();
    assert!(!synthesis.is_empty());
    for body in synthesis {
        let body: Value = serde_json::from_str(body).unwrap();
        for message in body["messages"].as_array().unwrap() {
            let said = message["content"].as_str().unwrap();
            let leaked = test.iter().find(|words| said.contains(words.as_str()));
            assert_eq!(leaked, None, "a test prompt was shown as an example");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_adapter_and_scores() {
    let site = Site::new();
    let run = |out: &str, seed: &str| {
        // Its faults depend on how often a request was seen: a new one for each run sees each as the first.
        let service = Service::start(Options::new(0));
        site.finish(out, service.url(), &[&format!("run.seed={seed}")], 3)
    };
    let (first, second, other) = (run("first", "0"), run("second", "0"), run("other", "1"));
    assert_same_end(&first, &second);
    assert!(
        first.adapter() != other.adapter(),
        "another seed trains another adapter"
    );
}
