use std::path::Path;

use llamaduo_proto::run::{ApiKeySource, GateRule, Quantization};

use super::plan::{self, plan};
use super::*;

const MINIMAL: &str = "service.model = \"m\"\ndata.coverage = \"coverage.jsonl\"\n";

fn sets(sets: &[&str]) -> Vec<String> {
    sets.iter().map(|set| (*set).to_owned()).collect()
}

fn refusal(text: &str) -> String {
    parse("llamaduo.toml", text, &[]).unwrap_err().to_string()
}

#[test]
fn unknown_keys_suggest_the_nearest() {
    let cases = [
        (
            "[train]\nepoch = 1",
            "`train.epoch`",
            "did you mean `train.epochs`?",
        ),
        ("[trian]\nepochs = 1", "`trian`", "did you mean `train`?"),
        (
            "[run]\nmax_cycles = 3",
            "`run.max_cycles`",
            "did you mean `run.cycles_max`?",
        ),
        (
            "[train]\ncycles_max = 3",
            "`train.cycles_max`",
            "did you mean `run.cycles_max`?",
        ),
        (
            "[service]\nmodle = \"m\"",
            "`service.modle`",
            "did you mean `service.model`?",
        ),
        (
            "[judge]\nmodle = \"m\"",
            "`judge.modle`",
            "did you mean `judge.model`?",
        ),
        (
            "[synthesis.curation]\nnovelty_rogue_l = 1",
            "novelty_rogue_l",
            "`synthesis.curation.novelty_rouge_l`?",
        ),
        ("[gate]\nqqqqqqqq = 1", "`gate.qqqqqqqq`", "known here: "),
    ];
    for (text, key, hint) in cases {
        let message = refusal(text);
        assert!(
            message.contains(key) && message.contains(hint),
            "{text:?} gave {message:?}"
        );
    }
}

#[test]
fn a_wrong_type_names_its_line() {
    let message = refusal("[train]\nepochs = 1\nlora_rank = \"eight\"\n");
    assert!(message.contains("line 3"), "{message}");
    let message = refusal("[train\n");
    assert!(message.contains("line 1"), "{message}");
}

#[test]
fn secrets_are_refused_and_not_repeated() {
    for text in [
        "[service]\napi_key = \"sk-canary\"",
        "[judge]\napi_key_env = \"sk-canary\"",
        "api_key = \"sk-canary\"",
    ] {
        let message = refusal(text);
        assert!(
            message.contains("api_key_file") && !message.contains("canary"),
            "{message}"
        );
    }
    let error = parse("llamaduo.toml", "", &sets(&["service.api_key_env=sk-canary"])).unwrap_err();
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[test]
fn overrides_are_typed_by_their_key() {
    let config = parse(
        "llamaduo.toml",
        "[train]\nepochs = 1\nlora_rank = 4\n",
        &sets(&[
            "train.epochs=2.5",
            "service.model=4",
            "local.base=./model",
            "train.packing=false",
            "infer.top_p=0.9",
            "infer.stop=[\"###\", \"END\"]",
        ]),
    )
    .unwrap();
    assert_eq!(config.train.epochs, 2.5);
    assert_eq!(config.train.lora_rank, 4);
    assert_eq!(config.service.model.as_deref(), Some("4"));
    assert_eq!(config.local.base, "./model");
    assert!(!config.train.packing);
    assert_eq!(config.infer.top_p, Some(0.9));
    assert_eq!(config.infer.stop, ["###", "END"]);
}

#[test]
fn bad_overrides_are_refused() {
    for (set, expected) in [
        ("train.epochs", "expected a.b=c"),
        ("train.epoch=2", "did you mean `train.epochs`?"),
        ("train.lora_rank=many", "train.lora_rank"),
        ("train=2", "is a section"),
        ("..=2", "expected a.b=c"),
    ] {
        let message = parse("llamaduo.toml", "", &sets(&[set])).unwrap_err().to_string();
        assert!(message.contains(expected), "{set:?} gave {message:?}");
    }
}

#[test]
fn defaults_are_as_promised() {
    let config = parse("llamaduo.toml", "", &[]).unwrap();
    expect_test::expect_file!["tests/defaults.toml"].assert_eq(&toml::to_string(&config).unwrap());
}

/// A directory with `n` coverage pairs in `coverage.jsonl`.
fn coverage(n: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let rows: String = (0..n)
        .map(|i| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"question {i}\"}},\
                 {{\"role\":\"assistant\",\"content\":\"answer {i}\"}}]}}\n"
            )
        })
        .collect();
    std::fs::write(directory.path().join("coverage.jsonl"), rows).unwrap();
    directory
}

fn planned(directory: &Path, more: &[&str]) -> Result<plan::Plan, Error> {
    plan(&parse("llamaduo.toml", MINIMAL, &sets(more)).unwrap(), directory)
}

#[test]
fn a_plan_splits_and_names_its_artifacts() {
    let directory = coverage(10);
    let plan = planned(directory.path(), &["data.test_count=3"]).unwrap();
    assert_eq!((plan.spec.coverage.n_train, plan.spec.coverage.n_test), (7, 3));
    let digests: Vec<_> = plan.uploads.iter().map(|upload| upload.digest).collect();
    assert_eq!(digests, [plan.spec.coverage.train, plan.spec.coverage.test]);
    assert_eq!(plan.spec.local_model.quantization, Quantization::Nf4Double);
    assert_eq!(plan.spec.gate.rule, GateRule::Relative { ratio_min: 0.9 });
    let again = planned(directory.path(), &["data.test_count=3"]).unwrap();
    assert_eq!(plan.spec, again.spec);
}

#[test]
fn what_would_fail_later_fails_before_anything_is_spent() {
    let directory = coverage(10);
    let cases: [(&[&str], &str); 17] = [
        (&["data.test_count=0"], "`data.test_count` is 0"),
        (&["data.test_count=90"], "set it to less than the 10 pairs"),
        (
            &["data.test_ratio=0.01"],
            "`data.test_ratio` is 0.01, which cannot be had of coverage.jsonl; set it higher",
        ),
        (&["data.test_ratio=1.5"], "set it to a number above 0 and below 1"),
        (
            &["data.test_count=1"],
            "`data.test_count` is 1; expected at least 2",
        ),
        (&["gate.coverage_min=2"], "`gate.coverage_min`"),
        (&["synthesis.curation.novelty_rouge_l=3"], "at most 2"),
        (&["data.coverage=missing.jsonl"], "coverage dataset"),
        (&["data.test_count=3", "data.test_ratio=0.5"], "data.test_ratio"),
        (&["service.model="], "`service.model` is missing"),
        (&["budget.max_usd=1"], "service.input_usd_per_mtok"),
        (&["train.learning_rate=0"], "`train.learning_rate`"),
        (&["train.learning_rate=nan"], "`train.learning_rate`"),
        (&["gate.ratio_min=2"], "`gate.ratio_min`"),
        (&["run.cycles_max=0"], "`run.cycles_max`"),
        (&["judge.prompt=missing.toml"], "missing.toml"),
        (&["service.base_url=ftp://x"], "`service.base_url`"),
    ];
    for (more, expected) in cases {
        let message = planned(directory.path(), more).unwrap_err().to_string();
        assert!(message.contains(expected), "{more:?} gave {message:?}");
    }
}

#[test]
fn a_malformed_line_names_file_and_line() {
    let directory = coverage(3);
    let path = directory.path().join("coverage.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"messages\": 5}\n");
    std::fs::write(&path, text).unwrap();
    let error = planned(directory.path(), &[]).unwrap_err();
    let message = crate::output::describe(&error);
    assert!(message.contains("coverage.jsonl, line 4"), "{message}");
}

#[test]
fn the_judge_inherits_the_service_but_no_foreign_key_or_price() {
    let directory = coverage(10);
    let service = [
        "service.api_key_env=KEY",
        "service.base_url=https://one.example/v1",
        "service.input_usd_per_mtok=1",
        "service.output_usd_per_mtok=2",
    ];
    let plan = planned(directory.path(), &service).unwrap();
    assert_eq!(plan.spec.judge_llm, plan.spec.service_llm);
    let mut other = service.to_vec();
    other.extend(["judge.base_url=https://two.example/v1", "judge.model=n"]);
    let plan = planned(directory.path(), &other).unwrap();
    assert_eq!(plan.spec.service_llm.api_key, ApiKeySource::Env("KEY".to_owned()));
    assert_eq!(plan.spec.judge_llm.api_key, ApiKeySource::None);
    assert_eq!(plan.spec.judge_llm.usd_per_mtok, None);
    assert_eq!(plan.spec.service_llm.usd_per_mtok, Some((1.0, 2.0)));
}

#[test]
fn a_key_goes_in_clear_only_to_this_machine() {
    let directory = coverage(10);
    for (url, key, allowed) in [
        ("http://127.0.0.1:1/v1", true, true),
        ("http://localhost:1/v1", true, true),
        ("http://[::1]:1/v1", true, true),
        ("http://10.0.0.1:1/v1", false, true),
        ("http://10.0.0.1:1/v1", true, false),
        ("http://127.0.0.1.example.com/v1", true, false),
        ("https://user:word@api.example.com/v1", true, false),
        ("https://api.example.com/v1", true, true),
    ] {
        let url_set = format!("service.base_url={url}");
        let mut more = vec![url_set.as_str()];
        if key {
            more.push("service.api_key_env=KEY");
        }
        assert_eq!(
            planned(directory.path(), &more).is_ok(),
            allowed,
            "{url} with key {key}"
        );
    }
}

#[test]
fn too_few_test_prompts_for_the_gate_are_said() {
    let directory = coverage(60);
    let notes = |more: &[&str]| planned(directory.path(), more).unwrap().notes.join("\n");
    assert!(
        notes(&["data.test_count=10"]).contains("at least 35"),
        "{}",
        notes(&["data.test_count=10"])
    );
    assert!(!notes(&["data.test_count=35"]).contains("note:"));
    let lower = ["data.test_count=10", "gate.ratio_min=0.5"];
    assert!(notes(&lower).contains("wide intervals"));
    planned(directory.path(), &["data.test_count=1", "gate.rule=absolute"]).unwrap();
}

#[test]
fn errors_name_the_section_that_the_value_is_in() {
    let directory = coverage(10);
    for (more, expected) in [
        (&["judge.max_tokens=0"][..], "`judge.max_tokens`"),
        (&["service.max_tokens=0"], "`service.max_tokens`"),
        (&["judge.base_url=ftp://x"], "`judge.base_url`"),
        (
            &["judge.api_key_env=A", "judge.api_key_file=b"],
            "set together with judge.api_key_env",
        ),
        (
            &[
                "budget.max_usd=1",
                "service.input_usd_per_mtok=1",
                "service.output_usd_per_mtok=1",
                "judge.model=n",
            ],
            "`judge.input_usd_per_mtok`",
        ),
    ] {
        let message = planned(directory.path(), more).unwrap_err().to_string();
        assert!(message.contains(expected), "{more:?} gave {message:?}");
    }
}

#[test]
fn a_password_in_an_address_is_not_repeated() {
    let directory = coverage(10);
    for url in [
        "https://user:canary@api.example.com/v1",
        "ftp://user:ca@nary@x",
        "user:canary@x",
    ] {
        let message = planned(directory.path(), &[&format!("service.base_url={url}")])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("service.base_url") && !message.contains("nary"),
            "{message}"
        );
    }
}

#[test]
fn a_key_file_lies_beside_the_config() {
    let directory = coverage(10);
    let mut spec = planned(directory.path(), &["service.api_key_file=keys/key"])
        .unwrap()
        .spec
        .service_llm;
    service::key_beside_config(&mut spec, directory.path());
    let expected = directory.path().join("keys/key").display().to_string();
    assert_eq!(spec.api_key, ApiKeySource::File(expected.clone()));
    service::key_beside_config(&mut spec, Path::new("elsewhere"));
    assert_eq!(
        spec.api_key,
        ApiKeySource::File(expected),
        "an absolute path stays"
    );
}
