//! A store whose transactions fail in every way that a real one's do: not applied, or applied and not confirmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::memory::Memory;
use crate::store::{Answer, Entry, Error, Outcome, Page, Revision, StateStore, Txn, Watch};

/// Fails about every third transaction, in an order decided by a seed.
#[derive(Debug)]
pub(super) struct Flaky {
    inner: Arc<Memory>,
    state: AtomicU64,
}

impl Flaky {
    pub(super) fn new(inner: Arc<Memory>, seed: u64) -> Self {
        Self {
            inner,
            state: AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    fn draw(&self) -> u64 {
        let step = |state: u64| {
            Some(
                state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407),
            )
        };
        let state = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step)
            .unwrap_or_default();
        (state >> 33) % 6
    }
}

impl StateStore for Flaky {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        self.inner.get(key)
    }

    fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Page> {
        self.inner.range(prefix, after, limit)
    }

    fn txn(&self, txn: Txn) -> Answer<'_, Outcome> {
        let unknown = || {
            Err(Error::UnknownOutcome {
                problem: "made up".to_owned(),
            })
        };
        match self.draw() {
            0 => Box::pin(async move { unknown() }),
            1 => Box::pin(async move {
                let _ = self.inner.txn(txn).await;
                unknown()
            }),
            _ => self.inner.txn(txn),
        }
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> Answer<'a, Watch> {
        self.inner.watch(prefix, from)
    }
}
