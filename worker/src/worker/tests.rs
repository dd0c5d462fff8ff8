use std::path::Path;

use llamaduo_data::{Message, Provenance, Response, Role, Sample, jsonl};
use llamaduo_proto::Digest;
use llamaduo_proto::ids::Cycle;
use llamaduo_proto::run::{JudgeSettings, Quantization, Subject, SynthesisSettings};
use llamaduo_proto::session::ToWorker;
use llamaduo_proto::task::{FailureKind, JudgeTask, SynthesizeTask, TaskOutput, TaskSpec};
use tonic::Status;

use super::*;
use crate::testing::{Answer, ScriptedCoordinator, ScriptedServer, attempt_id, service};

#[cfg(target_os = "linux")] // where the loader finds a library that is already there by its name
mod device;
mod local_model;
mod namesakes;

const VERDICT: &str = r#"{"similarity_assessment": {"score": 80, "reason": "a"}, "precision_assessment": {"score": 70, "reason": "b"}}"#;

/// Long enough that nothing expires by itself.
const LEASE: Duration = Duration::from_secs(15);

/// A worker in the background, with what it works against.
struct Room {
    coordinator: ScriptedCoordinator,
    server: ScriptedServer,
    directory: tempfile::TempDir,
    shutdown: CancellationToken,
    worker: JoinSet<Result<(), Error>>,
    device: Device,
}

impl Room {
    async fn new(lease: Duration, answers: Vec<Answer>) -> Self {
        Self::on(Device::Cpu, lease, answers).await
    }

    async fn on(device: Device, lease: Duration, answers: Vec<Answer>) -> Self {
        let coordinator = ScriptedCoordinator::start(lease).await;
        let server = ScriptedServer::start(answers).await;
        let directory = tempfile::tempdir().unwrap();
        let mut room = Self {
            coordinator,
            server,
            directory,
            shutdown: CancellationToken::new(),
            worker: JoinSet::new(),
            device,
        };
        room.start().await;
        room
    }

    async fn start(&mut self) {
        let n_before = self.coordinator.ledger.lock().unwrap().hellos.len();
        self.shutdown = CancellationToken::new();
        let options = Options {
            device: self.device,
            ..options(&self.coordinator.url, self.directory.path())
        };
        self.worker.spawn(run(options, self.shutdown.clone()));
        self.coordinator
            .until("hello", |ledger| ledger.hellos.len() > n_before)
            .await;
    }

    async fn ended(&mut self) -> Result<(), Error> {
        self.worker.join_next().await.unwrap().unwrap()
    }

    fn store(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.coordinator.change(|ledger| {
            ledger.artifacts.insert(digest.to_string(), bytes);
        });
        digest
    }

    /// A judge task over one prompt and one response, graded `n_gradings` times.
    fn judge_task(&self, n_gradings: u32) -> TaskSpec {
        let test = self.store(jsonl::write(&[sample("q", "a")]).unwrap().into_bytes());
        let response = Response {
            prompt_index: 0,
            sample: None,
            k: 0,
            text: "x".to_owned(),
            tokens: 1,
            complete: true,
            logprobs: None,
            call: None,
        };
        let responses = self.store(jsonl::write(&[response]).unwrap().into_bytes());
        TaskSpec::Judge(JudgeTask {
            cycle: Cycle(0),
            subject: Some(Subject::Base(Quantization::None)),
            judge_llm: service(&self.server.url),
            test,
            responses,
            settings: JudgeSettings {
                gradings_per_response: n_gradings,
                prompt: None,
            },
        })
    }

    async fn assign(&self, task: &str, spec: TaskSpec) {
        let assignment = Assignment {
            attempt: attempt_id(task, 5),
            spec,
            checkpoint: None,
            batch_halvings: 0,
        };
        self.coordinator
            .send(ToWorker::Assignment(Box::new(assignment)))
            .await;
    }

    /// How the first attempt ended.
    async fn outcome(&self) -> AttemptOutcome {
        self.coordinator
            .until("an end", |ledger| !ledger.completions.is_empty())
            .await;
        let ledger = self.coordinator.ledger.lock().unwrap();
        ledger.completions[0].outcome.clone()
    }

    async fn failure(&self) -> AttemptFailure {
        match self.outcome().await {
            AttemptOutcome::Failed(failure) => failure,
            AttemptOutcome::Done(result) => panic!("{result:?}"),
        }
    }

    async fn result(&self) -> TaskResult {
        match self.outcome().await {
            AttemptOutcome::Done(result) => result,
            AttemptOutcome::Failed(failure) => panic!("{failure:?}"),
        }
    }
}

fn options(url: &str, directory: &Path) -> Options {
    let id = WorkerId::new("w1").unwrap();
    Options {
        local_model_slots: 1,
        threads: Some(1),
        shutdown_grace: Duration::from_secs(5),
        ..Options::new(url, id, directory.to_owned()).unwrap()
    }
}

fn sample(instruction: &str, response: &str) -> Sample {
    let messages = vec![
        Message::new(Role::User, instruction),
        Message::new(Role::Assistant, response),
    ];
    Sample::new(messages, Provenance::Coverage { line: 1 }).unwrap()
}

#[tokio::test]
async fn a_judge_task_goes_from_assignment_to_result() {
    let answers = vec![
        Answer::says(VERDICT),
        Answer::says("no idea"),
        Answer::says(VERDICT),
    ];
    let mut room = Room::new(LEASE, answers).await;
    room.assign("c00-judge-000", room.judge_task(3)).await;
    let result = room.result().await;
    let TaskOutput::Judge(output) = result.output else {
        panic!("{result:?}")
    };
    assert_eq!((output.n_graded, output.n_unparsed), (2, 1));
    room.coordinator.change(|ledger| {
        for digest in [result.manifest, output.verdicts] {
            assert!(ledger.artifacts.contains_key(&digest.to_string()));
        }
    });
    room.coordinator
        .until("an empty heartbeat", |ledger| ledger.running.is_empty())
        .await;
    room.shutdown.cancel();
    room.ended().await.unwrap();
    room.coordinator
        .until("a goodbye", |ledger| ledger.goodbyes == 1)
        .await;
}

#[tokio::test]
async fn a_synthesize_task_keeps_what_is_malformed() {
    let reply = r#"{"contents": [{"instruction": "q2", "response": "a2"}, {"instruction": "q3"}]}"#;
    let room = Room::new(LEASE, vec![Answer::says(reply)]).await;
    let train = room.store(jsonl::write(&[sample("q", "a")]).unwrap().into_bytes());
    let settings = SynthesisSettings {
        samples_per_cycle: 2,
        pairs_per_call: 2,
        examples_per_call: 1,
        calls_per_task: 1,
        prompt: None,
        curation: llamaduo_proto::run::CurationSettings::default(),
    };
    let spec = TaskSpec::Synthesize(SynthesizeTask {
        cycle: Cycle(1),
        service_llm: service(&room.server.url),
        train,
        first_call: 0,
        n_calls: 1,
        settings,
        topic: "tickets".to_owned(),
        seed: 1,
    });
    room.assign("c01-synthesize-000", spec).await;
    let result = room.result().await;
    let TaskOutput::Synthesize(output) = result.output else {
        panic!("{result:?}")
    };
    assert_eq!((output.n_raw, output.n_malformed), (2, 1));
    room.coordinator.change(|ledger| {
        let samples = String::from_utf8(ledger.artifacts[&output.samples.to_string()].clone()).unwrap();
        assert!(
            samples.contains(&sample("q", "a").id().to_string()),
            "the example is named as a parent"
        );
    });
}

#[tokio::test]
async fn a_refused_key_and_a_missing_artifact_end_attempts_by_name() {
    let room = Room::new(LEASE, vec![Answer::new(401, "{}")]).await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    assert_eq!(room.failure().await.kind, FailureKind::ServiceRefused);

    let room = Room::new(LEASE, vec![]).await;
    let TaskSpec::Judge(judge) = room.judge_task(1) else {
        panic!()
    };
    room.assign(
        "c00-judge-000",
        TaskSpec::Judge(JudgeTask {
            test: Digest::of(b"nothing"),
            ..judge
        }),
    )
    .await;
    let failure = room.failure().await;
    assert_eq!(failure.kind, FailureKind::CorruptInput);
    assert!(
        failure.message.contains(&Digest::of(b"nothing").to_string()),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn a_coordinator_that_comes_back_within_the_lease_finds_the_attempt_running() {
    let mut room = Room::new(
        LEASE,
        vec![Answer::says(VERDICT).after(Duration::from_millis(800))],
    )
    .await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("the attempt in a heartbeat", |ledger| ledger.running.len() == 1)
        .await;
    room.coordinator.kill().await;
    room.coordinator.revive().await;
    room.coordinator
        .until("a second hello", |ledger| ledger.hellos.len() == 2)
        .await;
    room.coordinator
        .until("an end", |ledger| !ledger.completions.is_empty())
        .await;
    room.coordinator.change(|ledger| {
        assert_eq!(ledger.hellos[1].running.len(), 1);
        assert_eq!(ledger.hellos[0].incarnation, ledger.hellos[1].incarnation);
        assert!(
            matches!(ledger.completions[0].outcome, AttemptOutcome::Done(_)),
            "{ledger:?}"
        );
    });
    assert_eq!(
        room.server.asked().len(),
        1,
        "what was paid for is not asked again"
    );
}

#[tokio::test]
async fn an_attempt_stops_itself_when_its_lease_is_not_renewed() {
    let lease = Duration::from_millis(600);
    let begun = std::time::Instant::now();
    let slow = Answer::new(429, "{}").with("retry-after", "60");
    let room = Room::new(lease, vec![slow]).await;
    room.coordinator.change(|ledger| ledger.silent = true);
    room.assign("c00-judge-000", room.judge_task(1)).await;
    let failure = room.failure().await;
    assert_eq!(failure.kind, FailureKind::LeaseExpired, "{}", failure.message);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_revoked_attempt_stops_and_leaves_nothing() {
    let room = Room::new(LEASE, vec![Answer::new(429, "{}").with("retry-after", "60")]).await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("the attempt in a heartbeat", |ledger| ledger.running.len() == 1)
        .await;
    room.coordinator
        .change(|ledger| ledger.revoke_on_ack.push(attempt_id("c00-judge-000", 5).into()));
    room.coordinator
        .until("an empty heartbeat", |ledger| ledger.running.is_empty())
        .await;
    room.coordinator
        .change(|ledger| assert!(ledger.completions.is_empty(), "{ledger:?}"));
}

#[tokio::test]
async fn a_cancelled_attempt_says_so() {
    let room = Room::new(LEASE, vec![Answer::new(429, "{}").with("retry-after", "60")]).await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    let cancel = ToWorker::Cancel {
        attempt: attempt_id("c00-judge-000", 5),
        reason: "by hand".to_owned(),
    };
    room.coordinator.send(cancel).await;
    let failure = room.failure().await;
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!(failure.message.contains("by hand"), "{}", failure.message);
}

#[tokio::test]
async fn a_shutdown_gives_the_attempt_back_and_says_goodbye() {
    let mut room = Room::new(LEASE, vec![Answer::new(429, "{}").with("retry-after", "60")]).await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("the attempt in a heartbeat", |ledger| ledger.running.len() == 1)
        .await;
    room.shutdown.cancel();
    room.ended().await.unwrap();
    assert_eq!(room.failure().await.kind, FailureKind::Released);
    room.coordinator
        .until("a goodbye", |ledger| ledger.goodbyes == 1)
        .await;
}

#[tokio::test]
async fn a_drained_worker_finishes_what_runs_and_ends() {
    let mut room = Room::new(
        LEASE,
        vec![Answer::says(VERDICT).after(Duration::from_millis(300))],
    )
    .await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("the attempt in a heartbeat", |ledger| ledger.running.len() == 1)
        .await;
    room.coordinator.send(ToWorker::Drain).await;
    room.ended().await.unwrap();
    room.coordinator.change(|ledger| {
        assert!(
            matches!(ledger.completions[0].outcome, AttemptOutcome::Done(_)),
            "{ledger:?}"
        );
    });
}

#[tokio::test]
async fn an_end_is_told_again_until_it_is_taken_even_by_the_next_process() {
    let mut room = Room::new(LEASE, vec![Answer::new(401, "{}")]).await;
    room.coordinator
        .change(|ledger| ledger.refusals = vec![Status::unavailable("not yet"); 1000]);
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("tries", |ledger| ledger.refusals.len() < 997)
        .await;
    // As if killed: nothing is told any more, and nobody says goodbye.
    room.worker.shutdown().await;
    room.coordinator.change(|ledger| {
        assert!(ledger.completions.is_empty());
        ledger.refusals.truncate(2);
    });
    room.start().await;
    room.coordinator.change(|ledger| {
        assert_eq!(
            ledger.completions.len(),
            1,
            "told before the hello, which gives up the old process's leases"
        );
        let hello = ledger.hellos.last().unwrap();
        assert_eq!(hello.running, []);
        assert_ne!(hello.incarnation, ledger.hellos[0].incarnation);
    });
}

#[tokio::test]
async fn an_end_that_is_refused_for_good_is_let_go() {
    let room = Room::new(LEASE, vec![Answer::new(401, "{}")]).await;
    // The first answers the call's end, the second the attempt's.
    room.coordinator.change(|ledger| {
        ledger.refusals = vec![
            Status::failed_precondition("STALE_TOKEN"),
            Status::failed_precondition("STALE_TOKEN"),
        ];
    });
    room.assign("c00-judge-000", room.judge_task(1)).await;
    room.coordinator
        .until("both refused", |ledger| ledger.refusals.is_empty())
        .await;
    room.coordinator
        .until("an empty heartbeat", |ledger| ledger.running.is_empty())
        .await;
    let spool = Spool::open(&room.directory.path().join("spool")).unwrap();
    assert_eq!(spool.names().unwrap(), []);
}

#[tokio::test]
async fn a_worker_that_is_refused_ends_with_the_reason() {
    let coordinator = ScriptedCoordinator::start(LEASE).await;
    coordinator.change(|ledger| ledger.refuse_attach = Some(Status::unauthenticated("unknown token")));
    let directory = tempfile::tempdir().unwrap();
    let error = run(
        options(&coordinator.url, directory.path()),
        CancellationToken::new(),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("unknown token"), "{error}");
}

#[tokio::test]
async fn options_are_checked_first() {
    let directory = tempfile::tempdir().unwrap();
    let base = options("http://127.0.0.1:1", directory.path());
    for wrong in [
        Options {
            service_slots: 0,
            local_model_slots: 0,
            ..base.clone()
        },
        Options {
            local_model_slots: 1,
            service_slots: 800,
            ..base.clone()
        },
        Options {
            threads: Some(0),
            ..base.clone()
        },
        Options {
            coordinator_url: "not a url".to_owned(),
            ..base
        },
    ] {
        assert!(matches!(
            run(wrong, CancellationToken::new()).await,
            Err(Error::Options { .. })
        ));
    }
}

#[tokio::test]
async fn a_worker_that_is_refused_later_keeps_what_it_is_paying_for() {
    let answer = Answer::says(VERDICT).after(Duration::from_secs(1));
    let mut room = Room::new(LEASE, vec![answer]).await;
    room.assign("c00-judge-000", room.judge_task(1)).await;
    while room.server.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    room.coordinator.change(|ledger| {
        ledger.refuse_attach = Some(Status::failed_precondition("another process has this name"));
    });
    room.coordinator.kill().await;
    room.coordinator.revive().await;
    let error = room.ended().await.unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    let is_paid = |entry: &Entry| matches!(entry, Entry::Call(call) if matches!(call.outcome, llamaduo_proto::session::CallOutcome::Answered(_)));
    let spool = Spool::open(&room.directory.path().join("spool")).unwrap();
    let spooled = spool.names().unwrap();
    let mut left = spooled
        .iter()
        .filter_map(|name| spool.read(name).unwrap())
        .collect::<Vec<_>>();
    room.coordinator
        .change(|ledger| left.extend(ledger.ended_calls.iter().cloned().map(Entry::Call)));
    assert!(left.iter().any(is_paid), "{left:?}");
}
