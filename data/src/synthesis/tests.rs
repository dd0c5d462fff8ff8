use proptest::prelude::*;

use super::*;

fn call() -> ServiceCall {
    ServiceCall {
        id: "c".to_owned(),
        prompt_hash: "p".to_owned(),
        model: "m".to_owned(),
        input_tokens: 1,
        output_tokens: 2,
        cost: None,
    }
}

/// "instruction>response" of each sample and "!why" of each malformed item.
fn read(reply: &str) -> Vec<String> {
    candidates(reply, None, &[], &call())
        .into_iter()
        .map(|candidate| match candidate {
            Candidate::Sample(sample) => format!("{}>{}", sample.instruction(), sample.response()),
            Candidate::Malformed(malformed) => format!("!{}", malformed.why),
        })
        .collect()
}

#[test]
fn every_item_becomes_one_candidate() {
    let reply = r#"Sure: ```{"contents": [
        {"instruction": " a ", "response": "b", "note": 1},
        {"instruction": "c"}, 7, {"instruction": "d", "response": {"team": "x"}}, {"instruction": "", "response": "e"},
        {"instruction": "f", "response": "{\"g\": [\"]\"]}"}]}```"#;
    assert_eq!(
        read(reply),
        [
            "a>b",
            "!the item has no \"response\"",
            "!the item has no \"instruction\"",
            "!\"response\" is not a text",
            "!message 1 (user) has empty content",
            "f>{\"g\": [\"]\"]}",
        ]
    );
}

#[test]
fn a_reply_that_breaks_off_keeps_what_came_before() {
    let whole = r#"{"contents":[{"instruction":"a","response":"b"},{"instruction":"c","response":"d"}]}"#;
    let cut = read(&whole[..whole.len() - 12]);
    assert_eq!(cut[0], "a>b");
    assert!(cut[1].starts_with("!the reply breaks off"), "{cut:?}");
    assert_eq!(
        read(&whole[..whole.len() - 2]),
        ["a>b", "c>d", "!the reply breaks off before its list ends"]
    );
    assert_eq!(
        read("I'm sorry."),
        ["!the reply holds no list named \"contents\""]
    );
    assert_eq!(read(r#"{"contents": []}"#), Vec::<String>::new());
}

#[test]
fn samples_carry_the_system_turn_and_where_they_came_from() {
    let reply = r#"{"contents":[{"instruction":"a","response":"b"}]}"#;
    let parent: SampleId = "ab".repeat(32).parse().unwrap();
    let candidates = candidates(reply, Some("Answer in JSON."), &[parent], &call());
    let [Candidate::Sample(sample)] = candidates.as_slice() else {
        panic!("{candidates:?}")
    };
    assert_eq!(sample.system(), Some("Answer in JSON."));
    assert_eq!(
        sample.provenance(),
        &Provenance::Synthetic {
            parents: vec![parent],
            call: call()
        }
    );
}

#[test]
fn a_runaway_reply_is_cut() {
    let item = r#"{"instruction":"a","response":"b"},"#;
    let reply = format!("{{\"contents\":[{}", item.repeat(ITEMS_MAX + 500));
    let read = read(&reply);
    assert_eq!(read.len(), ITEMS_MAX + 1);
    assert!(read[ITEMS_MAX].contains("more than 1000 items"));
}

proptest! {
    #[test]
    fn no_reply_makes_it_panic(tail in any::<String>()) {
        read(&tail);
        read(&format!("{{\"contents\":[{tail}"));
    }
}
