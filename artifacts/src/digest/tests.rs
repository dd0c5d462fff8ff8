use super::Digest;

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn digest_is_sha256_and_reads_back() {
    let digest = Digest::of(b"");
    assert_eq!(digest.to_string(), EMPTY);
    assert_eq!(EMPTY.parse(), Ok(digest));
    assert_eq!(format!("{digest:?}"), format!("Digest({EMPTY})"));
}

#[test]
fn only_64_lower_case_digits_are_a_digest() {
    let long = format!("{EMPTY}0");
    let upper = EMPTY.to_uppercase();
    let signed = EMPTY.replace("e3", "+3");
    let wide = "é".repeat(32);
    for text in [
        "",
        "e3b0",
        &long,
        &upper,
        &signed,
        &wide,
        "../../../../../../../../../../../../../../../../../../etc/passwd",
    ] {
        assert!(text.parse::<Digest>().is_err(), "{text} was taken for a digest");
    }
}
