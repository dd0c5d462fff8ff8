//! What the tests of this crate share: a scripted HTTP server and a scripted coordinator, both on loopback.

mod coordinator;
mod http;
mod model;

pub(crate) use coordinator::ScriptedCoordinator;
pub(crate) use http::{Answer, ScriptedServer};
pub(crate) use model::tiny_model;

use llamaduo_proto::ids::{AttemptId, AttemptNumber, LeaseToken, RunId, TaskId};
use llamaduo_proto::run::{ApiKeySource, ServiceLlmSpec, Vendor};

pub(crate) fn attempt_id(task: &str, token: u64) -> AttemptId {
    AttemptId {
        run: RunId::new("run-1").unwrap(),
        task: TaskId::new(task).unwrap(),
        attempt: AttemptNumber(1),
        token: LeaseToken(token),
    }
}

pub(crate) fn service(base_url: &str) -> ServiceLlmSpec {
    ServiceLlmSpec {
        vendor: Vendor::Openai,
        model: "scripted".to_owned(),
        base_url: Some(base_url.to_owned()),
        api_key: ApiKeySource::None,
        temperature: None,
        tokens_max: 64,
        concurrency_max: 4,
        requests_per_minute_max: None,
        usd_per_mtok: Some((1.0, 2.0)),
        json_schema: true,
        timeout_ms: 2_000,
    }
}
