use llamaduo_proto::event::RunEventKind;
use llamaduo_proto::run::RunStatus;

use super::*;

fn event(seq: u64, kind: RunEventKind) -> RunEvent {
    RunEvent {
        run: RunId::new("r").unwrap(),
        seq,
        time_ms: seq,
        kind,
    }
}

fn submitted(seq: u64) -> RunEvent {
    // A name beyond ASCII, so that a cut can fall inside a character.
    let name = "größe – 名".to_owned();
    event(seq, RunEventKind::RunSubmitted { name })
}

#[test]
fn the_event_log_goes_on_after_its_last_whole_event() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::create(root.path()).unwrap();
    let mut log = EventLog::open(&directory).unwrap();
    assert_eq!(log.next_seq(), 1);
    log.append(&submitted(1)).unwrap();
    log.append(&submitted(2)).unwrap();
    let path = root.path().join("events.jsonl");
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut log = EventLog::open(&directory).unwrap();
        let n_whole = whole[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(log.next_seq(), n_whole + 1, "cut at {cut}");
        for seq in log.next_seq()..=2 {
            log.append(&submitted(seq)).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn the_event_log_keeps_neither_progress_nor_repeats_and_knows_the_end() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::create(root.path()).unwrap();
    let mut log = EventLog::open(&directory).unwrap();
    log.append(&submitted(1)).unwrap();
    log.append(&submitted(1)).unwrap();
    log.append(&submitted(0)).unwrap();
    assert!(!log.ended());
    let end = RunEventKind::RunEnded {
        status: RunStatus::Passed,
        reason: "r".to_owned(),
        report: None,
    };
    log.append(&event(2, end)).unwrap();
    assert!(log.ended());
    let mut log = EventLog::open(&directory).unwrap();
    assert_eq!((log.next_seq(), log.ended()), (3, true));
    assert!(directory.has_ended().unwrap());
    let was = RunStatus::GateNotReached;
    log.append(&event(3, RunEventKind::RunResumed { was })).unwrap();
    assert!(!directory.has_ended().unwrap(), "it was gone on with");
}

#[test]
fn files_are_written_whole_and_damaged_ones_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a/b.json");
    write_json(&path, &7).unwrap();
    assert_eq!(read_json::<u32>(&path).unwrap(), Some(7));
    assert_eq!(std::fs::read_dir(root.path().join("a")).unwrap().count(), 1);
    std::fs::write(&path, "{").unwrap();
    let message = read_json::<u32>(&path).unwrap_err().to_string();
    assert!(message.contains("b.json"), "{message}");
    assert_eq!(read_json::<u32>(&root.path().join("c")).unwrap(), None);
}

#[test]
fn state_without_a_record_is_of_stages_once_it_keeps_an_artifact() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::create(root.path()).unwrap();
    assert!(!directory.holds_stages());
    // A run that was killed before its record was written.
    let artifacts = directory.state().join("artifacts/sha256/ab");
    std::fs::create_dir_all(&artifacts).unwrap();
    std::fs::write(directory.state().join("state.redb"), "").unwrap();
    assert!(!directory.holds_stages());
    std::fs::write(artifacts.join("abcd"), "").unwrap();
    assert!(directory.holds_stages());
    std::fs::write(directory.state().join("run.json"), "{}").unwrap();
    assert!(!directory.holds_stages());
}
