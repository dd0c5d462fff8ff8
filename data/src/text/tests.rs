use proptest::prelude::*;

use super::*;

#[test]
fn objects_are_found_in_prose_and_fences() {
    let text = "Sure! ```json\n{\"a\": {\"b\": 1}}\n``` and {not json} {\"c\": \"}{\"} {\"cut\": ";
    let objects = json_objects(text);
    assert_eq!(
        objects,
        [serde_json::json!({"a": {"b": 1}}), serde_json::json!({"c": "}{"})]
    );
}

#[test]
fn a_text_of_braces_takes_no_time() {
    assert!(json_objects(&"{\"a\":".repeat(1_000_000)).is_empty());
    assert!(json_objects(&"{".repeat(1_000_000)).is_empty());
}

#[test]
fn words_are_lower_case_runs_of_letters_and_digits() {
    assert_eq!(
        words("Don't  STOP_me_now—42!"),
        ["don", "t", "stop", "me", "now", "42"]
    );
    assert_eq!(words("Größe: été"), ["größe", "été"]);
    assert_eq!(
        words("返金 please ください。"),
        ["返", "金", "please", "く", "だ", "さ", "い"]
    );
    assert!(words(" …!? 🙂 ").is_empty());
}

#[test]
fn a_cut_never_splits_a_character() {
    assert_eq!(cut("aé", 2), "a");
    assert_eq!(cut("aé", 3), "aé");
    assert_eq!(cut("é", 0), "");
}

proptest! {
    #[test]
    fn no_text_makes_them_panic(text in any::<String>(), bytes_max in 0usize..20) {
        json_objects(&text);
        words(&text);
        cut(&text, bytes_max);
    }
}
