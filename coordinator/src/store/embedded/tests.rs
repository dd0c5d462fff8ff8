use super::{Embedded, Error, Outcome, Revision, StateStore, Txn};
use crate::store::Op;
use crate::store::conformance;

fn put(key: &str, value: &str) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::Put(key.to_owned(), value.as_bytes().to_vec())],
    }
}

/// The store with its directory, which goes with it.
#[derive(Debug)]
struct Temporary {
    store: Embedded,
    _directory: tempfile::TempDir,
}

impl StateStore for Temporary {
    fn get<'a>(&'a self, key: &'a str) -> crate::store::Answer<'a, Option<crate::store::Entry>> {
        self.store.get(key)
    }
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> crate::store::Answer<'a, crate::store::Page> {
        self.store.range(prefix, after, limit)
    }
    fn txn(&self, txn: Txn) -> crate::store::Answer<'_, Outcome> {
        self.store.txn(txn)
    }
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> crate::store::Answer<'a, crate::store::Watch> {
        self.store.watch(prefix, from)
    }
}

#[tokio::test]
async fn keeps_the_contract_of_a_store() {
    conformance::all(|| async {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _thread) = Embedded::open(&directory.path().join("state.redb")).expect("a new file");
        Temporary {
            store,
            _directory: directory,
        }
    })
    .await;
}

#[tokio::test]
async fn keeps_everything_over_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.redb");
    let (store, thread) = Embedded::open(&path).expect("a new file");
    store.txn(put("a", "1")).await.expect("written");
    store.txn(put("b", "1")).await.expect("written");
    store.txn(put("a", "2")).await.expect("written");
    let before = store.range("", None, 10).await.expect("read");
    drop(store);
    thread.join().expect("the thread ends with the store");
    let (store, _thread) = Embedded::open(&path).expect("the same file");
    assert_eq!(store.range("", None, 10).await.expect("read"), before);
    assert_eq!(
        store.txn(put("c", "1")).await.expect("written"),
        Outcome::Committed(Revision(4))
    );
    let past = store.watch("", Revision(2)).await;
    assert!(
        matches!(past, Err(Error::Compacted { oldest: Revision(4) })),
        "history starts anew"
    );
}

#[tokio::test]
async fn refuses_a_second_opener_and_a_foreign_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("state.redb");
    let (_store, _thread) = Embedded::open(&path).expect("a new file");
    assert!(matches!(Embedded::open(&path), Err(Error::AlreadyOpen { .. })));
    let foreign = directory.path().join("foreign.redb");
    std::fs::write(
        &foreign,
        "this is no database, though long enough to look like a file",
    )
    .expect("written");
    assert!(matches!(Embedded::open(&foreign), Err(Error::Open { .. })));
}

#[tokio::test]
async fn commits_what_is_queued_together_but_answers_each() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _thread) = Embedded::open(&directory.path().join("state.redb")).expect("a new file");
    let store = std::sync::Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200 {
        let store = std::sync::Arc::clone(&store);
        tasks.spawn(async move { store.txn(put(&format!("k{i}"), "v")).await.expect("written") });
    }
    let mut revisions: Vec<Outcome> = tasks.join_all().await;
    revisions.sort_by_key(|outcome| match outcome {
        Outcome::Committed(revision) => revision.0,
        Outcome::Conflict => 0,
    });
    let expected: Vec<Outcome> = (1..=200)
        .map(|revision| Outcome::Committed(Revision(revision)))
        .collect();
    assert_eq!(revisions, expected, "each transaction has a revision of its own");
}

/// A disk in memory that can be full.
#[derive(Clone, Debug, Default)]
struct Disk(std::sync::Arc<std::sync::Mutex<(Vec<u8>, bool)>>);

impl Disk {
    fn fill(&self, is_full: bool) {
        self.0.lock().expect("no panic").1 = is_full;
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        let mut disk = self.0.lock().expect("no panic");
        if disk.1 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        change(&mut disk.0);
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().expect("no panic").0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let disk = self.0.lock().expect("no panic");
        let from = offset as usize;
        let bytes = disk
            .0
            .get(from..from + out.len())
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.change(|bytes| bytes.resize(len as usize, 0))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.change(|_| {})
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let from = offset as usize;
        self.change(|bytes| bytes[from..from + data.len()].copy_from_slice(data))
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_writing_goes_on_when_there_is_space() {
    let disk = Disk::default();
    let path = std::path::PathBuf::from("a disk in memory");
    let (opened, named) = (disk.clone(), path.clone());
    let n_opened = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = std::sync::Arc::clone(&n_opened);
    let opener = move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let database = redb::Database::builder().create_with_backend(opened.clone());
        database.map_err(|error| Error::Open {
            path: named.clone(),
            source: Box::new(error.into()),
        })
    };
    let (store, _thread) = Embedded::open_with(&path, Box::new(opener)).expect("a new disk");
    store.txn(put("a", "1")).await.expect("written");
    let mut watch = store.watch("", Revision(2)).await.expect("history is kept");
    disk.fill(true);
    let large = "x".repeat(1_000_000);
    let failed = store.txn(put("b", &large)).await.expect_err("the disk is full");
    assert!(matches!(failed, Error::UnknownOutcome { .. }), "{failed}");
    for _ in 0..200 {
        let refused = store
            .txn(put("c", "1"))
            .await
            .expect_err("the disk is still full");
        assert!(
            matches!(refused, Error::Unavailable { .. } | Error::UnknownOutcome { .. }),
            "{refused}"
        );
    }
    let n_opened = n_opened.load(std::sync::atomic::Ordering::Relaxed);
    assert!(n_opened < 20, "opened {n_opened} times: it rests in between");
    let refused = store.get("a").await.expect_err("the file cannot be opened");
    assert!(refused.is_retryable(), "{refused}");
    disk.fill(false);
    let written = loop {
        match store.txn(put("d", "1")).await {
            Ok(written) => break written,
            Err(Error::Unavailable { .. }) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Err(error) => panic!("there is space again: {error}"),
        }
    };
    assert!(matches!(written, Outcome::Committed(revision) if revision >= Revision(2)));
    assert!(
        matches!(watch.next().await, Err(Error::Compacted { .. })),
        "watchers list anew"
    );
    assert!(store.get("a").await.expect("read").is_some() && store.get("d").await.expect("read").is_some());
}
