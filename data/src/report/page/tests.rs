use super::*;

#[test]
fn counts_times_and_money_read_well() {
    assert_eq!(
        [0, 999, 1000, 1_234_567].map(thousands),
        ["0", "999", "1,000", "1,234,567"]
    );
    let times = [0.4, 59.6, 61.0, 3600.0, 90_000.0, -1.0, f64::NAN].map(duration);
    assert_eq!(
        times,
        [
            "0 s",
            "1 min 0 s",
            "1 min 1 s",
            "1 h 0 min",
            "25 h 0 min",
            "0 s",
            "0 s"
        ]
    );
    assert_eq!([0.0, 0.0123, 4.5].map(dollars), ["$0.00", "$0.0123", "$4.50"]);
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, expected) in [
        (0, "1970-01-01 00:00 UTC"),
        (951_825_599, "2000-02-29 11:59 UTC"),
        (1_709_164_800, "2024-02-29 00:00 UTC"),
        (1_735_689_599, "2024-12-31 23:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00 UTC"),
    ] {
        assert_eq!(date(seconds * 1000), expected);
    }
}
