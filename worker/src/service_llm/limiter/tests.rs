use super::*;
use crate::service_llm::Billing;

fn failure(class: FailureClass, retry_after: Option<Duration>) -> CallFailure {
    CallFailure {
        class,
        billing: Billing::No,
        retry_after,
        message: "no".to_owned(),
    }
}

#[test]
fn only_transient_failures_are_repeated_and_only_so_often() {
    let hour = Duration::from_secs(3600);
    assert_eq!(wait(&failure(FailureClass::Refused, None), 1, hour, 0.0), None);
    assert_eq!(wait(&failure(FailureClass::BadRequest, None), 1, hour, 0.0), None);
    let transient = failure(FailureClass::Transient, None);
    assert_eq!(wait(&transient, 1, hour, 0.0), Some(BACKOFF_FIRST));
    assert_eq!(wait(&transient, 2, hour, 0.0), Some(BACKOFF_FIRST * 2));
    assert_eq!(wait(&transient, 5, hour, 0.0), Some(BACKOFF_MAX));
    assert_eq!(wait(&transient, 5, hour, 1.0), Some(BACKOFF_MAX * 3 / 4));
    assert_eq!(wait(&transient, TRIES_MAX, hour, 0.0), None);
    assert_eq!(wait(&transient, 1, Duration::from_millis(1), 0.0), None);
}

#[test]
fn a_wait_asked_for_is_kept_unless_it_is_too_long() {
    let hour = Duration::from_secs(3600);
    let asked = Duration::from_secs(30);
    assert_eq!(
        wait(&failure(FailureClass::Transient, Some(asked)), 1, hour, 0.5),
        Some(asked)
    );
    let long = RETRY_AFTER_MAX + Duration::from_secs(1);
    assert_eq!(
        wait(&failure(FailureClass::Transient, Some(long)), 1, hour, 0.5),
        None
    );
}

#[tokio::test]
async fn starts_are_spaced_and_bounded() {
    let limiter = Limiter::new(1, Some(1200));
    let begin = Instant::now();
    for _ in 0..3 {
        drop(limiter.start().await);
    }
    // 1,200 a minute is one each 50 ms.
    assert!(
        begin.elapsed() >= Duration::from_millis(100),
        "{:?}",
        begin.elapsed()
    );
    let held = limiter.start().await;
    let second = tokio::time::timeout(Duration::from_millis(120), limiter.start()).await;
    assert!(
        second.is_err(),
        "a second call started beside the only one allowed"
    );
    drop(held);
}

#[tokio::test]
async fn a_wait_asked_of_one_call_holds_back_the_others() {
    let limiter = Limiter::new(4, None);
    let asked = Duration::from_millis(80);
    let mut tries = limiter.tries();
    let again = tries.again(failure(FailureClass::Transient, Some(asked)));
    let other = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let begin = Instant::now();
        drop(limiter.start().await);
        begin.elapsed()
    };
    let (again, waited) = tokio::join!(again, other);
    assert_eq!(again, Ok(()));
    assert!(waited >= Duration::from_millis(50), "{waited:?}");
}
