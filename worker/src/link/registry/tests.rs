use super::*;
use crate::testing::attempt_id;

#[test]
fn an_attempt_is_stopped_before_its_lease_ends_unless_it_was_renewed() {
    let registry = Registry::new();
    let begun = Instant::now();
    registry.set_lease(Duration::from_secs(15));
    let renewed = registry.begin(attempt_id("renewed", 1), begun).unwrap();
    let forgotten = registry.begin(attempt_id("forgotten", 2), begun).unwrap();
    registry.renew(&[attempt_id("renewed", 1)], begun + Duration::from_secs(10));
    assert_eq!(
        registry.fence(begun + Duration::from_secs(12)),
        begun + Duration::from_secs(13)
    );
    assert!(forgotten.check().is_ok());
    assert_eq!(
        registry.fence(begun + Duration::from_secs(13)),
        begun + Duration::from_secs(23)
    );
    assert_eq!(forgotten.stop_reason(), Some(&Stop::LeaseLost));
    assert!(renewed.check().is_ok());
}

#[test]
fn a_late_acknowledgement_takes_nothing_back() {
    let registry = Registry::new();
    let begun = Instant::now();
    registry.set_lease(Duration::from_secs(15));
    let attempt = registry
        .begin(attempt_id("a", 1), begun + Duration::from_secs(5))
        .unwrap();
    registry.renew(&[attempt_id("a", 1)], begun);
    registry.fence(begun + Duration::from_secs(17));
    assert!(attempt.check().is_ok());
}

#[test]
fn the_first_reason_to_stop_stays_and_an_attempt_begins_once() {
    let registry = Registry::new();
    let attempt = registry.begin(attempt_id("a", 1), Instant::now()).unwrap();
    assert!(registry.begin(attempt_id("a", 1), Instant::now()).is_none());
    registry.stop(&attempt.id, Stop::Revoked);
    registry.stop_all(&Stop::Draining);
    assert_eq!(attempt.stop_reason(), Some(&Stop::Revoked));
    assert!(attempt.stopped().is_cancelled());
}

#[tokio::test]
async fn what_comes_in_while_draining_is_given_back() {
    let registry = Registry::new();
    registry.drain();
    let attempt = registry.begin(attempt_id("a", 1), Instant::now()).unwrap();
    assert_eq!(attempt.stop_reason(), Some(&Stop::Draining));
    let emptied = registry.emptied();
    let forget = async { registry.forget(&attempt.id) };
    tokio::join!(emptied, forget);
}

#[test]
fn no_list_is_too_long_for_the_protocol() {
    let registry = Registry::new();
    for n in 0..=LIST_LEN_MAX {
        registry
            .begin(attempt_id(&format!("c01-judge-{n}"), 7), Instant::now())
            .unwrap();
    }
    assert_eq!(registry.running().len(), LIST_LEN_MAX);
}
