//! Two processes of one worker.

use super::*;

#[tokio::test]
async fn a_directory_has_one_worker_at_a_time() {
    let mut room = Room::new(LEASE, vec![]).await;
    let second = options(&room.coordinator.url, room.directory.path());
    let refused = run(second, CancellationToken::new()).await;
    assert!(
        matches!(refused, Err(Error::DirectoryInUse { .. })),
        "{refused:?}"
    );
    // As if killed: the next process says from which directory it comes.
    room.worker.shutdown().await;
    room.start().await;
    room.coordinator.change(|ledger| {
        let [first, next] = &ledger.hellos[..] else {
            panic!("{ledger:?}")
        };
        assert!(first.directory.is_some() && first.directory == next.directory);
        assert_ne!(first.incarnation, next.incarnation);
    });
}

/// What a coordinator says while a namesake was heard of within `free_in` of a lease.
fn name_taken(free_in: Duration) -> Status {
    use tonic_types::{ErrorDetails, StatusExt as _};
    let mut details =
        ErrorDetails::with_error_info("WORKER_NAME_TAKEN", "llamaduo", HashMap::<String, String>::new());
    details.set_retry_info(Some(free_in));
    Status::with_error_details(tonic::Code::FailedPrecondition, "another process is w1", details)
}

/// What the worker's starter is told.
fn ear() -> (Arc<std::sync::Mutex<Vec<crate::Notice>>>, crate::Tell) {
    let heard: Arc<std::sync::Mutex<Vec<crate::Notice>>> = Arc::default();
    let ear = Arc::clone(&heard);
    (
        heard,
        crate::Tell::new(move |notice| ear.lock().unwrap().push(notice.clone())),
    )
}

fn start(
    coordinator: &ScriptedCoordinator,
    directory: &tempfile::TempDir,
    tell: crate::Tell,
) -> (CancellationToken, JoinSet<Result<(), Error>>) {
    let options = Options {
        tell,
        ..options(&coordinator.url, directory.path())
    };
    let shutdown = CancellationToken::new();
    let mut worker = JoinSet::new();
    worker.spawn(run(options, shutdown.clone()));
    (shutdown, worker)
}

#[tokio::test]
async fn a_name_that_is_free_soon_is_waited_for() {
    let coordinator = ScriptedCoordinator::start(LEASE).await;
    // Longer than any test takes: it is let in when the name is free, not when the time is over.
    let free_in = Duration::from_secs(3600);
    coordinator.change(|ledger| ledger.refuse_attach = Some(name_taken(free_in)));
    let directory = tempfile::tempdir().unwrap();
    let (heard, tell) = ear();
    let (shutdown, mut worker) = start(&coordinator, &directory, tell);
    coordinator
        .until("three tries", |ledger| ledger.n_refused >= 3)
        .await;
    coordinator.change(|ledger| ledger.refuse_attach = None);
    coordinator
        .until("hello", |ledger| ledger.hellos.len() == 1)
        .await;
    shutdown.cancel();
    worker.join_next().await.unwrap().unwrap().unwrap();
    let heard = heard.lock().unwrap();
    assert!(
        matches!(
            &heard[..],
            [crate::Notice::NameTaken { .. }, crate::Notice::Connected { .. }]
        ),
        "{heard:?}"
    );
}

#[tokio::test]
async fn a_name_that_stays_taken_ends_the_worker() {
    let coordinator = ScriptedCoordinator::start(LEASE).await;
    coordinator.change(|ledger| ledger.refuse_attach = Some(name_taken(Duration::from_millis(200))));
    let directory = tempfile::tempdir().unwrap();
    let options = options(&coordinator.url, directory.path());
    let error = run(options, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("another process is w1"), "{error}");
    coordinator.change(|ledger| assert!(ledger.n_refused >= 2, "{}", ledger.n_refused));
}

#[tokio::test]
async fn a_coordinator_that_is_away_is_told_of_once() {
    let mut coordinator = ScriptedCoordinator::start(LEASE).await;
    coordinator.kill().await;
    let directory = tempfile::tempdir().unwrap();
    let (heard, tell) = ear();
    let (shutdown, mut worker) = start(&coordinator, &directory, tell);
    while heard.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    coordinator.revive().await;
    coordinator
        .until("hello", |ledger| ledger.hellos.len() == 1)
        .await;
    shutdown.cancel();
    worker.join_next().await.unwrap().unwrap().unwrap();
    let heard: Vec<String> = heard.lock().unwrap().iter().map(ToString::to_string).collect();
    let [away, connected] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert!(
        away.starts_with("no coordinator answers") && away.contains("refused"),
        "{away}"
    );
    assert!(connected.starts_with("connected to"), "{connected}");
}
