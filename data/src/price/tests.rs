use super::*;

const BOOK: &str = r#"
currency = "USD"
[[model]]
name = "m"
input_usd_per_million_tokens = 0.075
output_usd_per_million_tokens = 15.0
as_of = "2026-11-22"
source = "a list"
"#;

#[test]
fn a_call_costs_what_the_list_says() {
    let book = PriceBook::from_toml(BOOK).unwrap();
    // 1,000 tokens at $0.075 and 100 at $15 a million: $0.000075 + $0.0015.
    assert_eq!(book.cost("m", 1000, 100), Some(NanoUsd(1_575_000)));
    // A part of a nano-dollar is a whole one: 1 token at 75 nano-dollars is exact, so take a finer price.
    let price = Price {
        input_per_million: NanoUsd(1),
        output_per_million: NanoUsd(0),
    };
    assert_eq!(price.cost(1, 0), NanoUsd(1));
    assert_eq!(price.cost(0, 0), NanoUsd(0));
    assert_eq!(
        Price {
            input_per_million: NanoUsd(u64::MAX),
            ..price
        }
        .cost(u64::MAX, 1),
        NanoUsd(u64::MAX)
    );
}

#[test]
fn an_unlisted_model_has_no_price() {
    let book = PriceBook::builtin().unwrap();
    assert_eq!(book.cost("a-model-of-2031", 1, 1), None);
    // The paper's Table 2: 300 M tokens in and 30 M out a month cost $1,950.
    assert_eq!(
        book.cost("gpt-4o-2024-05-13", 300_000_000, 30_000_000),
        Some(NanoUsd(1_950_000_000_000))
    );
}

#[test]
fn a_users_book_goes_over_the_built_in_one() {
    let builtin = PriceBook::builtin().unwrap();
    let hash = builtin.hash().to_owned();
    let both = builtin.overridden_by(PriceBook::from_toml(&BOOK.replace("\"m\"", "\"gpt-6-luna\"")).unwrap());
    assert_eq!(
        both.price("gpt-6-luna").unwrap().input_per_million,
        NanoUsd(75_000_000)
    );
    assert!(both.price("claude-sonnet-5-5").is_some());
    assert_ne!(both.hash(), hash);
}

#[test]
fn a_slip_in_a_book_is_named() {
    let read = |from: &str, to: &str| {
        PriceBook::from_toml(&BOOK.replace(from, to))
            .unwrap_err()
            .to_string()
    };
    assert!(read("USD\"", "EUR\"").contains("currency is \"EUR\""));
    assert!(read("0.075", "-1").contains("model \"m\" has the price -1"));
    assert!(read("0.075", "nan").contains("has the price NaN"));
    assert!(read("\"a list\"", "\" \"").contains("needs a non-empty as_of and source"));
    assert!(read("as_of", "asof").contains("asof"));
    let twice = format!("{BOOK}{}", &BOOK[BOOK.find("[[").unwrap()..]);
    assert!(
        PriceBook::from_toml(&twice)
            .unwrap_err()
            .to_string()
            .contains("listed twice")
    );
}

#[test]
fn money_reads_as_dollars() {
    assert_eq!(NanoUsd(1_950_000_000_000).to_string(), "$1950.00");
    assert_eq!(NanoUsd(1_575_000).to_string(), "$0.001575");
    assert_eq!(NanoUsd(0).to_string(), "$0.00");
    assert_eq!(NanoUsd(u64::MAX).saturating_add(NanoUsd(1)), NanoUsd(u64::MAX));
}
