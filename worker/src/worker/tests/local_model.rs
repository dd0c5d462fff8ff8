//! Training and inference through a whole worker, on a model of two layers.

use std::collections::BTreeMap;

use llamaduo_proto::ids::AttemptId;
use llamaduo_proto::manifest::Manifest;
use llamaduo_proto::run::{
    Compute, InferSettings, LocalModelSpec, LoraTargets, LossOn, TrainFrom, TrainSettings,
};
use llamaduo_proto::task::{Answerer, InferOutput, InferTask, TrainTask};

use super::*;
use crate::testing::tiny_model;

pub(super) struct Local {
    pub(super) room: Room,
    pub(super) model: tempfile::TempDir,
}

async fn local() -> Local {
    let model = tempfile::tempdir().unwrap();
    tiny_model("llama_tied", model.path());
    Local {
        room: Room::new(LEASE, vec![]).await,
        model,
    }
}

impl Local {
    pub(super) fn spec(&self) -> LocalModelSpec {
        LocalModelSpec {
            reference: self.model.path().to_str().unwrap().to_owned(),
            quantization: Quantization::Nf4Double,
            compute: Compute::F32,
        }
    }

    pub(super) fn samples(&self, rows: &[(&str, &str)]) -> Digest {
        let samples: Vec<_> = rows
            .iter()
            .map(|(instruction, response)| sample(instruction, response))
            .collect();
        self.room.store(jsonl::write(&samples).unwrap().into_bytes())
    }

    /// A train task of `epochs` steps.
    pub(super) fn train_task(&self, epochs: u16) -> TaskSpec {
        let settings = TrainSettings {
            lora_rank: 4,
            lora_alpha: 8.0,
            lora_dropout: 0.1,
            lora_targets: LoraTargets::AllLinear,
            epochs: epochs.into(),
            learning_rate: 1e-3,
            warmup_ratio: 0.1,
            weight_decay: 0.0,
            gradient_norm_max: Some(1.0),
            batch_rows: 2,
            sequence_tokens_max: 64,
            loss_on: LossOn::WholeSequence,
            packing: false,
            checkpoint_steps: None,
            recompute: false,
            train_from: TrainFrom::Base,
        };
        TaskSpec::Train(TrainTask {
            cycle: Cycle(1),
            local_model: self.spec(),
            data: vec![self.samples(&[("one", "1")]), self.samples(&[("two", "2")])],
            settings,
            seed: 3,
            init_adapter: None,
        })
    }

    pub(super) fn infer_task(
        &self,
        answerer: Answerer,
        test: Digest,
        first_prompt: u32,
        n_prompts: u32,
    ) -> TaskSpec {
        let settings = InferSettings {
            responses_per_prompt: 2,
            temperature: 0.7,
            top_p: None,
            top_k: None,
            tokens_max: 8,
            prompts_per_task: n_prompts,
            batch_max: 4,
            min_p: Some(0.001),
            repetition_penalty: Some(1.1),
            stop: vec!["<|im_start|>".to_owned()],
            logprobs: true,
        };
        TaskSpec::Infer(InferTask {
            cycle: Cycle(1),
            answerer,
            test,
            first_prompt,
            n_prompts,
            settings,
            seed: 5,
        })
    }

    async fn begin(&self, task: &str, spec: TaskSpec, checkpoint: Option<Digest>) -> AttemptId {
        self.begin_halved(task, spec, checkpoint, 0).await
    }

    /// After `batch_halvings` attempts that ran out of memory.
    pub(super) async fn begin_halved(
        &self,
        task: &str,
        spec: TaskSpec,
        checkpoint: Option<Digest>,
        batch_halvings: u32,
    ) -> AttemptId {
        let attempt = attempt_id(task, 5);
        let assignment = Assignment {
            attempt: attempt.clone(),
            spec,
            checkpoint,
            batch_halvings,
        };
        let message = ToWorker::Assignment(Box::new(assignment));
        self.room.coordinator.send(message).await;
        attempt
    }

    pub(super) async fn outcome(&self, attempt: &AttemptId) -> AttemptOutcome {
        let coordinator = &self.room.coordinator;
        let is_it = |completion: &&Completion| completion.attempt == *attempt;
        coordinator
            .until("an end", |ledger| {
                ledger.completions.iter().any(|completion| is_it(&completion))
            })
            .await;
        let ledger = coordinator.ledger.lock().unwrap();
        ledger.completions.iter().find(is_it).unwrap().outcome.clone()
    }

    async fn done(&self, task: &str, spec: TaskSpec, checkpoint: Option<Digest>) -> TaskResult {
        match self.outcome(&self.begin(task, spec, checkpoint).await).await {
            AttemptOutcome::Done(result) => result,
            AttemptOutcome::Failed(failure) => panic!("{failure:?}"),
        }
    }

    async fn failed(&self, task: &str, spec: TaskSpec) -> AttemptFailure {
        match self.outcome(&self.begin(task, spec, None).await).await {
            AttemptOutcome::Done(result) => panic!("{result:?}"),
            AttemptOutcome::Failed(failure) => failure,
        }
    }

    fn bytes(&self, digest: Digest) -> Vec<u8> {
        self.room.coordinator.ledger.lock().unwrap().artifacts[&digest.to_string()].clone()
    }

    pub(super) fn files(&self, result: &TaskResult) -> BTreeMap<String, Digest> {
        let manifest: Manifest = serde_json::from_slice(&self.bytes(result.manifest)).unwrap();
        manifest.files
    }

    pub(super) fn responses(&self, output: &InferOutput) -> Vec<Response> {
        let text = String::from_utf8(self.bytes(output.responses)).unwrap();
        jsonl::read("responses", &text).unwrap()
    }
}

#[tokio::test]
async fn a_train_task_that_was_given_back_goes_on_elsewhere_to_the_same_adapter() {
    let mut local = local().await;
    let task = local.train_task(400);
    let undisturbed = local.done("c01-train-a", task.clone(), None).await;
    let TaskOutput::Train(output) = undisturbed.output else {
        panic!("{undisturbed:?}")
    };
    assert_eq!((output.n_samples, output.n_steps), (2, 400));
    assert!(output.loss_last < output.loss_first, "{output:?}");
    assert!(output.seconds > 0.0);

    let attempt = local.begin("c01-train-b", task.clone(), None).await;
    local
        .room
        .coordinator
        .until("a checkpoint in a heartbeat", |ledger| {
            let mut running = ledger.running.iter();
            running.any(|running| running.attempt == attempt && running.checkpoint.is_some())
        })
        .await;
    local.room.shutdown.cancel();
    local.room.ended().await.unwrap();
    let AttemptOutcome::Failed(failure) = local.outcome(&attempt).await else {
        panic!("not stopped in time")
    };
    assert_eq!(failure.kind, FailureKind::Released);
    let checkpoint = failure
        .checkpoint
        .expect("a checkpoint is given back with the task");
    assert!(
        !local.bytes(checkpoint).is_empty(),
        "and stored where the next worker finds it"
    );

    // Another machine: nothing of the first worker's disk is there.
    local.room.directory = tempfile::tempdir().unwrap();
    local.room.start().await;
    let resumed = local.done("c01-train-c", task, Some(checkpoint)).await;
    let TaskOutput::Train(resumed_output) = resumed.output else {
        panic!("{resumed:?}")
    };
    assert_eq!(local.files(&resumed), local.files(&undisturbed));
    assert_eq!(resumed_output.loss_first, output.loss_first);
}

#[tokio::test]
async fn a_worker_keeps_no_checkpoint_of_a_task_that_is_done() {
    let local = local().await;
    let trained = local.done("c01-train", local.train_task(3), None).await;
    let own = llamaduo_artifacts::Directory::open(local.room.directory.path().join("artifacts")).unwrap();
    let mut wanted: Vec<Digest> = local.files(&trained).into_values().collect();
    let TaskSpec::Train(task) = local.train_task(3) else {
        panic!()
    };
    wanted.extend(task.data);
    wanted.push(trained.manifest);
    wanted.sort_unstable();
    assert_eq!(own.list().unwrap(), wanted);
    let n_stored = local.room.coordinator.ledger.lock().unwrap().artifacts.len();
    assert!(
        n_stored > wanted.len(),
        "there were checkpoints, and they were told"
    );
}

#[tokio::test]
async fn responses_do_not_depend_on_how_prompts_are_cut_into_tasks() {
    let local = local().await;
    let trained = local.done("c01-train", local.train_task(3), None).await;
    let test = local.samples(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let (local_model, adapter) = (local.spec(), trained.manifest);
    let base = Answerer::Base {
        local_model: local_model.clone(),
    };
    for (name, answerer) in [
        ("base", base),
        ("adapter", Answerer::Adapter { local_model, adapter }),
    ] {
        let mut all = Vec::new();
        for (first, n) in [(0, 3), (0, 1), (1, 2)] {
            let task = local.infer_task(answerer.clone(), test, first, n);
            let result = local
                .done(&format!("c01-infer-{name}-{first}-{n}"), task, None)
                .await;
            let TaskOutput::Infer(output) = result.output else {
                panic!("{result:?}")
            };
            assert_eq!(output.n_responses, n * 2);
            all.push(local.responses(&output));
        }
        assert_eq!(all[0], [all[1].clone(), all[2].clone()].concat());
        let places: Vec<_> = all[0]
            .iter()
            .map(|response| (response.prompt_index, response.k))
            .collect();
        assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
        let of = |instruction, response| Some(sample(instruction, response).id());
        let (a, b, c) = (of("a", "1"), of("b", "2"), of("c", "3"));
        for response in &all[0] {
            let logprobs = response.logprobs.as_ref().unwrap();
            assert_eq!(logprobs.len() as u64, response.tokens);
            assert!(logprobs.iter().all(|&logprob| logprob < 0.0));
        }
        let samples: Vec<_> = all[0].iter().map(|response| response.sample).collect();
        assert_eq!(samples, [a, a, b, b, c, c]);
    }
}

#[tokio::test]
async fn what_cannot_succeed_says_why() {
    let local = local().await;
    let long = "long ".repeat(2_000);
    let test = local.samples(&[(&long, "1")]);
    let local_model = local.spec();
    let base = Answerer::Base { local_model };
    let too_long = local.infer_task(base.clone(), test, 0, 1);
    let failure = local.failed("c00-infer-a", too_long).await;
    assert_eq!(failure.kind, FailureKind::Permanent);
    assert!(failure.message.contains("prompt 0 of"), "{}", failure.message);

    let too_many = local.infer_task(base, test, 0, 2);
    let failure = local.failed("c00-infer-b", too_many).await;
    assert!(failure.message.contains("1 prompts in it"), "{}", failure.message);

    let TaskSpec::Train(train) = local.train_task(1) else {
        panic!()
    };
    let local_model = LocalModelSpec {
        reference: "/no/such/model".to_owned(),
        ..train.local_model.clone()
    };
    let missing = TaskSpec::Train(TrainTask { local_model, ..train });
    let failure = local.failed("c01-train-a", missing).await;
    assert_eq!(failure.kind, FailureKind::Retryable, "another worker may have it");
    assert!(
        failure.message.contains("/no/such/model (does not exist)"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_used_costs_its_steps_only() {
    let local = local().await;
    let fresh = local.done("c01-train-a", local.train_task(3), None).await;
    let garbage = local.room.store(vec![7; 100]);
    for (name, checkpoint) in [
        ("c01-train-b", garbage),
        ("c01-train-c", Digest::of(b"never stored")),
    ] {
        let again = local.done(name, local.train_task(3), Some(checkpoint)).await;
        assert_eq!(local.files(&again), local.files(&fresh));
    }
}
