use proptest::prelude::*;

use super::*;

const ROW: &str =
    r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"category":"x"}"#;

fn import_error(text: impl AsRef<[u8]>) -> String {
    import("rows.jsonl", text.as_ref()).unwrap_err().to_string()
}

#[test]
fn rows_become_samples_and_keep_their_fields() {
    let other = ROW.replace("\"q\"", "\"r\"");
    let imported = import(
        "rows.jsonl",
        format!("\u{feff}{ROW}\r\n\n{other}\r\n{ROW}").as_bytes(),
    )
    .unwrap();
    assert_eq!(imported.samples.len(), 2);
    assert_eq!(imported.samples[0].fields()["category"], "x");
    assert_eq!(
        imported.samples[1].provenance(),
        &Provenance::Coverage { line: 3 }
    );
    assert_eq!(
        imported.duplicates,
        [DuplicateRow {
            line: 4,
            first_line: 1
        }]
    );
}

#[test]
fn a_bad_line_is_named_with_what_was_expected() {
    let cases = [
        (
            "{\"messages\": [",
            "the row is not JSON (EOF while parsing a list, column 14)",
        ),
        ("[]", "the row is not a JSON object"),
        (
            "{\"prompt\": \"q\"}",
            "the row has no \"messages\" (its keys: prompt)",
        ),
        ("{\"messages\": \"q\"}", "\"messages\" is not a list"),
        ("{\"messages\": []}", "the list of messages is empty"),
        (
            "{\"messages\": [{\"role\": \"user\"}]}",
            "message 1 is not valid (missing field `content`)",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}",
            "the last message is from user",
        ),
        (
            &ROW.replace("\"a\"", "\"\""),
            "message 2 (assistant) has empty content",
        ),
    ];
    for (line, problem) in cases {
        let error = import_error(format!("{ROW}\n{line}\n"));
        assert!(
            error.starts_with(&format!("rows.jsonl, line 2: {problem}")),
            "{error}"
        );
        assert!(error.ends_with(ROW_FORM), "{error}");
    }
    let role = import_error(ROW.replace("assistant", "bot"));
    assert!(
        role.contains("message 2 is not valid (unknown variant `bot`"),
        "{role}"
    );
}

#[test]
fn bytes_that_are_no_text_are_named() {
    assert!(import_error(b"\xff\xfe{\x00").starts_with("rows.jsonl, line 1: the row is not UTF-8"));
}

#[test]
fn nothing_is_an_error() {
    for text in ["", "\n\r\n", "\u{feff}"] {
        assert!(import_error(text).starts_with("rows.jsonl holds no rows"));
    }
}

#[test]
fn a_row_too_long_is_refused_before_it_is_read() {
    let error = import_error(vec![b'['; LINE_BYTES_MAX + 1]);
    assert!(
        error.contains("line 1: the row has 4194305 bytes, more than"),
        "{error}"
    );
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    assert!(
        import_error("[".repeat(100_000)).contains("line 1: the row is not JSON (recursion limit exceeded")
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = import_file(Path::new("no/such/rows.jsonl")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the dataset no/such/rows.jsonl; check that it exists and may be read"
    );
    assert!(error.is_retryable());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = import("rows.jsonl", &bytes);
    }

    #[test]
    fn no_change_of_a_row_makes_it_panic(at in 0..ROW.len(), byte in any::<u8>()) {
        let mut row = ROW.as_bytes().to_vec();
        row[at] = byte;
        let _ = import("rows.jsonl", &row);
    }
}
