use std::time::Duration;

use super::*;
use crate::coordinator::Address;
use crate::link::Registry;
use crate::service_llm::Services;
use crate::testing::{Answer as Scripted, ScriptedCoordinator, ScriptedServer, attempt_id, service};

struct Room {
    coordinator: ScriptedCoordinator,
    server: ScriptedServer,
    calls: PaidCalls,
    attempt: Arc<AttemptHandle>,
    spec: ServiceLlmSpec,
    service: LimitedClient,
    spool: Arc<Spool>,
    _directory: tempfile::TempDir,
}

async fn room(answers: impl IntoIterator<Item = Scripted>) -> Room {
    let coordinator = ScriptedCoordinator::start(Duration::from_secs(15)).await;
    let server = ScriptedServer::start(answers).await;
    let directory = tempfile::tempdir().unwrap();
    let client = Address::new(&coordinator.url, None).unwrap().client();
    let artifacts = Artifacts::remote(&directory.path().join("artifacts"), client.clone()).unwrap();
    let spool = Arc::new(Spool::open(&directory.path().join("spool")).unwrap());
    let calls = PaidCalls::new(
        client,
        artifacts,
        Arc::clone(&spool),
        PriceBook::builtin().unwrap(),
    );
    let attempt = Registry::new()
        .begin(attempt_id("c01-judge-000", 7), std::time::Instant::now())
        .unwrap();
    let spec = service(&server.url);
    let service = Services::default().get(&spec).unwrap();
    Room {
        coordinator,
        server,
        calls,
        attempt,
        spec,
        service,
        spool,
        _directory: directory,
    }
}

fn request(repeat: u64) -> ChatRequest {
    let messages = vec![llamaduo_data::Message::new(llamaduo_data::Role::User, "hello")];
    ChatRequest {
        messages,
        schema: None,
        repeat,
    }
}

impl Room {
    async fn ask(&self, repeat: u64) -> Result<Answer, Error> {
        let request = request(repeat);
        let question = Question {
            spec: &self.spec,
            service: &self.service,
            request: &request,
            prompt_hash: "p",
        };
        self.calls.ask(&self.attempt, &question).await
    }
}

#[tokio::test]
async fn a_call_is_paid_for_once_and_replayed_after() {
    let room = room([Scripted::says("hi"), Scripted::says("other")]).await;
    let first = room.ask(0).await.unwrap();
    let again = room.ask(0).await.unwrap();
    assert_eq!((first.text.as_str(), again.text.as_str()), ("hi", "hi"));
    assert_eq!(first.call, again.call);
    assert_eq!(room.server.asked().len(), 1);
    assert_eq!(room.ask(1).await.unwrap().text, "other");
    room.coordinator.change(|ledger| {
        let CallOutcome::Answered(reply) = &ledger.ended_calls[0].outcome else {
            panic!("{ledger:?}")
        };
        // 10 tokens at 1 dollar and 5 at 2 dollars a million.
        assert_eq!(reply.nano_usd, Some(20_000));
        assert!(
            ledger.artifacts.contains_key(&reply.reply.to_string()),
            "stored before it is recorded"
        );
    });
}

#[tokio::test]
async fn each_try_is_reserved_for_and_ended_by_what_became_of_it() {
    let room = room([
        Scripted::new(429, "{}").with("retry-after-ms", "1"),
        Scripted::new(200, "{broken").with("retry-after-ms", "1"),
        Scripted::says("at last"),
    ])
    .await;
    assert_eq!(room.ask(0).await.unwrap().text, "at last");
    room.coordinator.change(|ledger| {
        assert_eq!(ledger.begun_calls, 3);
        let outcomes: Vec<_> = ledger.ended_calls.iter().map(|call| &call.outcome).collect();
        assert!(
            matches!(
                outcomes[..],
                [
                    CallOutcome::NotBilled(_),
                    CallOutcome::Unknown(_),
                    CallOutcome::Answered(_)
                ]
            ),
            "{outcomes:?}"
        );
    });
}

#[tokio::test]
async fn a_refusal_is_final_and_a_spent_budget_asks_nobody() {
    let refused = room([Scripted::new(401, r#"{"error":{"message":"bad key"}}"#)]).await;
    let error = refused.ask(0).await.unwrap_err();
    assert_eq!(
        error.failure_kind(),
        llamaduo_proto::task::FailureKind::ServiceRefused
    );
    assert_eq!(refused.server.asked().len(), 1);

    let spent = room([]).await;
    spent.coordinator.change(|ledger| ledger.budget_spent = true);
    let error = spent.ask(0).await.unwrap_err();
    assert!(
        error.message().contains("raise budget.usd"),
        "{}",
        error.message()
    );
    assert_eq!(spent.server.asked().len(), 0);
}

#[tokio::test]
async fn a_paid_call_that_cannot_be_told_is_spooled() {
    let room = room([Scripted::says("hi")]).await;
    room.coordinator
        .change(|ledger| ledger.refusals.push(tonic::Status::unavailable("restarting")));
    assert_eq!(room.ask(0).await.unwrap().text, "hi");
    let names = room.spool.names().unwrap();
    assert_eq!(names.len(), 1);
    assert!(matches!(
        room.spool.read(&names[0]).unwrap(),
        Some(Entry::Call(_))
    ));
}

#[tokio::test]
async fn a_paid_call_that_this_worker_may_not_tell_is_spooled() {
    let room = room([Scripted::says("hi")]).await;
    room.coordinator.change(|ledger| {
        ledger
            .refusals
            .push(tonic::Status::unauthenticated("the token changed"))
    });
    assert_eq!(room.ask(0).await.unwrap().text, "hi");
    assert_eq!(room.spool.names().unwrap().len(), 1);
}

#[tokio::test]
async fn a_reply_is_spooled_while_it_is_told_and_only_then() {
    let room = room([Scripted::says("hi"), Scripted::says("again")]).await;
    room.ask(0).await.unwrap();
    assert_eq!(on_disk(&room), 0);
    room.coordinator.change(|ledger| ledger.hang_end_call = true);
    let told = async {
        while on_disk(&room) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Dropped here, as by a kill.
    tokio::select! {
        answer = room.ask(1) => panic!("{answer:?} before it was told"),
        () = told => {}
    }
    // The courier finds it, once it is let go of.
    while room.spool.names().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn on_disk(room: &Room) -> usize {
    let spool = Spool::open(&room._directory.path().join("spool")).unwrap();
    spool.names().unwrap().len()
}

#[tokio::test]
async fn equal_calls_at_once_are_paid_for_once() {
    let room = room([Scripted::says("hi"), Scripted::says("other")]).await;
    let (a, b, c) = tokio::join!(room.ask(0), room.ask(0), room.ask(0));
    for answer in [a, b, c] {
        assert_eq!(answer.unwrap().text, "hi");
    }
    assert_eq!(room.server.asked().len(), 1);
    assert!(room.calls.flights().is_empty(), "nothing is under way any more");
}

#[tokio::test]
async fn an_equal_call_is_made_when_the_first_one_fails() {
    let refused = Scripted::new(401, r#"{"error":{"message":"bad key"}}"#);
    let room = room([refused, Scripted::says("hi")]).await;
    let (a, b) = tokio::join!(room.ask(0), room.ask(0));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert!(room.calls.flights().is_empty());
}

#[tokio::test]
async fn calls_under_way_that_use_up_the_budget_are_waited_for() {
    let room = room([Scripted::says("hi")]).await;
    room.coordinator.change(|ledger| ledger.waits = 2);
    assert_eq!(room.ask(0).await.unwrap().text, "hi");
}

#[tokio::test]
async fn a_stopped_attempt_makes_no_call() {
    let room = room([Scripted::says("hi")]).await;
    room.attempt.stop(crate::error::Stop::Draining);
    assert!(matches!(room.ask(0).await, Err(Error::Stopped(_))));
    assert_eq!(room.server.asked().len(), 0);
}

#[test]
fn the_hash_depends_on_everything_that_decides_the_answer_and_on_nothing_else() {
    let spec = service("http://127.0.0.1:1");
    let hash = |spec: &ServiceLlmSpec, request: &ChatRequest| call_hash(spec, request).unwrap();
    let base = hash(&spec, &request(0));
    assert_eq!(base, hash(&spec, &request(0)));
    assert_ne!(base, hash(&spec, &request(1)));
    assert_ne!(
        base,
        hash(
            &ServiceLlmSpec {
                temperature: Some(0.5),
                ..spec.clone()
            },
            &request(0)
        )
    );
    assert_ne!(
        base,
        hash(
            &ServiceLlmSpec {
                model: "other".to_owned(),
                ..spec.clone()
            },
            &request(0)
        )
    );
    assert_eq!(
        base,
        hash(
            &ServiceLlmSpec {
                base_url: None,
                concurrency_max: 9,
                ..spec.clone()
            },
            &request(0)
        )
    );
    // Written down: a ledger from before an upgrade must still be found.
    let canonical = concat!(
        r#"{"json_schema":true,"model":"scripted","request":{"messages":[{"content":"hello","role":"user"}],"#,
        r#""repeat":0,"schema":null},"temperature":null,"tokens_max":64,"vendor":"openai"}"#,
    );
    assert_eq!(base, Digest::of(canonical.as_bytes()));
}

#[test]
fn canonical_json_sorts_keys_at_every_depth() {
    let value: Value = serde_json::from_str(r#"{"b":[{"d":1,"c":"é\n"}],"a":null}"#).unwrap();
    let mut text = String::new();
    write_canonical(&value, &mut text);
    assert_eq!(text, r#"{"a":null,"b":[{"c":"é\n","d":1}]}"#);
}
