use std::io::{self, Read};

use super::*;

fn store() -> (tempfile::TempDir, Directory) {
    let folder = tempfile::tempdir().unwrap();
    let store = Directory::open(folder.path().join("artifacts")).unwrap();
    (folder, store)
}

fn damage(store: &Directory, digest: &Digest, bytes: &[u8]) {
    let path = store.path_of(digest);
    fs::remove_file(&path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_put_is_got_and_putting_again_changes_nothing() {
    let (_folder, store) = store();
    let digest = store.put(b"adapter").unwrap();
    assert_eq!(store.put(b"adapter").unwrap(), digest);
    assert_eq!(store.put_reader(&b"adapter"[..]).unwrap(), (digest, 7));
    assert_eq!(store.get(&digest).unwrap(), b"adapter");
    let empty = store.put(b"").unwrap();
    assert_eq!(store.get(&empty).unwrap(), b"");
    let mut expected = vec![digest, empty];
    expected.sort_unstable();
    assert_eq!(store.list().unwrap(), expected);
    assert_eq!(entries(&store.incoming()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_store_opened_again_holds_the_same() {
    let (folder, store) = store();
    let digest = store.put(b"verdicts").unwrap();
    let again = Directory::open(folder.path().join("artifacts")).unwrap();
    assert!(again.contains(&digest).unwrap());
    assert_eq!(again.get(&digest).unwrap(), b"verdicts");
}

#[test]
fn streaming_more_than_a_chunk_gives_the_same_name() {
    let (_folder, store) = store();
    let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 17)
        .map(|index| (index % 251) as u8)
        .collect();
    let (digest, length) = store.put_reader(bytes.as_slice()).unwrap();
    assert_eq!((digest, length), (Digest::of(&bytes), bytes.len() as u64));
    let mut read = Vec::new();
    store
        .open_verified(&digest)
        .unwrap()
        .read_to_end(&mut read)
        .unwrap();
    assert_eq!(read, bytes);
}

#[test]
fn a_missing_artifact_is_named() {
    let (_folder, store) = store();
    let digest = Digest::of(b"never stored");
    assert!(!store.contains(&digest).unwrap());
    let error = store.get(&digest).unwrap_err();
    assert!(matches!(error, Error::Missing { digest: named } if named == digest));
    assert!(!error.is_retryable());
    assert!(matches!(store.open_verified(&digest), Err(Error::Missing { .. })));
}

#[test]
fn damaged_bytes_are_moved_aside_and_putting_again_heals() {
    let (_folder, store) = store();
    let digest = store.put(b"checkpoint").unwrap();
    damage(&store, &digest, b"checkpoinT");
    let Error::Damaged { actual, moved_to, .. } = store.get(&digest).unwrap_err() else {
        panic!("not damaged")
    };
    assert_eq!(actual, Digest::of(b"checkpoinT"));
    assert_eq!(fs::read(moved_to).unwrap(), b"checkpoinT");
    assert!(matches!(store.get(&digest), Err(Error::Missing { .. })));
    store.put(b"checkpoint").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"checkpoint");
}

#[test]
fn putting_over_damaged_bytes_heals_them() {
    let (_folder, store) = store();
    let digest = store.put(b"checkpoint").unwrap();
    damage(&store, &digest, b"");
    assert!(matches!(store.open_verified(&digest), Err(Error::Damaged { .. })));
    store.put(b"checkpoint").unwrap();
    damage(&store, &digest, b"torn");
    store.put_reader(&b"checkpoint"[..]).unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"checkpoint");
}

#[test]
fn a_source_that_fails_leaves_nothing_behind() {
    struct Failing(u8);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Err(io::ErrorKind::Interrupted.into()),
                2 => {
                    buffer[..4].copy_from_slice(b"half");
                    Ok(4)
                }
                _ => Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
    }
    let (_folder, store) = store();
    assert!(matches!(store.put_reader(Failing(0)), Err(Error::Source { .. })));
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(entries(&store.incoming()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn many_writers_of_the_same_bytes_agree() {
    let (_folder, store) = store();
    let bytes = vec![7; 100_000];
    let digests: Vec<Digest> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (store, bytes) = (&store, &bytes);
                scope.spawn(move || {
                    store.put(format!("own {writer}").as_bytes()).unwrap();
                    if writer % 2 == 0 {
                        store.put(bytes).unwrap()
                    } else {
                        store.put_reader(bytes.as_slice()).unwrap().0
                    }
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == Digest::of(&bytes)));
    assert_eq!(store.list().unwrap().len(), 9);
    assert_eq!(store.get(&digests[0]).unwrap(), bytes);
}

#[test]
fn a_full_disk_is_told_apart_and_can_be_retried() {
    let full = Error::io("write", Path::new("store/x"), io::ErrorKind::StorageFull.into());
    assert!(matches!(full, Error::DiskFull { .. }) && full.is_retryable());
    assert!(full.to_string().contains("free some space and resume"), "{full}");
    let quota = Error::io("write", Path::new("store/x"), io::ErrorKind::QuotaExceeded.into());
    assert!(matches!(quota, Error::DiskFull { .. }));
    let denied = Error::io(
        "write",
        Path::new("store/x"),
        io::ErrorKind::PermissionDenied.into(),
    );
    assert!(matches!(denied, Error::Io { .. }));
}

#[test]
fn a_root_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Directory::open(file.path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot create "), "{error}");
}

#[test]
fn abandoned_writes_go_when_they_are_old() {
    let (folder, store) = store();
    let (old, fresh) = (store.incoming().join("old"), store.incoming().join("fresh"));
    fs::write(&fresh, b"being written").unwrap();
    let file = File::create(&old).unwrap();
    file.set_modified(std::time::SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(60))
        .unwrap();
    Directory::open(folder.path().join("artifacts")).unwrap();
    assert!(!old.exists() && fresh.exists());
}

#[test]
fn strangers_in_the_directory_are_not_listed() {
    let (_folder, store) = store();
    let digest = store.put(b"x").unwrap();
    fs::write(store.root().join("sha256/README"), b"").unwrap();
    fs::write(store.shard_of(&digest).join("notes.txt"), b"").unwrap();
    assert_eq!(store.list().unwrap(), [digest]);
}

#[test]
fn what_is_removed_is_gone_and_can_be_stored_again() {
    let (_folder, store) = store();
    let (kept, removed) = (store.put(b"kept").unwrap(), store.put(b"removed").unwrap());
    assert!(store.remove(&removed).unwrap());
    assert!(!store.remove(&removed).unwrap(), "nothing is there any more");
    assert_eq!(store.list().unwrap(), [kept]);
    assert!(matches!(store.get(&removed), Err(Error::Missing { .. })));
    assert_eq!(store.put(b"removed").unwrap(), removed);
    assert_eq!(store.get(&removed).unwrap(), b"removed");
}
