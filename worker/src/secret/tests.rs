use super::*;

fn canary() -> Secret {
    Secret::new(" sk-canary-0123456789\n").unwrap()
}

#[test]
fn an_empty_secret_is_none() {
    assert!(Secret::new(" \n").is_none());
}

#[test]
fn debug_and_redaction_hide_it() {
    assert_eq!(format!("{:?}", canary()), REDACTED);
    assert_eq!(format!("{:?}", canary().bearer().unwrap()), "Sensitive");
    assert_eq!(
        canary().redact("key sk-canary-0123456789 is bad"),
        "key [redacted] is bad"
    );
    assert_eq!(
        canary().redact("key 'sk-canary-01...' is bad"),
        "key [redacted] is bad"
    );
    assert_eq!(canary().redact("key abc***789 is bad"), "key [redacted] is bad");
    assert_eq!(canary().redact("two  spaces\nstay"), "two  spaces\nstay");
}

#[test]
fn a_key_with_a_line_break_inside_makes_no_header() {
    assert!(Secret::new("a\nb").unwrap().bearer().is_none());
    assert!(Secret::new("a\nb").unwrap().metadata().is_none());
}
