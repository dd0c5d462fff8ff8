use std::time::{Duration, Instant};

use llamaduo_data::Role;
use llamaduo_proto::run::ApiKeySource;

use super::*;
use crate::testing::{Answer, ScriptedServer, service};

fn request() -> ChatRequest {
    let schema = AnswerSchema {
        name: "judge".to_owned(),
        schema: serde_json::json!({"type": "object"}),
    };
    ChatRequest {
        messages: vec![Message::new(Role::User, "hello")],
        schema: Some(schema),
        repeat: 3,
    }
}

async fn send(spec: &ServiceLlmSpec) -> Result<ChatReply, CallFailure> {
    let client = Client::new(spec)?;
    let body = client.send(&request()).await?;
    Ok(client.read(&body).unwrap())
}

#[tokio::test]
async fn a_request_is_what_the_protocol_says() {
    let server = ScriptedServer::start([Answer::says("hi")]).await;
    let spec = ServiceLlmSpec {
        temperature: Some(0.4),
        ..service(&format!("{}/v1/", server.url))
    };
    let reply = send(&spec).await.unwrap();
    assert_eq!(reply.text, "hi");
    assert_eq!(reply.finish, FinishReason::Stop);
    assert_eq!(
        reply.usage,
        Some(Usage {
            input_tokens: 10,
            output_tokens: 5
        })
    );
    let asked = &server.asked()[0];
    assert_eq!(asked.path, "/v1/chat/completions");
    assert!(!asked.headers.contains_key("authorization"));
    let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
    let expected = serde_json::json!({
        "model": "scripted",
        "messages": [{"role": "user", "content": "hello"}],
        "seed": 3,
        "max_tokens": 64,
        "temperature": 0.4,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "judge", "strict": true, "schema": {"type": "object"}},
        },
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn odd_replies_are_read_and_broken_ones_are_doubtful() {
    let odd = serde_json::json!({
        "choices": [{
            "message": {"content": [{"type": "text", "text": "a"}, {"type": "x"}, {"type": "text", "text": "b"}]},
            "finish_reason": "new_reason",
        }],
        "usage": {"prompt_tokens": "ten"},
    });
    let refusal = r#"{"choices":[{"message":{"content":null,"refusal":"no"},"finish_reason":"stop"}]}"#;
    let server = ScriptedServer::start([
        Answer::new(200, odd.to_string()),
        Answer::new(200, refusal),
        Answer::new(200, "{\"choices\": ["),
        Answer::new(200, r#"{"choices": []}"#),
        Answer::new(200, r#"{"error": {"code": 429, "message": "slow down"}}"#),
    ])
    .await;
    let spec = service(&server.url);
    let reply = send(&spec).await.unwrap();
    assert_eq!((reply.text.as_str(), reply.usage), ("ab", None));
    assert_eq!(reply.finish, FinishReason::Other("new_reason".to_owned()));
    let reply = send(&spec).await.unwrap();
    assert_eq!((reply.text.as_str(), reply.finish), ("no", FinishReason::Refused));
    for _ in 0..2 {
        let failure = send(&spec).await.unwrap_err();
        assert_eq!(
            (failure.class, failure.billing),
            (FailureClass::Transient, Billing::Unknown),
            "{failure}"
        );
    }
    let failure = send(&spec).await.unwrap_err();
    assert_eq!(
        (failure.class, failure.billing),
        (FailureClass::Transient, Billing::No),
        "{failure}"
    );
}

#[tokio::test]
async fn silence_is_given_up_and_nobody_knows_what_it_cost() {
    let server = ScriptedServer::start([Answer::says("late").after(Duration::from_secs(5))]).await;
    let spec = ServiceLlmSpec {
        timeout_ms: 100,
        ..service(&server.url)
    };
    let begun = Instant::now();
    let failure = send(&spec).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(
        (failure.class, failure.billing),
        (FailureClass::Transient, Billing::Unknown)
    );
    assert!(failure.message.contains("timeout_ms"), "{failure}");
}

#[tokio::test]
async fn a_connection_that_never_stood_cost_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failure = send(&service(&url)).await.unwrap_err();
    assert_eq!(
        (failure.class, failure.billing),
        (FailureClass::Transient, Billing::No),
        "{failure}"
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = ScriptedServer::start([Answer::says("stolen")]).await;
    let server = ScriptedServer::start([Answer::new(307, "").with("location", &elsewhere.url)]).await;
    assert_eq!(
        send(&service(&server.url)).await.unwrap_err().class,
        FailureClass::Refused
    );
    assert_eq!(elsewhere.asked().len(), 0);
}

#[tokio::test]
async fn a_server_that_wants_the_other_name_of_the_bound_gets_it() {
    let wants = r#"{"error":{"message":"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}"#;
    let server = ScriptedServer::start([Answer::new(400, wants), Answer::says("hi")]).await;
    let client = Client::new(&service(&server.url)).unwrap();
    assert!(client.send(&request()).await.unwrap_err().is_retryable());
    assert!(client.send(&request()).await.is_ok());
    let second: serde_json::Value = serde_json::from_slice(&server.asked()[1].body).unwrap();
    assert_eq!(second.get("max_completion_tokens"), Some(&64.into()));
    assert_eq!(second.get("max_tokens"), None);
}

#[tokio::test]
async fn many_at_once_who_learn_the_name_of_the_bound_learn_the_same() {
    let wants = r#"{"error":{"message":"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}"#;
    // Held back until all four are on their way, so that each was sent under the old name.
    let refusal = || Answer::new(400, wants).after(std::time::Duration::from_millis(200));
    let answers = [refusal(), refusal(), refusal(), refusal(), Answer::says("hi")];
    let server = ScriptedServer::start(answers).await;
    let client = Client::new(&service(&server.url)).unwrap();
    let request = request();
    let (a, b, c, d) = tokio::join!(
        client.send(&request),
        client.send(&request),
        client.send(&request),
        client.send(&request)
    );
    assert!(
        [a, b, c, d]
            .iter()
            .all(|sent| sent.as_ref().is_err_and(CallFailure::is_retryable))
    );
    assert!(client.send(&request).await.is_ok());
    let last: serde_json::Value = serde_json::from_slice(&server.asked()[4].body).unwrap();
    assert_eq!(last.get("max_completion_tokens"), Some(&64.into()));
}

#[tokio::test]
async fn a_bound_that_is_too_large_is_no_question_of_its_name() {
    let server = ScriptedServer::start([Answer::new(
        400,
        r#"{"error":{"message":"max_completion_tokens is too large: 64. This model supports at most 32 completion tokens","code":"invalid_value"}}"#,
    )])
    .await;
    let client = Client::new(&service(&server.url)).unwrap();
    let failure = client.send(&request()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::BadRequest, "{failure}");
}

#[tokio::test]
async fn a_key_is_sent_and_never_shown() {
    const CANARY: &str = "sk-canary-4f1d9c2e7b";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, format!("{CANARY}\n")).unwrap();
    let echo = |status| {
        Answer::new(
            status,
            format!(r#"{{"error":{{"message":"no such key {CANARY} or sk-cana***7b"}}}}"#),
        )
    };
    let server = ScriptedServer::start([echo(401), echo(500), echo(400), Answer::new(200, CANARY)]).await;
    let spec = ServiceLlmSpec {
        api_key: ApiKeySource::File(path.to_str().unwrap().to_owned()),
        ..service(&server.url)
    };
    let client = Client::new(&spec).unwrap();
    assert!(!format!("{client:?}").contains(CANARY));
    for _ in 0..4 {
        let failure = client.send(&request()).await.unwrap_err();
        let told = crate::Error::from(failure.clone()).message();
        let shown = format!("{failure} {failure:?} {told}");
        assert!(!shown.contains("sk-can") && !shown.contains("***7b"), "{shown}");
    }
    assert_eq!(
        server.asked()[0].headers["authorization"],
        format!("Bearer {CANARY}")
    );

    std::fs::write(&path, "sk-another-key").unwrap();
    let _refused = client.send(&request()).await;
    assert_eq!(
        server.asked()[4].headers["authorization"],
        "Bearer sk-another-key",
        "the file is read anew"
    );
}

#[tokio::test]
async fn a_missing_key_says_where_it_was_looked_for() {
    let server = ScriptedServer::start([]).await;
    for (source, named) in [
        (
            ApiKeySource::Env("LLAMADUO_TEST_NO_SUCH_KEY".to_owned()),
            "LLAMADUO_TEST_NO_SUCH_KEY",
        ),
        (ApiKeySource::File("/no/such/key".to_owned()), "/no/such/key"),
    ] {
        let failure = send(&ServiceLlmSpec {
            api_key: source,
            ..service(&server.url)
        })
        .await
        .unwrap_err();
        assert_eq!(failure.class, FailureClass::Unequipped);
        assert!(failure.message.contains(named), "{failure}");
    }
    assert_eq!(server.asked().len(), 0);
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    let failure = Client::new(&service("http://192.0.2.1/v1")).unwrap_err();
    assert_eq!(failure.class, FailureClass::Refused);
    assert!(failure.message.contains("https"), "{failure}");
}

#[test]
fn those_who_name_the_same_service_share_its_limits() {
    let services = Services::default();
    let one = services.get(&service("http://127.0.0.1:1")).unwrap();
    let two = services.get(&service("http://127.0.0.1:1")).unwrap();
    let other = services.get(&service("http://127.0.0.1:2")).unwrap();
    assert!(std::sync::Arc::ptr_eq(&one.limiter, &two.limiter));
    assert!(!std::sync::Arc::ptr_eq(&one.limiter, &other.limiter));
}
