use super::*;

fn turns(roles: &[(Role, &str)]) -> Vec<Message> {
    roles
        .iter()
        .map(|(role, content)| Message::new(*role, *content))
        .collect()
}

fn sample(roles: &[(Role, &str)]) -> Result<Sample, InvalidSample> {
    Sample::new(turns(roles), Provenance::Coverage { line: 1 })
}

use Role::{Assistant, System, User};

#[test]
fn the_id_is_the_sha256_of_the_messages_as_json() {
    let sample = sample(&[(User, "say \"hé\"\n"), (Assistant, "hé")]).unwrap();
    let json = serde_json::to_vec(sample.messages()).unwrap();
    let expected: [u8; 32] = Sha256::digest(&json).into();
    assert_eq!(sample.id(), SampleId(expected));
    assert_eq!(sample.id().to_string().parse(), Ok(sample.id()));
}

#[test]
fn prompt_and_response_are_told_apart() {
    let sample = sample(&[
        (System, "Be brief."),
        (User, "Hi"),
        (Assistant, "Yes?"),
        (User, "Bye"),
        (Assistant, "Bye"),
    ]);
    let sample = sample.unwrap();
    assert_eq!(sample.prompt().len(), 4);
    assert_eq!(sample.response(), "Bye");
    assert_eq!(sample.instruction(), "user: Hi\n\nassistant: Yes?\n\nuser: Bye");
    assert_eq!(sample.system(), Some("Be brief."));
    assert!(sample.prompt_text().starts_with("Be brief.\n\nuser: Hi"));
}

#[test]
fn a_single_question_is_its_own_instruction() {
    let sample = sample(&[(System, "Be brief."), (User, "Hi"), (Assistant, "Hello")]).unwrap();
    assert_eq!(sample.instruction(), "Hi");
}

#[test]
fn turns_out_of_order_are_refused_by_name() {
    let cases: [(&[(Role, &str)], &str); 8] = [
        (&[], "the list of messages is empty"),
        (
            &[(User, "Hi")],
            "the last message is from user, not from the assistant",
        ),
        (
            &[(System, "Hi")],
            "the last message is from system, not from the assistant",
        ),
        (
            &[(Assistant, "Hi")],
            "message 1 is from assistant where user must speak",
        ),
        (
            &[(System, "Hi"), (Assistant, "Hi")],
            "message 2 is from assistant where user must speak",
        ),
        (
            &[(User, "a"), (User, "b"), (Assistant, "c")],
            "message 2 is from user where assistant must speak",
        ),
        (
            &[(User, "a"), (System, "b"), (Assistant, "c")],
            "message 2 is from system where assistant must speak",
        ),
        (
            &[(User, "a"), (Assistant, " \n")],
            "message 2 (assistant) has empty content",
        ),
    ];
    for (roles, message) in cases {
        assert_eq!(sample(roles).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_row_goes_out_and_comes_back() {
    let call = ServiceCall {
        id: "c1".to_owned(),
        prompt_hash: "p1".to_owned(),
        model: "m".to_owned(),
        input_tokens: 10,
        output_tokens: 20,
        cost: None,
    };
    let parent = sample(&[(User, "a"), (Assistant, "b")]).unwrap();
    let provenance = Provenance::Synthetic {
        parents: vec![parent.id()],
        call,
    };
    let sample = Sample::new(turns(&[(User, "c"), (Assistant, "d")]), provenance).unwrap();
    let rows = crate::jsonl::write(&[parent.clone(), sample.clone()]).unwrap();
    assert_eq!(
        crate::jsonl::read::<Sample>("rows", &rows).unwrap(),
        [parent, sample]
    );
}

#[test]
fn a_row_whose_words_were_changed_is_refused() {
    let sample = sample(&[(User, "a"), (Assistant, "b")]).unwrap();
    let row = crate::jsonl::write(&[sample]).unwrap().replace("\"b\"", "\"x\"");
    let error = crate::jsonl::read::<Sample>("train.jsonl", &row)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("train.jsonl, line 1: the id is not the sha256"),
        "{error}"
    );
}

#[test]
fn ids_are_64_digits() {
    let signed = "+1".repeat(32);
    let wide = "é".repeat(32);
    for text in ["", "ab", &signed, &wide, &"g".repeat(64)] {
        assert_eq!(text.parse::<SampleId>(), Err(InvalidSample::Id), "{text}");
    }
}
