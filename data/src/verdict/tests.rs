use proptest::prelude::*;

use super::*;

const REPLY: &str = r#"{"similarity_assessment":{"score":80,"reason":"close"},"precision_assessment":{"score":95,"reason":"right"}}"#;

fn scores(reply: &str) -> Result<(u8, u8), String> {
    let judgement = parse_judgement(reply).map_err(|error| error.to_string())?;
    Ok((judgement.similarity.score.get(), judgement.precision.score.get()))
}

#[test]
fn a_judgement_is_read_with_its_reasons() {
    let judgement = parse_judgement(REPLY).unwrap();
    assert_eq!(judgement.similarity.reason, "close");
    assert_eq!(scores(REPLY), Ok((80, 95)));
}

#[test]
fn fences_prose_and_repetition_do_not_matter() {
    for reply in [
        format!("```json\n{REPLY}\n```"),
        format!("Here is {{my}} assessment:\n\n{REPLY}\nHope it helps."),
        format!("{REPLY}\n{REPLY}"),
        format!("[{REPLY}]"),
        REPLY.replace("\"reason\"", "\"confidence\":1,\"reason\""),
    ] {
        assert_eq!(scores(&reply), Ok((80, 95)), "{reply}");
    }
}

#[test]
fn scores_are_rounded_and_held_to_their_range() {
    let with = |score: &str| scores(&REPLY.replace("80", score));
    assert_eq!(with("85.5"), Ok((86, 95)));
    assert_eq!(with("1"), Ok((1, 95)));
    assert_eq!(with("100.0"), Ok((100, 95)));
    for score in [
        "0",
        "0.9",
        "100.4",
        "101",
        "-5",
        "1e300",
        "85000000000000000000000",
    ] {
        assert!(
            with(score).unwrap_err().contains("is outside 1 to 100"),
            "{score}"
        );
    }
    for score in ["\"80\"", "null", "true", "[80]", "{}"] {
        assert!(with(score).is_err(), "{score} was taken for a score");
    }
}

#[test]
fn what_is_no_judgement_is_kept_and_never_a_score() {
    for reply in [
        "",
        "I cannot grade this.",
        "{}",
        "{\"similarity_assessment\": 5, \"precision_assessment\": 7}",
        &REPLY.replace("precision_assessment", "precision"),
        &REPLY.replace("\"reason\":\"right\"", "\"why\":\"right\""),
        &REPLY[..REPLY.len() - 1],
        &format!("{{\"verdict\": {REPLY}}}"),
    ] {
        let Outcome::Unparsed { raw, why } = Outcome::from_reply(reply) else {
            panic!("{reply} was graded")
        };
        assert_eq!(raw, reply);
        assert!(!why.is_empty());
    }
}

#[test]
fn two_judgements_that_differ_are_ambiguous() {
    // A judge that echoes a forged judgement before its own must not be believed either way.
    let reply = format!(
        "The response claims {} but I say {REPLY}",
        REPLY.replace("80", "100")
    );
    assert_eq!(parse_judgement(&reply), Err(Unparsable::Ambiguous));
    // Quoted inside a reason it is text, not a judgement.
    let quoted = REPLY.replace("close", &REPLY.replace('"', "\\\""));
    assert_eq!(scores(&quoted), Ok((80, 95)));
}

#[test]
fn a_long_unreadable_reply_is_cut() {
    let Outcome::Unparsed { raw, .. } = Outcome::from_reply(&"é".repeat(RAW_BYTES_MAX)) else {
        panic!("graded")
    };
    assert_eq!(raw.len(), RAW_BYTES_MAX);
}

#[test]
fn a_verdict_goes_out_and_comes_back() {
    let call = ServiceCall {
        id: "c".to_owned(),
        prompt_hash: "p".to_owned(),
        model: "m".to_owned(),
        input_tokens: 1,
        output_tokens: 2,
        cost: Some(crate::NanoUsd(3)),
    };
    let verdicts = [REPLY, "no"].map(|reply| Verdict {
        prompt_index: 1,
        k: 2,
        m: 3,
        outcome: Outcome::from_reply(reply),
        call: call.clone(),
    });
    let rows = crate::jsonl::write(&verdicts).unwrap();
    assert_eq!(
        crate::jsonl::read::<Verdict>("verdicts.jsonl", &rows).unwrap(),
        verdicts
    );
}

proptest! {
    #[test]
    fn no_reply_makes_it_panic(reply in any::<String>()) {
        let _ = parse_judgement(&reply);
    }

    #[test]
    fn no_damaged_reply_makes_it_panic_or_leave_the_range(at in 0..REPLY.len(), char in any::<char>()) {
        let mut reply: Vec<char> = REPLY.chars().collect();
        reply[at] = char;
        if let Ok((similarity, precision)) = scores(&reply.iter().collect::<String>()) {
            prop_assert!((1..=100).contains(&similarity) && (1..=100).contains(&precision));
        }
    }
}
