use super::*;
use reqwest::header::HeaderValue;

fn headers(rows: &[(&'static str, &str)]) -> HeaderMap {
    rows.iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn class(status: u16, body: &str) -> FailureClass {
    failure(
        "service",
        status,
        Hints::default(),
        &ErrorBody::read(body.as_bytes()),
    )
    .class
}

#[test]
fn retry_after_is_read_in_all_its_forms() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let wait = |rows: &[(&'static str, &str)]| Hints::read(&headers(rows), now).retry_after;
    assert_eq!(
        wait(&[("retry-after-ms", "250"), ("retry-after", "9")]),
        Some(Duration::from_millis(250))
    );
    assert_eq!(wait(&[("retry-after", "1.5")]), Some(Duration::from_millis(1500)));
    assert_eq!(
        wait(&[("retry-after", "Thu, 01 Jan 2026 00:00:07 GMT")]),
        Some(Duration::from_secs(7))
    );
    assert_eq!(
        wait(&[("retry-after", "Wed, 31 Dec 2025 00:00:00 GMT")]),
        Some(Duration::ZERO)
    );
    assert_eq!(wait(&[("retry-after", "-5")]), Some(Duration::ZERO));
    for odd in ["soon", "", "1e300", "inf", "nan"] {
        let _no_panic = wait(&[("retry-after", odd)]);
    }
    assert_eq!(wait(&[]), None);
}

#[test]
fn the_table_of_statuses() {
    assert_eq!(
        class(
            429,
            r#"{"error":{"type":"requests","code":"rate_limit_exceeded"}}"#
        ),
        FailureClass::Transient
    );
    assert_eq!(
        class(429, r#"{"error":{"type":"insufficient_quota"}}"#),
        FailureClass::Refused
    );
    assert_eq!(class(500, "oops"), FailureClass::Transient);
    assert_eq!(class(529, "{}"), FailureClass::Transient);
    assert_eq!(class(408, ""), FailureClass::Transient);
    assert_eq!(class(401, r#"{"error":"bad key"}"#), FailureClass::Refused);
    assert_eq!(
        class(404, r#"[{"error":{"code":404,"message":"no model"}}]"#),
        FailureClass::Refused
    );
    assert_eq!(class(302, ""), FailureClass::Refused);
    assert_eq!(class(501, ""), FailureClass::Refused);
    assert_eq!(class(405, ""), FailureClass::Refused);
    assert_eq!(
        class(
            400,
            r#"{"error":{"code":400,"type":"exceed_context_size_error"}}"#
        ),
        FailureClass::BadRequest
    );
}

#[test]
fn the_service_may_overrule_the_table() {
    let say = |status, should_retry| {
        let hints = Hints {
            should_retry: Some(should_retry),
            retry_after: None,
        };
        failure("service", status, hints, &ErrorBody::default()).class
    };
    assert_eq!(say(500, false), FailureClass::BadRequest);
    assert_eq!(say(400, true), FailureClass::Transient);
    assert_eq!(say(401, true), FailureClass::Refused);
}

#[test]
fn a_web_page_is_told_in_its_words() {
    let page = "<!DOCTYPE HTML>\n<html><head><style>p { x }</style><title>Error response</title></head>\n\
                <body><h1>Error</h1><p>Code: 501 <b>Unsupported method</b></p></body></html>";
    let failure = failure(
        "service",
        501,
        Hints::default(),
        &ErrorBody::read(page.as_bytes()),
    );
    assert!(
        failure
            .message
            .contains("\"Error response Error Code: 501 Unsupported method\""),
        "{}",
        failure.message
    );
    for markup in ["<", "p { x }"] {
        assert!(!failure.message.contains(markup), "{}", failure.message);
    }
    let endless = format!("<html>{}", "<p>word</p>".repeat(100_000));
    assert!(ErrorBody::read(endless.as_bytes()).message.len() < 200);
    assert_eq!(ErrorBody::read(b"<oops").message, "<oops", "no page");
}
