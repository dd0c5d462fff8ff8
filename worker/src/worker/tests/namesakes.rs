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
