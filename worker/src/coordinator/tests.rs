use super::*;

/// What a coordinator says whose disk is full.
fn cannot() -> Status {
    let reason = b"DISK_FULL".to_vec().into();
    Status::with_details(Code::ResourceExhausted, "no space is left", reason)
}

async fn ask(status_at: impl Fn(Duration) -> Option<Status>) -> (Result<(), Error>, Duration) {
    let (begun, stopped) = (Instant::now(), CancellationToken::new());
    let answer = patiently("store an artifact", CALL_TIMEOUT, &stopped, || {
        let status = status_at(begun.elapsed());
        async move { status.map_or(Ok(tonic::Response::new(())), Err) }
    });
    let answer = answer.await;
    (answer, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn who_answers_that_it_cannot_is_believed_after_a_while() {
    let (answer, waited) = ask(|_| Some(cannot())).await;
    let error = answer.unwrap_err();
    assert!(
        error.message().contains("no space is left"),
        "{}",
        error.message()
    );
    assert_eq!(error.failure_kind(), llamaduo_proto::task::FailureKind::Retryable);
    assert!(
        waited >= CANNOT_MAX && waited <= CANNOT_MAX + RETRY_MAX,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_away_is_waited_for_and_begins_anew() {
    let hour = Duration::from_secs(3600);
    let (answer, waited) = ask(|at| (at < hour).then(|| Status::unavailable("connection refused"))).await;
    assert!(answer.is_ok() && waited >= hour);
    // A restart in between: what was said before it does not count.
    let restarts = |at: Duration| match at.as_secs() {
        0..100 | 110..200 => Some(cannot()),
        100..110 => Some(Status::unavailable("connection refused")),
        _ => None,
    };
    assert!(ask(restarts).await.0.is_ok());
}
