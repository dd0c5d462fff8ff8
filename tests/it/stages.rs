//! Single stages and the local model's commands as a user types them: what they print, refuse and reuse.
//!
//! Invariant: stdout holds the result alone; what is said of it goes to stderr.

use std::fs;

use llamaduo_tests::process::{self, Output, llamaduo};
use llamaduo_tests::service::{FaultRates, Options, Service};
use llamaduo_tests::site::Site;
use serde_json::Value;

/// A stage in the site's directory.
fn stage(site: &Site, service_url: &str, words: &[&str], settings: &[&str]) -> Output {
    let mut command = llamaduo();
    command.args(words).current_dir(site.root());
    site.configure(&mut command, service_url, settings);
    process::run(&mut command)
}

fn json(output: &Output) -> Value {
    assert_eq!(output.code(), 0, "{}\n{}", output.stdout, output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn responses_are_judged_by_their_own_split_with_means_and_once() {
    let site = Site::new();
    let service = Service::start_reliable();
    let inferred = stage(&site, service.url(), &["infer"], &[]);
    assert_eq!(
        (inferred.code(), inferred.stdout.as_str()),
        (0, "responses.jsonl\n")
    );
    assert!(
        inferred
            .stderr
            .contains("the untuned base (quant nf4, compute f32) answers 6 test prompts"),
        "{}",
        inferred.stderr
    );

    let judged = json(&stage(&site, service.url(), &["judge", "-o", "json"], &[]));
    let scores = &judged["scores"];
    assert_eq!(
        (&judged["reused"], &scores["verdicts"]),
        (&false.into(), &6.into())
    );
    for metric in ["similarity", "precision"] {
        assert!(
            scores[metric]["mean"].is_number() && scores[metric]["coverage"].is_number(),
            "{scores}"
        );
    }
    let n_calls = service.requests().len();
    let other = stage(&site, service.url(), &["judge"], &["data.seed=5"]);
    other.assert_refused(2, &["responses.jsonl, line ", "infer again"]);
    assert_eq!(service.requests().len(), n_calls, "nothing was paid for");

    let url = service.url().to_owned();
    drop(service);
    let again = stage(&site, &url, &["judge"], &[]);
    assert_eq!(again.code(), 0, "{}", again.stderr);
    assert!(
        again.stderr.contains("reused from .llamaduo") && again.stdout.contains("similarity  mean"),
        "{}\n{}",
        again.stdout,
        again.stderr
    );
    let away = stage(&site, &url, &["judge"], &["judge.gradings_per_response=2"]);
    assert_eq!((away.code(), away.stdout.as_str()), (5, ""), "{}", away.stderr);
    let said = [inferred.stderr, again.stderr].concat();
    for odd in ["task", "begins", "run ended", "(s)"] {
        assert!(!said.contains(odd), "`{odd}` in: {said}");
    }
}

#[test]
fn models_and_files_that_are_missing_are_wrong_input_everywhere() {
    let site = Site::new();
    let service = Service::start_reliable();
    for words in [["train"], ["infer"]] {
        let output = stage(&site, service.url(), &words, &["local.base=./nowhere"]);
        assert_eq!(output.code(), 2, "{words:?}: {}", output.stderr);
        assert!(output.stderr.contains("nowhere"), "{}", output.stderr);
    }
    let refused = |words: &[&str], said: &str| {
        let output = process::run(llamaduo().args(words).current_dir(site.root()));
        output.assert_refused(2, &[said]);
    };
    fs::create_dir(site.path("empty")).unwrap();
    refused(&["generate", "--prompt", "a", "--model", "./nowhere"], "nowhere");
    refused(&["generate", "--prompt", "a", "--model", "empty"], "no model at");
    refused(
        &["eval", "--model", "model", "--data", "nowhere.jsonl"],
        "nowhere.jsonl",
    );
    refused(
        &[
            "generate",
            "--prompt",
            "a",
            "--model",
            "model",
            "--adapter",
            "empty",
        ],
        "holds no adapter",
    );
    site.write("bad.jsonl", "{\"messages\": []}\n\n{\"text\": \"a\"}\n");
    refused(
        &["eval", "--model", "model", "--data", "bad.jsonl"],
        "bad.jsonl, line 3: missing field `messages`",
    );
    site.write("none.jsonl", "\n");
    refused(
        &["eval", "--model", "model", "--data", "none.jsonl"],
        "holds no rows; expected {\"messages\"",
    );
    let long = "word ".repeat(500);
    refused(
        &["generate", "--model", "model", "--prompt", &long],
        "must be shortened",
    );
    refused(
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "a",
            "--max-tokens",
            "2048",
        ],
        "or less, or shorten the prompt",
    );
}

#[test]
fn an_answer_is_the_same_whether_it_is_streamed_or_whole() {
    let site = Site::new();
    let generate = |more: &[&str]| {
        let mut command = llamaduo();
        command.args(["generate", "--model", "model", "--prompt", "a", "--greedy"]);
        process::run(
            command
                .args(["--max-tokens", "12"])
                .args(more)
                .current_dir(site.root()),
        )
    };
    let whole = json(&generate(&["-o", "json"]));
    let streamed = generate(&[]);
    assert_eq!(streamed.code(), 0, "{}", streamed.stderr);
    let text = whole["text"].as_str().unwrap().trim_end_matches('\n');
    assert_eq!(streamed.stdout, format!("{text}\n"));
    assert!(streamed.stderr.contains("loading"), "{}", streamed.stderr);
    let is_cut = whole["finish"] == "length";
    assert!(is_cut || whole["finish"] == "stop", "{whole}");
    assert_eq!(streamed.stderr.contains("cut at --max-tokens 12"), is_cut);
}

#[test]
fn an_answer_tells_its_likelihoods_and_ends_before_a_stop_text() {
    let site = Site::new();
    let generate = |more: &[&str]| {
        let mut command = llamaduo();
        command.args([
            "generate",
            "--model",
            "model",
            "--prompt",
            "a",
            "--max-tokens",
            "12",
        ]);
        process::run(command.args(more).current_dir(site.root()))
    };
    let whole = json(&generate(&["--greedy", "--logprobs", "2", "-o", "json"]));
    let tokens = whole["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, whole["tokens"].as_u64().unwrap());
    for token in tokens {
        // Greedy takes the likeliest.
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["id"], token["top_logprobs"][0]["id"]);
        let logprob = token["logprob"].as_f64().unwrap();
        assert!(logprob < 0.0 && logprob >= token["top_logprobs"][1]["logprob"].as_f64().unwrap());
    }
    let spelled: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    if !spelled.contains('\u{fffd}') {
        assert_eq!(spelled, whole["text"].as_str().unwrap());
    }
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(1).take(1).collect();
    let stopped = json(&generate(&["--greedy", "--stop", &stop, "-o", "json"]));
    assert_eq!(
        stopped["text"].as_str().unwrap(),
        text.split(&stop).next().unwrap()
    );
    assert_eq!(
        (&stopped["finish"], stopped.get("logprobs")),
        (&"stop".into(), None)
    );
    let penalized = generate(&["--greedy", "--repetition-penalty", "50", "-o", "json"]);
    assert_ne!(json(&penalized)["text"], whole["text"]);
    for (more, said) in [
        (&["--logprobs", "1"][..], "-o json"),
        (&["--min-p", "2"], "--min-p is 2; expected at least 0 and below 1"),
        (
            &["--repetition-penalty", "0"],
            "--repetition-penalty is 0; expected",
        ),
        (&["--temperature=-1"], "--temperature is -1; expected 0 or more"),
    ] {
        let output = generate(more);
        output.assert_refused(2, &[said]);
    }
}

#[test]
fn test_prompts_are_not_trained_on() {
    let site = Site::new();
    let output = stage(
        &site,
        "http://127.0.0.1:1/v1",
        &["train", "--samples", "coverage.jsonl"],
        &[],
    );
    assert_eq!(output.code(), 2, "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("holds 6 prompts of this config's test split"),
        "{}",
        output.stderr
    );
}

#[test]
fn benches_print_what_they_measured() {
    let site = Site::new();
    let bench = |words: &[&str]| {
        let mut command = llamaduo();
        command.arg("bench").args(words).args(["--model", "model"]);
        process::run(command.current_dir(site.root()))
    };
    let sizes = [
        "--batch",
        "1,3",
        "--prompt-tokens",
        "20",
        "--new-tokens",
        "8",
        "-o",
        "json",
    ];
    let measured = json(&bench(&[&["generate", "--threads", "1"], &sizes[..]].concat()));
    assert_eq!(
        (&measured["threads"], &measured["runs"][1]["batch"]),
        (&1.into(), &3.into())
    );
    assert_eq!(
        (&measured["quant"], &measured["compute"]),
        (&"nf4".into(), &"f32".into())
    );
    for rate in ["prefill_tokens_per_s", "tokens_per_s"] {
        assert!(
            measured["runs"][0][rate].as_f64().is_some_and(|rate| rate > 0.0),
            "{measured}"
        );
    }
    let measured = bench(&[
        "train",
        "--batch",
        "2",
        "--seq",
        "16",
        "--steps",
        "2",
        "--compute",
        "bf16",
    ]);
    assert!(
        measured.stdout.contains("model, quant nf4, compute bf16, "),
        "{}",
        measured.stdout
    );
    let too_long = bench(&["generate", "--prompt-tokens", "100000"]);
    assert_eq!(too_long.code(), 2, "{}", too_long.stderr);
    assert!(
        too_long.stderr.contains("lower --prompt-tokens"),
        "{}",
        too_long.stderr
    );
}

#[test]
fn a_place_that_cannot_take_the_result_is_refused_before_the_work() {
    let site = Site::new();
    fs::create_dir(site.path("there")).unwrap();
    site.write("file", "");
    let coverage = fs::read(site.path("coverage.jsonl")).unwrap();
    for (words, said) in [
        (["infer", "--out", "there"], "such as there/responses.jsonl"),
        (["train", "--out", "file"], "name a directory"),
        (
            ["synth", "--out", "coverage.jsonl"],
            "coverage.jsonl holds something else than samples",
        ),
        (
            ["infer", "--out", "model/config.json"],
            "something else than responses",
        ),
    ] {
        let output = stage(&site, "http://127.0.0.1:9/v1", &words, &[]);
        output.assert_refused(2, &[said]);
    }
    assert!(!site.path(".llamaduo").exists(), "nothing was begun");
    assert!(fs::read(site.path("coverage.jsonl")).unwrap() == coverage);
}

#[test]
fn a_stage_writes_over_an_earlier_result_of_its_kind_alone() {
    let site = Site::new();
    let service = Service::start_reliable();
    let infer = |settings: &[&str]| {
        let output = stage(&site, service.url(), &["infer", "--service"], settings);
        assert_eq!(output.code(), 0, "{}", output.stderr);
        fs::read_to_string(site.path("responses.jsonl")).unwrap()
    };
    let (first, other) = (infer(&[]), infer(&["data.seed=5"]));
    assert!(first != other);
    let n_calls = service.requests().len();
    assert!(
        infer(&[]) == first && service.requests().len() == n_calls,
        "it was kept"
    );
    let over_what_it_reads = stage(&site, service.url(), &["judge", "--out", "responses.jsonl"], &[]);
    over_what_it_reads.assert_refused(2, &["responses.jsonl holds something else than verdicts"]);
    assert!(fs::read_to_string(site.path("responses.jsonl")).unwrap() == first);

    // The state of these stages is no run's to go on with.
    let run = process::run(llamaduo_run(&site, &service).current_dir(site.root()));
    run.assert_refused(2, &["./.llamaduo is what single stages", "such as ./run"]);
    assert!(!site.path("events.jsonl").exists() && !site.path(".llamaduo/run.json").exists());
}

/// `run` into the site's own directory.
fn llamaduo_run(site: &Site, service: &Service) -> std::process::Command {
    let mut command = llamaduo();
    command.args(["run", "--out", "."]);
    site.configure(&mut command, service.url(), &[]);
    command
}

#[test]
fn an_adapter_is_replaced_by_no_other() {
    let site = Site::new();
    let train = |settings: &[&str]| {
        let words = ["train", "--out", "mine"];
        stage(&site, "http://127.0.0.1:9/v1", &words, settings)
    };
    let trained = train(&[]);
    assert_eq!(trained.code(), 0, "{}", trained.stderr);
    let tensors = || fs::read(site.path("mine/adapter_model.safetensors")).unwrap();
    let before = tensors();
    train(&["train.epochs=1"]).assert_refused(
        2,
        &["mine holds another adapter", "name another directory with --out"],
    );
    assert!(tensors() == before, "it is what it was");
    // The same again is no other, also where a part of it is gone, as after a kill between its two files.
    fs::remove_file(site.path("mine/adapter_config.json")).unwrap();
    let again = train(&[]);
    assert_eq!(again.code(), 0, "{}", again.stderr);
    assert!(again.stderr.contains("reused from .llamaduo"), "{}", again.stderr);
    assert!(site.path("mine/adapter_config.json").is_file() && tensors() == before);
    // Of another origin: not even where the same inputs gave an adapter before.
    fs::write(site.path("mine/adapter_config.json"), "{}").unwrap();
    train(&[]).assert_refused(2, &["mine holds another adapter"]);
    assert_eq!(
        fs::read_to_string(site.path("mine/adapter_config.json")).unwrap(),
        "{}"
    );
}

#[test]
fn what_is_asked_of_a_model_has_a_meaning_or_is_refused_in_words() {
    let site = Site::new();
    let said = |words: &[&str]| process::run(llamaduo().args(words).current_dir(site.root()));
    let generate = |more: &[&str]| said(&[&["generate", "--model", "model"][..], more].concat());
    generate(&["--prompt", " "]).assert_refused(2, &["--prompt holds no text"]);
    site.write("empty.json", r#"[{"role": "user", "content": ""}]"#);
    generate(&["--messages", "empty.json"])
        .assert_refused(2, &["--messages names a conversation without any text"]);
    generate(&["--prompt", "a", "--temperature", "-1"])
        .assert_refused(2, &["error: --temperature is -1; expected 0 or more"]);
    generate(&["--prompt", "a", "--repetition-penalty", "-0.5"])
        .assert_refused(2, &["--repetition-penalty is -0.5; expected a positive number"]);

    let row = |role: &str| format!("{{\"messages\": [{{\"role\": \"{role}\", \"content\": \"word\"}}]}}\n");
    site.write("rows.jsonl", &(row("assistant") + "\n" + &row("user")));
    let eval = |more: &[&str]| said(&[&["eval", "--model", "model"][..], more].concat());
    eval(&["--data", "rows.jsonl"])
        .assert_refused(2, &["rows.jsonl, line 3: ", "no message of the assistant"]);
    site.write("rows.jsonl", &row("assistant"));
    let plain = eval(&["--data", "rows.jsonl"]);
    assert_eq!(plain.code(), 0, "{}", plain.stderr);
    assert!(
        plain.stdout.contains("prompt and template as well as answer"),
        "{}",
        plain.stdout
    );
    assert_eq!(
        eval(&["--data", "rows.jsonl", "--adapter", "none"]).stdout,
        plain.stdout
    );
}

#[test]
fn what_serves_no_next_stage_does_not_end_well() {
    let site = Site::new();
    let mut unreadable = Options::new(0);
    unreadable.faults = FaultRates {
        broken_content: 1.0,
        ..FaultRates::NONE
    };
    let service = Service::start(unreadable);
    assert_eq!(stage(&site, service.url(), &["infer"], &[]).code(), 0);
    for _ in 0..2 {
        let judged = stage(&site, service.url(), &["judge"], &[]);
        assert_eq!(judged.code(), 5, "{}\n{}", judged.stdout, judged.stderr);
        assert!(
            judged
                .stderr
                .contains("none of the judge's 6 replies could be read"),
            "{}",
            judged.stderr
        );
    }
    let verdicts = fs::read_to_string(site.path("verdicts.jsonl")).unwrap();
    assert_eq!(verdicts.matches("unparsed").count(), 6, "{verdicts}");

    let run = process::run(&mut site.run("out", service.url(), &[]));
    assert_eq!(run.code(), 5, "{}\n{}", run.stdout, run.stderr);
    let printed: Value = serde_json::from_str(&run.stdout).unwrap();
    let reason = printed["reason"].as_str().unwrap();
    assert!(reason.contains("none of the judge's 12 replies"), "{reason}");
    assert!(
        !site.path("out/adapter").exists(),
        "nothing was trained for nothing"
    );

    let service = Service::start_reliable();
    let nothing = ["synthesis.curation.prompt_words_min=999"];
    let synthesized = stage(&site, service.url(), &["synth"], &nothing);
    assert_eq!(
        synthesized.code(),
        3,
        "{}\n{}",
        synthesized.stdout,
        synthesized.stderr
    );
    assert!(
        synthesized.stderr.contains("nothing to train on")
            && synthesized.stderr.contains("samples.dropped.jsonl"),
        "{}",
        synthesized.stderr
    );
}
