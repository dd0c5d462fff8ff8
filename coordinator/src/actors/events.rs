//! Watching a run: what happened, then what happens.
//!
//! Invariant: a watcher gets every durable event from its first on exactly once and in order, however slow it is and
//! whatever the store forgets meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use llamaduo_proto::event::RunEvent;
use llamaduo_proto::ids::RunId;
use tokio::sync::broadcast;

use super::Shared;
use super::commit::{self, decode};
use crate::machine::Head;
use crate::store::{self, Change, RANGE_ENTRIES_MAX, Revision, Watch, keys};

/// One watcher of one run.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    run: RunId,
    next_seq: u64,
    /// Read and not handed out yet.
    backlog: VecDeque<RunEvent>,
    /// `None` while the past is being read.
    live: Option<Watch>,
    progress: Option<broadcast::Receiver<RunEvent>>,
}

impl Watcher {
    /// From event `from_seq` on (0 is 1), with or without progress.
    pub(crate) fn new(shared: Arc<Shared>, run: RunId, from_seq: u64, progress: bool) -> Self {
        let progress = progress.then(|| shared.progress.subscribe());
        Self {
            shared,
            run,
            next_seq: from_seq.max(1),
            backlog: VecDeque::new(),
            live: None,
            progress,
        }
    }

    /// The next event; `None` once the run has ended and everything was handed out.
    pub(crate) async fn next(&mut self) -> Result<Option<RunEvent>, commit::Error> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                if event.seq < self.next_seq {
                    continue;
                }
                self.next_seq = event.seq + 1;
                return Ok(Some(event));
            }
            if self.live.is_none() {
                self.read_on().await?;
                continue;
            }
            if self.is_over().await? {
                return Ok(None);
            }
            if let Some(progress) = self.wait().await? {
                return Ok(Some(progress));
            }
        }
    }

    /// Reads the next page of the past; after the last page, watches from the revision it was read at.
    async fn read_on(&mut self) -> Result<(), commit::Error> {
        let prefix = keys::events(&self.run);
        let after = keys::event(&self.run, self.next_seq - 1);
        let page = self
            .shared
            .store
            .range(&prefix, Some(&after), RANGE_ENTRIES_MAX)
            .await?;
        for entry in &page.entries {
            self.backlog.push_back(decode(entry)?);
        }
        if !page.more {
            let watched = self
                .shared
                .store
                .watch(&prefix, Revision(page.revision.0 + 1))
                .await;
            self.live = unless_compacted(watched)?;
        }
        Ok(())
    }

    /// Waits for durable events, which it puts into the backlog, or returns one of progress.
    async fn wait(&mut self) -> Result<Option<RunEvent>, commit::Error> {
        let Some(live) = &mut self.live else {
            return Ok(None);
        };
        let batch = match &mut self.progress {
            None => live.next().await,
            Some(progress) => tokio::select! {
                batch = live.next() => batch,
                event = progress.recv() => {
                    // A watcher that lags misses some progress, which is not kept anyway.
                    return Ok(event.ok().filter(|event| event.run == self.run));
                }
            },
        };
        let Some(batch) = unless_compacted(batch)? else {
            self.live = None;
            return Ok(None);
        };
        for change in &batch.changes {
            if let Change::Put(entry) = change {
                self.backlog.push_back(decode(entry)?);
            }
        }
        Ok(None)
    }

    /// Whether the run has ended and its last event was handed out.
    async fn is_over(&self) -> Result<bool, commit::Error> {
        let Some(entry) = self.shared.store.get(&keys::head(&self.run)).await? else {
            return Ok(true);
        };
        let head: Head = decode(&entry)?;
        Ok(head.status != llamaduo_proto::run::RunStatus::Running && head.n_events < self.next_seq)
    }
}

fn unless_compacted<T>(answer: Result<T, store::Error>) -> Result<Option<T>, store::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(store::Error::Compacted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
