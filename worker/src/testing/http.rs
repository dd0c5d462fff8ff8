//! A real HTTP server that gives scripted answers and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use tokio::task::JoinSet;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Before anything is sent.
    pub(crate) delay: Duration,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            delay: Duration::ZERO,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// A chat completion that says `text`.
    pub(crate) fn says(text: &str) -> Self {
        let body = serde_json::json!({
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        });
        Self::new(200, body.to_string())
    }
}

/// What the server was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

#[derive(Default)]
struct Script {
    queue: VecDeque<Answer>,
    by_path: Vec<(String, Answer)>,
    asked: Vec<Asked>,
}

/// A running server; ends with the value.
pub(crate) struct ScriptedServer {
    pub(crate) url: String,
    script: Arc<Mutex<Script>>,
    _server: JoinSet<()>,
}

impl ScriptedServer {
    /// Answers in this order; when they are used up, `404`.
    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Script {
            queue: answers.into_iter().collect(),
            ..Script::default()
        };
        Self::serve(script).await
    }

    /// Answers by path, each as often as it is asked.
    pub(crate) async fn by_path(answers: impl IntoIterator<Item = (String, Answer)>) -> Self {
        let script = Script {
            by_path: answers.into_iter().collect(),
            ..Script::default()
        };
        Self::serve(script).await
    }

    async fn serve(script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            script,
            _server: server,
        }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }

    pub(crate) fn script(&self, path: &str, answer: Answer) {
        self.script
            .lock()
            .unwrap()
            .by_path
            .insert(0, (path.to_owned(), answer));
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request<Body>) -> Response<Body> {
    let path = request.uri().to_string();
    let headers = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), 1 << 24)
        .await
        .unwrap()
        .to_vec();
    let answer = {
        let mut script = script.lock().unwrap();
        script.asked.push(Asked {
            path: path.clone(),
            headers: headers.clone(),
            body,
        });
        let by_path = script
            .by_path
            .iter()
            .find(|(known, _)| *known == path)
            .map(|(_, answer)| answer.clone());
        by_path
            .or_else(|| script.queue.pop_front())
            .unwrap_or_else(|| Answer::new(404, "{}"))
    };
    tokio::time::sleep(answer.delay).await;
    let range = headers.get("range").and_then(|value| value.to_str().ok());
    let from = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    let (status, body) = match from.filter(|from| *from < answer.body.len() && answer.status == 200) {
        Some(from) => (206, answer.body[from..].to_vec()),
        None => (answer.status, answer.body),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).unwrap()
}
