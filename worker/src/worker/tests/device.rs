//! A worker whose model is on a card that fails. The driver is the stand-in.
//!
//! Invariant: one test at a time has the card, since a failure is the process's.

use llamaduo_proto::ids::AttemptId;
use llamaduo_proto::task::{Answerer, TrainTask};
use llamaduo_stand_in_driver::{fail_in_process, forget_faults, load, n_calls};
use tokio::sync::{Mutex, MutexGuard};

use super::local_model::Local;
use super::*;
use crate::testing::tiny_model;

/// The driver's codes.
const OUT_OF_MEMORY: i32 = 2;
const DEVICE_UNAVAILABLE: i32 = 46;
const ECC_UNCORRECTABLE: i32 = 214;
const LAUNCH_FAILED: i32 = 719;

/// The interpreter is slow, and slower beside other tests.
const PATIENCE: Duration = Duration::from_secs(300);

struct OnCard {
    local: Local,
    _alone: MutexGuard<'static, ()>,
}

async fn on_card() -> OnCard {
    static CARD: Mutex<()> = Mutex::const_new(());
    load().unwrap();
    let alone = CARD.lock().await;
    let model = tempfile::tempdir().unwrap();
    // one with heads that there are kernels for
    tiny_model("mistral", model.path());
    let room = Room::on(Device::Cuda(0), PATIENCE, vec![]).await;
    OnCard {
        local: Local { room, model },
        _alone: alone,
    }
}

impl OnCard {
    async fn outcome(&self, attempt: &AttemptId) -> AttemptOutcome {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let ledger = &self.local.room.coordinator.ledger;
            if ledger
                .lock()
                .unwrap()
                .completions
                .iter()
                .any(|end| end.attempt == *attempt)
            {
                return self.local.outcome(attempt).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the attempt does not end");
    }

    async fn done(
        &self,
        task: &str,
        spec: &TaskSpec,
        checkpoint: Option<Digest>,
        n_halvings: u32,
    ) -> TaskResult {
        let attempt = self
            .local
            .begin_halved(task, spec.clone(), checkpoint, n_halvings)
            .await;
        match self.outcome(&attempt).await {
            AttemptOutcome::Done(result) => result,
            AttemptOutcome::Failed(failure) => panic!("{failure:?}"),
        }
    }

    async fn failed(&self, task: &str, spec: &TaskSpec) -> AttemptFailure {
        let attempt = self.local.begin_halved(task, spec.clone(), None, 0).await;
        match self.outcome(&attempt).await {
            AttemptOutcome::Done(result) => panic!("{result:?}"),
            AttemptOutcome::Failed(failure) => failure,
        }
    }

    /// What `work` gives, and how many such calls it made.
    async fn counted<T>(&self, call: &str, work: impl Future<Output = T>) -> (T, u64) {
        let before = n_calls(call);
        let done = work.await;
        (done, n_calls(call) - before)
    }
}

#[tokio::test]
async fn a_card_that_fails_in_mid_run_is_opened_anew_and_training_goes_on() {
    let card = on_card().await;
    let task = card.local.train_task(4);
    // So that the second run, too, begins with the model on the card.
    card.done("c01-train-a", &task, None, 0).await;
    let (undisturbed, n_launches) = card
        .counted("launch", card.done("c01-train-b", &task, None, 0))
        .await;
    for (name, code) in [("c", ECC_UNCORRECTABLE), ("d", LAUNCH_FAILED)] {
        fail_in_process("launch", n_launches * 7 / 8, code);
        let failure = card.failed(&format!("c01-train-{name}"), &task).await;
        assert_eq!(forget_faults(), 0, "it struck");
        assert_eq!(failure.kind, FailureKind::Retryable, "{}", failure.message);
        assert!(failure.message.contains("opened anew"), "{}", failure.message);
        let checkpoint = failure.checkpoint.expect("the steps that were done are kept");
        let again = card
            .done(&format!("c01-train-{name}-again"), &task, Some(checkpoint), 0)
            .await;
        assert_eq!(card.local.files(&again), card.local.files(&undisturbed));
    }
}

#[tokio::test]
async fn a_card_that_stays_away_fails_attempts_until_it_is_back() {
    let card = on_card().await;
    let task = card.local.train_task(1);
    card.done("c01-train-a", &task, None, 0).await;
    fail_in_process("launch", 5, LAUNCH_FAILED);
    // the worker's own try, then the next attempt's
    fail_in_process("open", 1, DEVICE_UNAVAILABLE);
    fail_in_process("open", 2, DEVICE_UNAVAILABLE);
    let failure = card.failed("c01-train-b", &task).await;
    assert_eq!(failure.kind, FailureKind::Retryable, "{}", failure.message);
    let failure = card.failed("c01-train-c", &task).await;
    assert_eq!(forget_faults(), 0, "each of them struck");
    assert_eq!(failure.kind, FailureKind::Retryable, "{}", failure.message);
    assert!(
        failure.message.contains("opening the device"),
        "{}",
        failure.message
    );
    card.done("c01-train-d", &task, None, 0).await;
}

#[tokio::test]
async fn what_finds_no_memory_is_tried_with_less_and_comes_to_the_same() {
    let card = on_card().await;
    let task = card.local.train_task(1);
    let (undisturbed, n_allocations) = card
        .counted("allocate", card.done("c01-train-a", &task, None, 0))
        .await;
    // The model is on the card by now, so half of the calls lie within the training.
    fail_in_process("allocate", n_allocations / 4, OUT_OF_MEMORY);
    let failure = card.failed("c01-train-b", &task).await;
    assert_eq!(failure.kind, FailureKind::OutOfMemory, "{}", failure.message);
    assert!(failure.message.contains("no room for"), "{}", failure.message);
    let again = card.done("c01-train-c", &task, None, 1).await;
    assert_eq!(
        card.local.files(&again),
        card.local.files(&undisturbed),
        "only recomputed"
    );
    card.done("c01-train-d", &task, None, 3).await;

    let test = card.local.samples(&[("a", "1"), ("b", "2")]);
    let base = Answerer::Base {
        local_model: card.local.spec(),
    };
    let task = card.local.infer_task(base, test, 0, 2);
    let answers = |result: TaskResult| match result.output {
        TaskOutput::Infer(output) => card.local.responses(&output),
        _ => panic!("{result:?}"),
    };
    let undisturbed = answers(card.done("c01-infer-a", &task, None, 0).await);
    fail_in_process("allocate", 20, OUT_OF_MEMORY);
    let failure = card.failed("c01-infer-b", &task).await;
    assert_eq!(failure.kind, FailureKind::OutOfMemory, "{}", failure.message);
    assert_eq!(forget_faults(), 0);
    assert_eq!(
        answers(card.done("c01-infer-c", &task, None, 2).await),
        undisturbed
    );
}

#[tokio::test]
async fn training_that_leaves_the_finite_numbers_on_a_card_says_so() {
    let card = on_card().await;
    let TaskSpec::Train(task) = card.local.train_task(3) else {
        panic!()
    };
    let settings = llamaduo_proto::run::TrainSettings {
        learning_rate: 1e30,
        ..task.settings.clone()
    };
    let task = TaskSpec::Train(TrainTask { settings, ..task });
    let failure = card.failed("c01-train-a", &task).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(
        failure.message.contains("left the finite numbers"),
        "{}",
        failure.message
    );
}
