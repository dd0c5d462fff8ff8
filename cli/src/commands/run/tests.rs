use crate::config;

use super::*;

fn spec(more: &[&str]) -> RunSpec {
    plan(more).spec
}

fn plan(more: &[&str]) -> Plan {
    let directory = tempfile::tempdir().unwrap();
    let rows: String = (0..10)
        .map(|i| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"question {i}\"}},\
                 {{\"role\":\"assistant\",\"content\":\"answer\"}}]}}\n"
            )
        })
        .collect();
    std::fs::write(directory.path().join("coverage.jsonl"), rows).unwrap();
    let text = "service.model = \"m\"\nservice.base_url = \"http://127.0.0.1:1/v1\"\ndata.coverage = \"coverage.jsonl\"\n";
    let sets: Vec<String> = more.iter().map(|set| (*set).to_owned()).collect();
    let config = config::parse("llamaduo.toml", text, &sets).unwrap();
    config::plan::plan(&config, directory.path()).unwrap()
}

/// A run as it was begun with `more`.
fn record(more: &[&str]) -> RunRecord {
    let plan = plan(more);
    RunRecord {
        request: request_id(&plan.spec).unwrap(),
        cycles_max: Some(plan.spec.cycles_max),
        spec: plan.spec,
        run: None,
        settings: Some(plan.settings),
    }
}

#[test]
fn limits_and_the_way_to_the_service_may_change() {
    let stored = record(&[]);
    for change in [
        "budget.max_calls=7",
        "run.cycles_max=9",
        "service.base_url=http://127.0.0.1:2/v1",
        "judge.concurrency=9",
    ] {
        refuse_other_run(&stored, &plan(&[change]), Path::new("out")).unwrap();
    }
}

#[test]
fn anything_else_is_another_run() {
    let stored = record(&[]);
    for (change, path) in [
        ("train.epochs=2", "train.epochs was 1.0, is 2.0"),
        (
            "train.learning_rate=0.1",
            "train.learning_rate was 0.0002, is 0.1",
        ),
        ("service.model=n", "service.model was \"m\", is \"n\""),
        ("infer.max_tokens=7", "infer.max_tokens was 512, is 7"),
        ("data.seed=5", "data.seed was 0, is 5"),
        ("run.seed=5", "run.seed was 0, is 5"),
    ] {
        let message = refuse_other_run(&stored, &plan(&[change]), Path::new("out"))
            .unwrap_err()
            .to_string();
        assert!(message.contains(path) && message.contains("--out"), "{message}");
    }
}

#[test]
fn the_same_specification_is_the_same_submission() {
    assert_eq!(request_id(&spec(&[])).unwrap(), request_id(&spec(&[])).unwrap());
    assert_ne!(
        request_id(&spec(&[])).unwrap(),
        request_id(&spec(&["run.seed=1"])).unwrap()
    );
}

#[test]
fn a_run_that_ended_says_why_and_what_can_be_done() {
    let words = |gone_on, began| ended_before(gone_on, 2, began);
    assert_eq!(words(GoneOn::Resumed, Began::ByRun), None);
    assert_eq!(words(GoneOn::RunsAlready, Began::ByRun), None);
    let passed = words(GoneOn::Passed, Began::ByRun).unwrap();
    assert!(
        passed.contains("passed its gate") && passed.contains("--out"),
        "{passed}"
    );
    let used = words(GoneOn::CyclesUsed, Began::ByRun).unwrap();
    assert!(
        used.contains("all its 2 cycles") && used.contains("--resume --set run.cycles_max=3"),
        "{used}"
    );
    let nothing = words(GoneOn::NothingNew, Began::ByRun).unwrap();
    assert!(
        nothing.contains("[synthesis]") && !nothing.contains("cycles_max"),
        "{nothing}"
    );
    for gone_on in [GoneOn::Passed, GoneOn::CyclesUsed, GoneOn::NothingNew] {
        let demo = words(gone_on, Began::ByDemo).unwrap();
        assert!(demo.contains("--seed") && !demo.contains("--set"), "{demo}");
    }
}

#[test]
fn fewer_cycles_are_refused_in_words_that_hold_on_this_machine() {
    let stored = record(&["run.cycles_max=4"]);
    refuse_fewer_cycles(&stored, &plan(&["run.cycles_max=4"]), Path::new("out")).unwrap();
    let fewer = refuse_fewer_cycles(&stored, &plan(&["run.cycles_max=1"]), Path::new("out"));
    let said = fewer.unwrap_err().to_string();
    for word in [
        "may use 4 cycles",
        "run.cycles_max is 1 now",
        "out/cycles/N/adapter",
        "llamaduo report out",
    ] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("llamaduo cancel"), "{said}");
}
