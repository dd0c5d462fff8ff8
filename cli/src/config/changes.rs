//! The settings a run was given, kept beside it, and what another command would change in them.
//!
//! Invariant: a key is named as it stands in `llamaduo.toml`, and a value shown as one would write it there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Config;

/// Changes shown at once: more of them say no more.
const SHOWN_MAX: usize = 8;

/// What a run's config came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Every key with its value, `--set` and defaults included.
    config: Value,
    /// The `--set` options, as they were given.
    set: Vec<String>,
}

impl Settings {
    /// Those of `config`, the result of a file and `set`.
    pub(crate) fn new(config: &Config, set: Vec<String>) -> Self {
        Self {
            config: plain(config),
            set,
        }
    }

    /// With the `--set` options that led to them.
    pub(crate) fn with_set(self, set: Vec<String>) -> Self {
        Self { set, ..self }
    }

    /// The `--set` options, as they were given.
    pub(crate) fn set(&self) -> &[String] {
        &self.set
    }
}

/// The `--set` options of `then` that those `given` now leave as they were.
pub(crate) fn kept<'a>(then: &'a [String], given: &[String]) -> Vec<&'a str> {
    let kept = then.iter().filter(|old| !names(given, key_of(old)));
    kept.map(String::as_str).collect()
}

/// A value as the file would hold it: what was a 32-bit number shows no digits beyond those.
pub(crate) fn plain(value: &impl Serialize) -> Value {
    // Plain structs always serialize; nothing to show would only make a message shorter.
    let text = serde_json::to_string(value).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn key_of(set: &str) -> &str {
    set.split_once('=').map_or(set, |(key, _)| key).trim()
}

fn names(sets: &[String], key: &str) -> bool {
    sets.iter().any(|set| key_of(set) == key)
}

/// What would make the run with the specification `old` another one, for people: each line one change.
pub(crate) fn describe(
    old: Option<&Settings>,
    new: &Settings,
    old_spec: &Value,
    new_spec: &Value,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut told: Vec<String> = Vec::new();
    let mut back: Vec<String> = Vec::new();
    if let Some(old) = old {
        let (before, after) = (leaves(&old.config), leaves(&new.config));
        for (key, value) in &before {
            let now = after.get(key).unwrap_or(&Value::Null);
            if value != now && decides(key, &old.config) {
                lines.push(format!("{key} was {}, is {}", shown(value), shown(now)));
                told.push(key.clone());
            }
        }
    }
    // What no key shows: the words in the files that keys name.
    let (before, after) = (leaves(old_spec), leaves(new_spec));
    for (path, value) in &before {
        let now = after.get(path).unwrap_or(&Value::Null);
        if value == now {
            continue;
        }
        let file = match path.as_str() {
            path if path.starts_with("coverage.") => "data.coverage",
            "judge.prompt" => "judge.prompt",
            "synthesis.prompt" => "synthesis.prompt",
            _ if old.is_some() && !told.is_empty() => continue,
            path => {
                let key = key_of_spec(path);
                let (was, is) = (in_config(key, value), in_config(key, now));
                lines.push(format!("{key} was {}, is {}", shown(&was), shown(&is)));
                if !was.is_null() {
                    back.push(format!("--set {key}={}", bare(&was)));
                }
                continue;
            }
        };
        let section = if file == "data.coverage" { "data." } else { file };
        if !told.iter().any(|key| key.starts_with(section)) {
            lines.push(format!("the rows or words in the file of {file} are others"));
            told.push(file.to_owned());
        }
    }
    let n_more = lines.len().saturating_sub(SHOWN_MAX);
    lines.truncate(SHOWN_MAX);
    if n_more > 0 {
        lines.push(format!("and {n_more} more"));
    }
    if !back.is_empty() && n_more == 0 {
        lines.push(format!("as it was: {}", back.join(" ")));
    }
    if let Some(old) = old {
        let lacking = kept(&old.set, &new.set).into_iter();
        let lacking: Vec<String> = lacking
            .filter(|set| told.iter().any(|key| key == key_of(set)))
            .map(|set| format!("--set {set}"))
            .collect();
        if !lacking.is_empty() {
            lines.push(format!(
                "it was begun with {}: give that again, or --resume, which remembers it",
                lacking.join(" ")
            ));
        }
    }
    lines
}

/// Whether a key makes a run what it is. Limits, the ways to the service LLMs and what is only compared do not.
fn decides(key: &str, config: &Value) -> bool {
    match key.split_once('.') {
        Some(("budget", _)) | Some(("run", "cycles_max")) => false,
        Some(("service", leaf)) => matches!(leaf, "vendor" | "model"),
        Some(("judge", leaf)) => {
            matches!(leaf, "vendor" | "model" | "gradings_per_response" | "prompt")
        }
        Some(("gate", "ratio_min")) => config["gate"]["rule"] == "relative",
        Some(("gate", "similarity_mean_min" | "precision_mean_min" | "coverage_min")) => {
            config["gate"]["rule"] == "absolute"
        }
        _ => true,
    }
}

/// What the config calls the value at `path` of a run's specification.
fn key_of_spec(path: &str) -> &str {
    match path {
        "name" => "task.name",
        "topic" => "task.topic",
        "local_model.reference" => "local.base",
        "local_model.quantization" => "local.quant",
        "local_model.compute" => "local.compute",
        "service_llm.vendor" => "service.vendor",
        "service_llm.model" => "service.model",
        "judge_llm.vendor" => "judge.vendor",
        "judge_llm.model" => "judge.model",
        "train.sequence_tokens_max" => "train.sequence_tokens",
        "infer.tokens_max" => "infer.max_tokens",
        "infer.batch_max" => "infer.batch",
        "gate.rule.relative.ratio_min" => "gate.ratio_min",
        "gate.rule.absolute.similarity_mean_min" => "gate.similarity_mean_min",
        "gate.rule.absolute.precision_mean_min" => "gate.precision_mean_min",
        "gate.rule.absolute.coverage_min" => "gate.coverage_min",
        "budget.calls_max" => "budget.max_calls",
        "budget.nano_usd_max" => "budget.max_usd",
        "cycles_max" => "run.cycles_max",
        "seed" => "run.seed",
        "measure_base_unquantized" => "run.measure_base_unquantized",
        path => path,
    }
}

/// A value of a specification as the config spells it.
fn in_config(key: &str, value: &Value) -> Value {
    match (key, value.as_str()) {
        ("local.quant", Some("nf4_double")) => "nf4".into(),
        ("local.quant", Some("nf4")) => "nf4_single".into(),
        ("budget.max_usd", _) => match value.as_u64() {
            Some(nano_usd) => (nano_usd as f64 / 1e9).into(),
            None => Value::Null,
        },
        ("train.gradient_norm_max", None) if value.is_null() => 0.into(),
        _ => value.clone(),
    }
}

/// As `--set` takes it.
fn bare(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains([' ', '\'', '"', '$']) => format!("'{text}'"),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".to_owned(),
        value => value.to_string(),
    }
}

/// Every value that is no section, by its dotted path.
fn leaves(value: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    collect("", value, &mut found);
    found
}

fn collect(path: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(&path, inner, found);
            }
        }
        value => {
            found.insert(path.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn settings(set: &[&str]) -> Settings {
        let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        let config = parse("llamaduo.toml", "service.model = \"m\"", &set).unwrap();
        Settings::new(&config, set)
    }

    fn described(old: &[&str], new: &[&str]) -> Vec<String> {
        describe(Some(&settings(old)), &settings(new), &Value::Null, &Value::Null)
    }

    #[test]
    fn changes_read_as_the_file_would() {
        assert_eq!(
            described(
                &[],
                &[
                    "train.lora_dropout=0.2",
                    "train.checkpoint_steps=7",
                    "service.model=n",
                    "synthesis.curation.response_json=true",
                ]
            ),
            [
                "service.model was \"m\", is \"n\"",
                "synthesis.curation.response_json was false, is true",
                "train.checkpoint_steps was not set, is 7",
                "train.lora_dropout was 0.05, is 0.2",
            ]
        );
    }

    #[test]
    fn options_that_are_missing_now_are_named() {
        let lines = described(&["train.epochs=2", "train.batch_rows=1"], &["train.batch_rows=1"]);
        assert_eq!(
            lines,
            [
                "train.epochs was 2.0, is 1.0",
                "it was begun with --set train.epochs=2: give that again, or --resume, which remembers it"
            ]
        );
    }

    #[test]
    fn what_may_change_is_no_change() {
        let new = [
            "budget.max_calls=7",
            "run.cycles_max=9",
            "service.base_url=http://127.0.0.1:2/v1",
            "judge.concurrency=9",
            "gate.coverage_min=0.5",
        ];
        assert_eq!(described(&[], &new), [""; 0]);
    }

    #[test]
    fn options_are_remembered_and_may_be_given_anew() {
        let then = settings(&["train.epochs=2", "budget.max_calls=5"]);
        let given = ["budget.max_calls=9".to_owned()];
        assert_eq!(kept(then.set(), &given), ["train.epochs=2"]);
    }

    #[test]
    fn files_with_other_words_are_named_by_their_key() {
        let spec = |train: &str| serde_json::json!({"coverage": {"train": train, "test": train}});
        let (old, new) = (settings(&[]), settings(&[]));
        assert_eq!(
            describe(Some(&old), &new, &spec("a"), &spec("b")),
            ["the rows or words in the file of data.coverage are others"]
        );
        let moved = settings(&["data.seed=5"]);
        assert_eq!(
            describe(Some(&old), &moved, &spec("a"), &spec("b")),
            ["data.seed was 0, is 5"]
        );
    }

    #[test]
    fn a_specification_alone_is_told_in_the_words_of_the_config() {
        let spec = |tokens: u32, quantization: &str| {
            serde_json::json!({
                "infer": {"tokens_max": tokens},
                "local_model": {"quantization": quantization},
                "topic": "to the point",
            })
        };
        assert_eq!(
            describe(None, &settings(&[]), &spec(32, "nf4_double"), &spec(64, "none")),
            [
                "infer.max_tokens was 32, is 64",
                "local.quant was \"nf4\", is \"none\"",
                "as it was: --set infer.max_tokens=32 --set local.quant=nf4",
            ]
        );
        assert_eq!(bare(&"to the point".into()), "'to the point'");
        let budget = |nano_usd: u64| serde_json::json!({"budget": {"nano_usd_max": nano_usd}});
        assert_eq!(
            describe(
                None,
                &settings(&[]),
                &budget(2_500_000_000),
                &budget(3_000_000_000)
            ),
            [
                "budget.max_usd was 2.5, is 3.0",
                "as it was: --set budget.max_usd=2.5",
            ]
        );
    }

    /// Whatever a specification holds is called as the config calls it, also what is added to it later.
    #[test]
    fn each_value_of_a_specification_has_a_key() {
        let site = tempfile::tempdir().unwrap();
        let rows = (0..9).map(|n| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"q{n}\"}},{{\"role\":\"assistant\",\"content\":\"a{n}\"}}]}}\n"
            )
        });
        std::fs::write(site.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
        for rule in ["relative", "absolute"] {
            let text = format!(
                "[service]\nmodel = \"m\"\n[data]\ncoverage = \"rows.jsonl\"\ntest_count = 4\n[gate]\nrule = \"{rule}\"\n"
            );
            let config = parse("llamaduo.toml", &text, &[]).unwrap();
            let plan = crate::config::plan::plan(&config, site.path()).unwrap();
            let known = crate::config::known_keys();
            for path in leaves(&plain(&plan.spec)).keys() {
                let may_differ = |prefix: &str| path.starts_with(prefix);
                if ["service_llm.", "judge_llm.", "coverage.", "gate.compared"]
                    .into_iter()
                    .any(may_differ)
                {
                    continue;
                }
                let key = key_of_spec(path);
                assert!(known.iter().any(|known| known == key), "{path} has no key");
            }
        }
    }
}
