//! What clients see: over the network where it matters, else through the pure part.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::*;
use crate::stand_in::tickets::{TASK_INSTRUCTION, generate};

fn quiet(seed: u64) -> Options {
    Options {
        faults: FaultRates::NONE,
        ..Options::new(seed)
    }
}

fn triage_body(message: &str, seed: u64) -> Vec<u8> {
    let messages = json!([
        {"role": "system", "content": TASK_INSTRUCTION},
        {"role": "user", "content": message},
    ]);
    json!({"model": "stand-in-1", "messages": messages, "seed": seed})
        .to_string()
        .into_bytes()
}

fn try_of(options: &Options, body: &[u8], n_seen: u32) -> Answer {
    answer_to(options, body, hash(body), n_seen)
}

fn content_of(body: &str) -> String {
    let reply: Value = serde_json::from_str(body).unwrap();
    reply["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Runs `client` against a server on a free port, and ends both.
async fn with_server<F: Future>(options: Options, client: impl FnOnce(SocketAddr) -> F) -> F::Output {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let mut servers = JoinSet::new();
    servers.spawn(serve(options, listener, shutdown.clone()));
    let output = client(address).await;
    shutdown.cancel();
    servers.join_next().await.unwrap().unwrap().unwrap();
    output
}

/// Sends one request on its own connection; gives back the head, lower-cased, and the body.
async fn send(address: SocketAddr, head: &str, body: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1";

#[tokio::test]
async fn a_message_is_triaged_over_http() {
    let ticket = generate(1, 1).remove(0);
    let body = triage_body(&ticket.message, 0);
    let (head, reply) = with_server(
        quiet(1),
        |address| async move { send(address, CHAT, &body).await },
    )
    .await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("x-request-id: "), "{head}");
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(reply["model"], "stand-in-1");
    assert_eq!(reply["choices"][0]["message"]["content"], ticket.label.to_json());
    let usage = &reply["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test]
async fn a_key_is_asked_for_when_one_is_set() {
    let options = Options {
        api_key: Some("secret".to_owned()),
        ..quiet(1)
    };
    let models = "GET /v1/models HTTP/1.1";
    let heads = with_server(options, |address| async move {
        let body = triage_body("The parcel with my Lumo Lamp is lost.", 0);
        let (without, error) = send(address, CHAT, &body).await;
        assert!(error.contains("\"code\":\"invalid_api_key\""), "{error}");
        let (wrong, _) = send(address, &format!("{models}\r\nauthorization: Bearer secre"), b"").await;
        let (right, list) = send(address, &format!("{models}\r\nauthorization: Bearer secret"), b"").await;
        assert!(list.contains("\"id\":\"stand-in-1\""), "{list}");
        [without, wrong, right]
    })
    .await;
    let statuses = heads.map(|head| head.split(' ').nth(1).unwrap().to_owned());
    assert_eq!(statuses, ["401", "401", "200"]);
}

#[tokio::test]
async fn only_loopback_is_served() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let served = serve(quiet(1), listener, CancellationToken::new()).await;
    assert!(matches!(served, Err(Error::NotLoopback { .. })));
}

#[tokio::test]
async fn a_body_without_end_is_refused() {
    let head = with_server(quiet(1), |address| async move {
        let body = vec![b' '; BODY_BYTES_MAX + 1];
        send(address, CHAT, &body).await.0
    })
    .await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
}

#[tokio::test]
async fn a_stuck_client_does_not_hold_up_the_shutdown() {
    let stuck = with_server(quiet(1), |address| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
            .await
            .unwrap();
        stream
    });
    assert!(tokio::time::timeout(SHUTDOWN_WAIT * 5, stuck).await.is_ok());
}

/// Tries each request until it succeeds and notes every reply, whatever the order.
async fn run_all(bodies: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<(String, String)>> {
    let faults = FaultRates {
        too_many_requests: 0.2,
        server_error: 0.2,
        broken_body: 0.1,
        broken_content: 0.0,
    };
    with_server(
        Options {
            faults,
            ..Options::new(5)
        },
        |address| async move {
            let mut clients = JoinSet::new();
            for body in bodies {
                clients.spawn(async move {
                    let mut replies = Vec::new();
                    for _ in 0..3 {
                        let (head, reply) = send(address, CHAT, &body).await;
                        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        replies.push((status, reply));
                    }
                    (body, replies)
                });
            }
            clients.join_all().await.into_iter().collect()
        },
    )
    .await
}

#[tokio::test]
async fn replies_do_not_depend_on_the_order_of_arrival() {
    let bodies: Vec<Vec<u8>> = generate(2, 40)
        .iter()
        .map(|ticket| triage_body(&ticket.message, 1))
        .collect();
    let forwards = run_all(bodies.clone()).await;
    let backwards = run_all(bodies.into_iter().rev().collect()).await;
    assert_eq!(forwards, backwards);
    let statuses: Vec<&str> = forwards
        .values()
        .flatten()
        .map(|(status, _)| status.as_str())
        .collect();
    assert!(
        ["200", "429", "500"]
            .iter()
            .all(|status| statuses.contains(status)),
        "{statuses:?}"
    );
}

#[test]
fn the_third_try_always_succeeds() {
    let always = FaultRates {
        too_many_requests: 0.5,
        server_error: 0.5,
        ..FaultRates::NONE
    };
    let options = Options {
        faults: always,
        ..Options::new(1)
    };
    let body = triage_body("The parcel with my Lumo Lamp is lost.", 0);
    let statuses: Vec<u16> = (0..4)
        .map(|n_seen| try_of(&options, &body, n_seen).status)
        .collect();
    assert!(
        statuses[..2].iter().all(|status| [429, 500].contains(status)),
        "{statuses:?}"
    );
    assert_eq!(statuses[2..], [200, 200]);
}

#[test]
fn a_429_says_when_to_come_back() {
    let options = Options {
        faults: FaultRates {
            too_many_requests: 1.0,
            ..FaultRates::NONE
        },
        ..Options::new(1)
    };
    let answer = try_of(&options, &triage_body("x", 0), 0);
    let headers = answer.into_response().headers().clone();
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["retry-after-ms"], "200");
}

#[test]
fn broken_replies_break_off_only_where_they_should() {
    let json_body = |format: Value| {
        let messages = json!([{"role": "user", "content": "The parcel with my Lumo Lamp is lost."}]);
        json!({"model": "stand-in-1", "messages": messages, "response_format": format})
            .to_string()
            .into_bytes()
    };
    let broken = Options {
        faults: FaultRates {
            broken_content: 1.0,
            ..FaultRates::NONE
        },
        ..Options::new(1)
    };
    let asked = json_body(json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}));
    let content = content_of(&try_of(&broken, &asked, 0).body);
    assert!(serde_json::from_str::<Value>(&content).is_err(), "{content}");
    assert!(serde_json::from_str::<Value>(&content_of(&try_of(&broken, &asked, 2).body)).is_ok());
    let plain = content_of(&try_of(&broken, &json_body(json!({"type": "text"})), 0).body);
    assert!(serde_json::from_str::<Value>(&plain).is_ok(), "{plain}");

    let broken = Options {
        faults: FaultRates {
            broken_body: 1.0,
            ..FaultRates::NONE
        },
        ..Options::new(1)
    };
    assert!(serde_json::from_str::<Value>(&try_of(&broken, &asked, 0).body).is_err());
}

#[test]
fn the_teacher_slips_about_three_times_in_a_hundred() {
    let options = quiet(9);
    let n_slips = generate(9, 2_000)
        .iter()
        .filter(|ticket| {
            content_of(&try_of(&options, &triage_body(&ticket.message, 4), 0).body) != ticket.label.to_json()
        })
        .count();
    println!("slips: {n_slips} of 2000");
    assert!((30..=90).contains(&n_slips), "{n_slips}");
}

#[test]
fn what_cannot_be_honoured_is_refused_in_openais_words() {
    let message = json!([{"role": "user", "content": "x"}]);
    let refused = |request: Value| {
        let answer = try_of(&quiet(1), request.to_string().as_bytes(), 0);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(
            body["error"]["message"].as_str().unwrap().contains("stand-in"),
            "{body}"
        );
        answer.status
    };
    assert_eq!(refused(json!({"model": "gpt-4o", "messages": message})), 404);
    for extra in [
        json!({"stream": true}),
        json!({"n": 2}),
        json!({"max_tokens": 0}),
        json!({"messages": []}),
        json!({"messages": "x"}),
        json!({"response_format": {"type": "xml"}}),
    ] {
        let mut request = json!({"model": "stand-in-1", "messages": message});
        request
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        assert_eq!(refused(request), 400, "{extra}");
    }
    let deep = "[".repeat(100_000);
    for body in [b"".as_slice(), b"{", b"\xff\xfe", deep.as_bytes()] {
        assert_eq!(try_of(&quiet(1), body, 0).status, 400);
    }
}

#[test]
fn an_answer_is_cut_to_the_tokens_asked_for() {
    let request = json!({
        "model": "stand-in-1",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]}],
        "max_completion_tokens": 3,
    });
    let answer = try_of(&quiet(1), request.to_string().as_bytes(), 0);
    let reply: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(reply["choices"][0]["message"]["content"], "I am a stand");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 3);
}
