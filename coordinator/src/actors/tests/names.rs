//! Whose name is whose while streams break and coordinators restart.

use super::*;

impl Coordinator {
    async fn tell(&self, message: Message) {
        self.scheduler.send(message).await.expect("it runs");
    }

    /// When the name is free that another directory asks for; `None` where it gets it.
    async fn free_in(&self, name: &str) -> Option<Duration> {
        match self.attach_from("elsewhere", name, 9, vec![]).await {
            Ok(_) => None,
            Err(AttachError::NameTaken { free_in, .. }) => Some(free_in),
            Err(error) => panic!("{error}"),
        }
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_frees_no_name_before_a_lease_of_silence() {
    let coordinator = Coordinator::start(Arc::new(Memory::new()));
    let worker = coordinator.attach("w1", 1, vec![]).await;
    coordinator.tell(Message::Detached { session: worker.id }).await;
    tokio::time::sleep(seconds(10)).await;
    assert_eq!(coordinator.free_in("w1").await, Some(seconds(5)));
    // From its own directory it comes back at any time, as a new process too.
    let worker = coordinator.attach("w1", 2, vec![]).await;
    coordinator.tell(Message::Detached { session: worker.id }).await;
    tokio::time::sleep(seconds(14)).await;
    assert_eq!(coordinator.free_in("w1").await, Some(seconds(1)));
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(coordinator.free_in("w1").await, None);
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_reads_nothing_loses_its_session_but_not_its_name() {
    let coordinator = Coordinator::start(Arc::new(Memory::new()));
    let worker = coordinator.attach("w1", 1, vec![]).await;
    drop(worker.inbox);
    let (reply, answer) = oneshot::channel();
    let name = worker.id.worker.clone();
    coordinator.tell(Message::Drain { worker: name, reply }).await;
    assert!(answer.await.expect("it answers"));
    assert_eq!(coordinator.free_in("w1").await, Some(seconds(15)));
    coordinator.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_coordinator_gives_no_name_away() {
    let store: Arc<dyn StateStore> = Arc::new(Memory::new());
    let first = Coordinator::start(Arc::clone(&store));
    let _stays = first.attach("stays", 1, vec![]).await;
    let leaves = first.attach("leaves", 1, vec![]).await;
    first.tell(Message::Left { session: leaves.id }).await;
    let _gone = first.attach("gone", 1, vec![]).await;
    first.stop().await;
    let second = Coordinator::start(Arc::clone(&store));
    assert_eq!(second.free_in("leaves").await, None, "it said goodbye");
    assert_eq!(second.free_in("stays").await, Some(seconds(15)));
    let stays = second.attach("stays", 1, vec![]).await;
    // Nobody comes for the other.
    tokio::time::sleep(seconds(16)).await;
    second.tell(Message::Heard { session: stays.id }).await;
    let kept = range_all(&*store, keys::WORKERS)
        .await
        .expect("the store answers")
        .0;
    let kept: Vec<&str> = kept.iter().map(|entry| keys::last_part(&entry.key)).collect();
    assert_eq!(kept, ["leaves", "stays"], "and the other name is free");
    assert_eq!(second.free_in("gone").await, None);
    second.stop().await;
}
