use llamaduo_proto::Digest;
use llamaduo_proto::ids::{ReservationId, WorkerId};
use llamaduo_proto::session::{AttemptFailure, AttemptOutcome, CallOutcome};
use llamaduo_proto::task::FailureKind;

use super::*;
use crate::testing::attempt_id;

fn end(task: &str) -> Entry {
    let failure = AttemptFailure {
        kind: FailureKind::Retryable,
        message: "no".to_owned(),
        checkpoint: None,
    };
    let outcome = AttemptOutcome::Failed(failure);
    Entry::End(Completion {
        attempt: attempt_id(task, 3),
        worker: WorkerId::new("w1").unwrap(),
        outcome,
    })
}

fn call() -> Entry {
    Entry::Call(EndCall {
        attempt: attempt_id("a", 3),
        call: Digest::of(b"call"),
        reservation: ReservationId::new("r").unwrap(),
        outcome: CallOutcome::Unknown("timeout".to_owned()),
    })
}

#[test]
fn entries_outlive_the_process_in_the_order_they_were_put() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path()).unwrap();
    spool.put(call()).unwrap();
    spool.put(end("a")).unwrap();
    drop(spool);
    let spool = Spool::open(directory.path()).unwrap();
    spool.put(end("b")).unwrap();
    let names = spool.names().unwrap();
    let entries: Vec<_> = names
        .iter()
        .map(|name| spool.read(name).unwrap().unwrap())
        .collect();
    assert_eq!(entries, [call(), end("a"), end("b")]);
    spool.remove(&names[0]).unwrap();
    assert_eq!(spool.names().unwrap(), names[1..]);
}

#[test]
fn a_damaged_entry_is_set_aside_and_what_is_half_written_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path()).unwrap();
    spool.put(end("a")).unwrap();
    std::fs::write(directory.path().join("0000000000000001.end"), b"\xff\xff\xff").unwrap();
    std::fs::write(directory.path().join(".tmp123"), b"half").unwrap();
    let names = spool.names().unwrap();
    assert_eq!(names.len(), 2);
    assert_eq!(spool.read(&names[1]).unwrap(), None);
    assert_eq!(spool.names().unwrap().len(), 1);
    assert!(directory.path().join("0000000000000001.damaged").exists());
}

#[test]
fn an_entry_that_is_held_is_left_to_its_holder_and_to_whoever_comes_next() {
    let directory = tempfile::tempdir().unwrap();
    let spool = std::sync::Arc::new(Spool::open(directory.path()).unwrap());
    let told = std::sync::Arc::clone(&spool).hold(call()).unwrap();
    let untold = std::sync::Arc::clone(&spool).hold(end("a")).unwrap();
    assert_eq!(spool.names().unwrap(), []);
    assert_eq!(Spool::open(directory.path()).unwrap().names().unwrap().len(), 2);
    told.told().unwrap();
    drop(untold);
    let names = spool.names().unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(spool.read(&names[0]).unwrap(), Some(end("a")));
}
