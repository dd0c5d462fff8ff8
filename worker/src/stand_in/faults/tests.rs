//! Faults come as often as asked for, and never a third time.

use super::*;

#[test]
fn rates_are_kept() {
    let rates = FaultRates {
        too_many_requests: 0.2,
        server_error: 0.1,
        broken_body: 0.05,
        broken_content: 0.05,
    };
    let mut counts = [0; 5];
    for request in 0..20_000 {
        let which = match fault(&rates, 1, request, 0) {
            Some(Fault::TooManyRequests) => 0,
            Some(Fault::ServerError) => 1,
            Some(Fault::BrokenBody) => 2,
            Some(Fault::BrokenContent) => 3,
            None => 4,
        };
        counts[which] += 1;
    }
    for (count, share) in counts.into_iter().zip([0.2, 0.1, 0.05, 0.05, 0.6]) {
        let found = f64::from(count) / 20_000.0;
        assert!((found - share).abs() < 0.015, "{counts:?}");
    }
}

#[test]
fn nothing_goes_wrong_where_nothing_may() {
    assert!((0..1_000).all(|request| fault(&FaultRates::NONE, 1, request, 0).is_none()));
    let always = FaultRates {
        server_error: 2.0,
        ..FaultRates::NONE
    };
    assert!((0..1_000).all(|request| fault(&always, 1, request, 1) == Some(Fault::ServerError)));
    assert!((0..1_000).all(|request| fault(&always, 1, request, 2).is_none()));
}
