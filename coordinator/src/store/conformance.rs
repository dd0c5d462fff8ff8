//! What every store must do: one list of checks, run against each backend.

use super::{
    Batch, Change, Compare, Error, Op, Outcome, Revision, StateStore, TXN_BYTES_MAX, TXN_OPS_MAX, Txn,
    range_all,
};

/// Runs every check on a store of its own.
pub(super) async fn all<S: StateStore>(make: impl AsyncFn() -> S) {
    starts_empty(&make().await).await;
    puts_gets_and_deletes(&make().await).await;
    keeps_revisions(&make().await).await;
    refuses_when_a_compare_fails(&make().await).await;
    lets_one_of_many_claimers_win(&make().await).await;
    pages_through_a_prefix(&make().await).await;
    refuses_what_etcd_would_refuse(&make().await).await;
    takes_the_largest_transaction(&make().await).await;
    watches_from_the_past_into_the_present(&make().await).await;
    watches_one_prefix_only(&make().await).await;
    lists_and_then_watches_without_a_gap(&make().await).await;
    says_when_history_is_gone(&make().await).await;
}

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.to_owned(), value.as_bytes().to_vec())
}

fn delete(key: &str) -> Op {
    Op::Delete(key.to_owned())
}

fn absent(key: &str) -> Compare {
    Compare::Absent(key.to_owned())
}

async fn commit(store: &dyn StateStore, compares: Vec<Compare>, ops: Vec<Op>) -> Option<Revision> {
    match store.txn(Txn { compares, ops }).await.expect("the store answers") {
        Outcome::Committed(revision) => Some(revision),
        Outcome::Conflict => None,
    }
}

async fn value(store: &dyn StateStore, key: &str) -> Option<String> {
    let entry = store.get(key).await.expect("the store answers")?;
    Some(String::from_utf8(entry.value).expect("tests store text"))
}

async fn starts_empty(store: &dyn StateStore) {
    assert_eq!(value(store, "a").await, None);
    let page = store.range("", None, 10).await.expect("the store answers");
    assert_eq!(
        (page.entries.len(), page.more, page.revision),
        (0, false, Revision(0))
    );
}

async fn puts_gets_and_deletes(store: &dyn StateStore) {
    commit(store, vec![], vec![put("a", "1"), put("b", "2")])
        .await
        .expect("no compares");
    assert_eq!(value(store, "a").await.as_deref(), Some("1"));
    commit(store, vec![], vec![delete("a"), put("b", "3"), delete("never")])
        .await
        .expect("no compares");
    assert_eq!(value(store, "a").await, None);
    assert_eq!(value(store, "b").await.as_deref(), Some("3"));
}

async fn keeps_revisions(store: &dyn StateStore) {
    let first = commit(store, vec![], vec![put("a", "1"), put("b", "1")])
        .await
        .expect("no compares");
    let second = commit(store, vec![], vec![put("a", "2")])
        .await
        .expect("no compares");
    assert!(second > first, "revisions grow");
    let a = store.get("a").await.expect("the store answers").expect("written");
    assert_eq!((a.created, a.modified), (first, second));
    let b = store.get("b").await.expect("the store answers").expect("written");
    assert_eq!(
        (b.created, b.modified),
        (first, first),
        "one revision for the whole transaction"
    );
    commit(store, vec![], vec![delete("a")])
        .await
        .expect("no compares");
    let again = commit(store, vec![], vec![put("a", "3")])
        .await
        .expect("no compares");
    let a = store.get("a").await.expect("the store answers").expect("written");
    assert_eq!(a.created, again, "a key made again is a new key");
}

async fn refuses_when_a_compare_fails(store: &dyn StateStore) {
    let first = commit(store, vec![absent("a")], vec![put("a", "1")])
        .await
        .expect("it is absent");
    assert_eq!(commit(store, vec![absent("a")], vec![put("a", "2")]).await, None);
    let modified = |revision| Compare::Modified("a".to_owned(), revision);
    assert_eq!(
        commit(store, vec![modified(Revision(first.0 + 7))], vec![delete("a")]).await,
        None
    );
    let nothing = Compare::Modified("nothing".to_owned(), first);
    assert_eq!(
        commit(store, vec![modified(first), nothing], vec![put("b", "1")]).await,
        None
    );
    assert_eq!(
        (value(store, "a").await.as_deref(), value(store, "b").await),
        (Some("1"), None),
        "nothing changed"
    );
    commit(store, vec![modified(first), absent("b")], vec![put("a", "2")])
        .await
        .expect("both hold");
    assert_eq!(
        commit(store, vec![modified(first)], vec![put("a", "3")]).await,
        None,
        "the revision moved on"
    );
}

async fn lets_one_of_many_claimers_win(store: &dyn StateStore) {
    let names: Vec<String> = (0..32).map(|claimer| claimer.to_string()).collect();
    let claims = names
        .iter()
        .map(|name| commit(store, vec![absent("claim")], vec![put("claim", name)]));
    let mut winners = Vec::new();
    for (name, claim) in names.iter().zip(join_all(claims).await) {
        winners.extend(claim.map(|_| name.clone()));
    }
    assert_eq!(winners.len(), 1, "{winners:?} all won");
    assert_eq!(
        value(store, "claim").await.as_deref(),
        winners.first().map(String::as_str)
    );
}

/// Polls all futures side by side on this task.
async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut futures {
            if output.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *output = Some(value);
            }
        }
        match futures.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

async fn pages_through_a_prefix(store: &dyn StateStore) {
    let ops = ["r/1", "r/2", "r/3", "r", "r0", "q/9", "r/2/x"]
        .map(|key| put(key, key))
        .to_vec();
    commit(store, vec![], ops).await.expect("no compares");
    let keys = |page: &super::Page| {
        page.entries
            .iter()
            .map(|entry| entry.key.clone())
            .collect::<Vec<_>>()
    };
    let first = store.range("r/", None, 2).await.expect("the store answers");
    assert_eq!(
        (keys(&first), first.more),
        (vec!["r/1".to_owned(), "r/2".to_owned()], true)
    );
    let second = store
        .range("r/", Some("r/2"), 2)
        .await
        .expect("the store answers");
    assert_eq!(
        (keys(&second), second.more),
        (vec!["r/2/x".to_owned(), "r/3".to_owned()], false)
    );
    let (entries, revision) = range_all(store, "r/").await.expect("the store answers");
    assert_eq!((entries.len(), revision), (4, first.revision));
}

async fn refuses_what_etcd_would_refuse(store: &dyn StateStore) {
    let many = |n: usize| (0..n).map(|i| put(&format!("k{i}"), "v")).collect::<Vec<_>>();
    let refused = store
        .txn(Txn {
            compares: vec![],
            ops: many(TXN_OPS_MAX + 1),
        })
        .await;
    assert!(matches!(refused, Err(Error::TooManyOps { found }) if found == TXN_OPS_MAX + 1));
    let compares = (0..=TXN_OPS_MAX).map(|i| absent(&format!("k{i}"))).collect();
    assert!(matches!(
        store
            .txn(Txn {
                compares,
                ops: vec![]
            })
            .await,
        Err(Error::TooManyOps { .. })
    ));
    let large = Op::Put("large".to_owned(), vec![b'x'; TXN_BYTES_MAX]);
    assert!(matches!(
        store
            .txn(Txn {
                compares: vec![],
                ops: vec![large]
            })
            .await,
        Err(Error::TooLarge { .. })
    ));
    let twice = store
        .txn(Txn {
            compares: vec![],
            ops: vec![put("a", "1"), delete("a")],
        })
        .await;
    assert!(matches!(twice, Err(Error::KeyTwice { key }) if key == "a"));
    let page = store.range("", None, 1).await.expect("the store answers");
    assert_eq!(page.revision, Revision(0), "nothing was applied");
}

async fn takes_the_largest_transaction(store: &dyn StateStore) {
    let ops = (0..TXN_OPS_MAX)
        .map(|i| Op::Put(format!("k{i:03}"), vec![b'x'; 12_000]))
        .collect();
    commit(store, vec![], ops).await.expect("it is within the limits");
    let (entries, _) = range_all(store, "k").await.expect("the store answers");
    assert_eq!(entries.len(), TXN_OPS_MAX);
}

async fn watches_from_the_past_into_the_present(store: &dyn StateStore) {
    for i in 0..10 {
        commit(store, vec![], vec![put("k", &i.to_string())])
            .await
            .expect("no compares");
    }
    let mut watch = store.watch("k", Revision(4)).await.expect("history is kept");
    for i in 10..20 {
        commit(store, vec![], vec![put("k", &i.to_string())])
            .await
            .expect("no compares");
    }
    for revision in 4..=20_u64 {
        let Batch {
            revision: seen,
            changes,
        } = watch.next().await.expect("no gap");
        assert_eq!(seen, Revision(revision));
        let [Change::Put(entry)] = changes.as_slice() else {
            panic!("one put, not {changes:?}")
        };
        assert_eq!(entry.value, (revision - 1).to_string().into_bytes());
    }
}

async fn watches_one_prefix_only(store: &dyn StateStore) {
    let mut watch = store.watch("a/", Revision(1)).await.expect("history is kept");
    commit(store, vec![], vec![put("b/1", "no")])
        .await
        .expect("no compares");
    commit(store, vec![], vec![put("a/1", "yes"), put("b/2", "no")])
        .await
        .expect("no compares");
    commit(store, vec![], vec![delete("a/1"), delete("a/never")])
        .await
        .expect("no compares");
    let first = watch.next().await.expect("no gap");
    assert_eq!(first.changes.iter().map(Change::key).collect::<Vec<_>>(), ["a/1"]);
    let second = watch.next().await.expect("no gap");
    assert_eq!(second.changes, [Change::Delete("a/1".to_owned())]);
}

async fn lists_and_then_watches_without_a_gap(store: &dyn StateStore) {
    const N: usize = 60;
    let write = async {
        for i in 0..N {
            let key = format!("k/{i:03}");
            commit(store, vec![], vec![put(&key, "v")])
                .await
                .expect("no compares");
        }
    };
    let read = async {
        // Lists anew after each change that it is told of, until all are there: whatever is listed comes in no batch, and
        // whatever is not listed comes in one.
        for n_listed_min in 0..N {
            let page = store.range("k/", None, N).await.expect("the store answers");
            let n_listed = page.entries.len();
            assert!(n_listed_min <= n_listed && n_listed as u64 == page.revision.0);
            if n_listed == N {
                return;
            }
            let next = Revision(page.revision.0 + 1);
            let mut watch = store.watch("k/", next).await.expect("history is kept");
            assert_eq!(watch.next().await.expect("no gap").revision, next);
        }
    };
    tokio::join!(write, read);
}

async fn says_when_history_is_gone(store: &dyn StateStore) {
    commit(store, vec![], vec![put("k", "0")])
        .await
        .expect("no compares");
    let mut slow = store.watch("k", Revision(1)).await.expect("history is kept");
    for i in 0..3_000 {
        commit(store, vec![], vec![put("k", &i.to_string())])
            .await
            .expect("no compares");
    }
    let mut seen = 0;
    let end = loop {
        match slow.next().await {
            Ok(batch) => {
                assert_eq!(batch.revision.0, seen + 1, "no silent gap");
                seen = batch.revision.0;
            }
            Err(error) => break error,
        }
        assert!(
            seen <= 3_001,
            "a watcher this slow is told to list anew, or sees all"
        );
        if seen == 3_001 {
            return;
        }
    };
    assert!(matches!(end, Error::Compacted { .. }), "{end}");
}
