use super::*;

#[test]
fn plain_http_is_for_loopback_only() {
    for good in [
        "http://127.0.0.1:80/v1",
        "http://localhost:1/v1",
        "http://[::1]:1",
        "https://api.openai.com/v1",
    ] {
        assert!(parse_url(good).is_ok(), "{good}");
    }
    for plain in [
        "http://example.com/v1",
        "http://10.0.0.1",
        "http://localhost.example.com",
    ] {
        assert!(
            matches!(parse_url(plain), Err(InvalidUrl::Plain { .. })),
            "{plain}"
        );
    }
    for wrong in ["", "ftp://localhost", "api.openai.com", "file:///etc/passwd"] {
        assert!(
            matches!(parse_url(wrong), Err(InvalidUrl::Syntax { .. })),
            "{wrong}"
        );
    }
}

#[test]
fn clients_can_be_built() {
    let local = parse_url("http://127.0.0.1:1").unwrap();
    assert!(client(&local, Redirects::Refused).is_ok());
    // Needs the system's certificates: a machine without them must hear about it, not crash.
    let remote = parse_url("https://example.com").unwrap();
    if let Err(error) = client(&remote, Redirects::Refused) {
        assert!(error.to_string().contains("ca-certificates"));
    }
}
