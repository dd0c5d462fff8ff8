use super::*;
use crate::sample::{Message, Provenance};

fn breach(rules: &Rules, instruction: &str, response: &str) -> Option<Rule> {
    let turns = vec![
        Message::new(Role::User, instruction),
        Message::new(Role::Assistant, response),
    ];
    let sample = Sample::new(turns, Provenance::Coverage { line: 1 }).unwrap();
    rules.breach(&sample).map(|breach| breach.rule)
}

#[test]
fn each_rule_catches_its_own() {
    let rules = Rules {
        instruction_words_max: 50,
        response_words_max: 50,
        ..Rules::default()
    };
    let cases = [
        ("What is rain?", "Water that falls.", None),
        ("?", "Water.", Some(Rule::InstructionLength)),
        (&"x ".repeat(51), "Water.", Some(Rule::InstructionLength)),
        ("What is rain?", &"é ".repeat(51), Some(Rule::ResponseLength)),
        ("What is rain?", &"é ".repeat(50), None),
        (
            "What is rain?",
            " What is rain? ",
            Some(Rule::ResponseRepeatsInstruction),
        ),
        (
            "Write a program",
            "```rust\nfn main() {}",
            Some(Rule::ResponseTruncated),
        ),
        ("Write a program", "```rust\nfn main() {}\n```", None),
        (
            "List some rivers",
            "Here they are:",
            Some(Rule::ResponseTruncated),
        ),
        (
            "What is rain?",
            "As an AI language model, I",
            Some(Rule::ResponseBannedPrefix),
        ),
    ];
    for (instruction, response, rule) in cases {
        assert_eq!(
            breach(&rules, instruction, response),
            rule,
            "{instruction} / {response}"
        );
    }
}

#[test]
fn a_form_can_be_asked_for() {
    let toml = r#"
        response_form = { kind = "json_object", required_keys = ["team"], allowed_values = { team = ["billing", "it"] } }
    "#;
    let rules: Rules = toml::from_str(toml).unwrap();
    for (response, rule) in [
        (r#"{"team": "it", "note": 3}"#, None),
        (r#"{"team": "moon"}"#, Some(Rule::ResponseForm)),
        (r#"{"note": 3}"#, Some(Rule::ResponseForm)),
        (r#"["team"]"#, Some(Rule::ResponseForm)),
        (r#"{"team": "it"} done"#, Some(Rule::ResponseForm)),
    ] {
        assert_eq!(breach(&rules, "Which team is it?", response), rule, "{response}");
    }
}

#[test]
fn an_unknown_knob_is_refused() {
    assert!(toml::from_str::<Rules>("response_chars = 3").is_err());
}
