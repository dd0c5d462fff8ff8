//! Many calls at once, their answers in order.
//!
//! Invariant: after the first failure nothing new begins, and what has begun is waited for: it is being paid for.

use tokio::task::JoinSet;

use crate::error::Error;

/// Runs `calls`, at most `n_at_once` of them together; each is made when its turn comes.
pub(super) async fn in_order<T, F>(
    calls: impl IntoIterator<Item = F>,
    n_at_once: usize,
) -> Result<Vec<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let mut done: Vec<Option<T>> = Vec::new();
    let mut failure = None;
    let mut running = JoinSet::new();
    let mut waiting = calls.into_iter();
    loop {
        while running.len() < n_at_once.max(1) && failure.is_none() {
            let Some(call) = waiting.next() else { break };
            let idx = done.len();
            done.push(None);
            running.spawn(async move { (idx, call.await) });
        }
        match running.join_next().await {
            None => break,
            Some(Ok((idx, Ok(value)))) => {
                if let Some(place) = done.get_mut(idx) {
                    *place = Some(value);
                }
            }
            Some(Ok((_, Err(error)))) => failure = failure.or(Some(error)),
            Some(Err(_)) => failure = failure.or(Some(Error::Gone("call"))),
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(done.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn answers_are_in_order_and_few_at_once() {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let begin = |idx: usize| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(std::time::Duration::from_millis(20 - idx as u64)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(idx)
            }
        };
        assert_eq!(
            in_order((0..10).map(begin), 3).await.unwrap(),
            (0..10).collect::<Vec<_>>()
        );
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn after_a_failure_nothing_begins_and_what_began_ends() {
        let ended = Arc::new(AtomicUsize::new(0));
        let begin = |idx: usize| {
            let ended = Arc::clone(&ended);
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(10 * idx as u64)).await;
                ended.fetch_add(1, Ordering::SeqCst);
                if idx == 0 {
                    Err(Error::Gone("test"))
                } else {
                    Ok(idx)
                }
            }
        };
        assert!(matches!(
            in_order((0..100).map(begin), 4).await,
            Err(Error::Gone("test"))
        ));
        assert_eq!(ended.load(Ordering::SeqCst), 4);
    }
}
