//! What can be known before the first call: whether there is a key, and whether anybody listens.
//!
//! Invariant: nothing is sent to the service, and nothing is remembered; each call looks for itself again.

use std::time::Duration;

use llamaduo_proto::run::ServiceLlmSpec;
use tokio::net::TcpStream;

use super::{key, openai};
use crate::http;

/// Connections tried before a service is said to be away: it may be starting together with the run.
const TRIES: u32 = 3;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(700);
/// How long one may take: a firewall that drops packets must not hold a run up.
const WITHIN: Duration = Duration::from_secs(3);

/// Through which another machine may be reached that cannot be reached directly.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What is wrong with the key that calls to `spec` would carry, if anything is.
pub fn key(spec: &ServiceLlmSpec) -> Result<(), String> {
    match key::read(&spec.api_key).map_err(|error| error.to_string())? {
        Some(key) if key.bearer().is_none() => Err(key::UNSENDABLE.to_owned()),
        Some(_) | None => Ok(()),
    }
}

/// Why nobody can be connected to at the address of `spec`, if nobody can. Behind a proxy nothing is tried.
pub async fn reachable(spec: &ServiceLlmSpec) -> Result<(), String> {
    let url = openai::url(spec).map_err(|failure| failure.message)?;
    let is_proxied = PROXIES
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if is_proxied && !http::is_loopback(&url) {
        return Ok(());
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Ok(());
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut why = String::new();
    for n in 0..TRIES {
        if n > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match tokio::time::timeout(WITHIN, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no answer within {} s", WITHIN.as_secs()),
        }
    }
    Err(format!(
        "nobody answers at {host}:{port} ({why}); check base_url and that the service runs"
    ))
}

#[cfg(test)]
mod tests {
    use llamaduo_proto::run::ApiKeySource;

    use super::*;
    use crate::testing::service;

    #[test]
    fn a_key_that_is_not_there_is_named_and_one_that_is_there_is_enough() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let mut spec = service("http://127.0.0.1:9/v1");
        assert_eq!(key(&spec), Ok(()));
        spec.api_key = ApiKeySource::Env("LLAMADUO_NO_SUCH_KEY".to_owned());
        assert!(key(&spec).unwrap_err().contains("LLAMADUO_NO_SUCH_KEY"));
        spec.api_key = ApiKeySource::File(path.to_str().unwrap().to_owned());
        assert!(key(&spec).unwrap_err().contains(path.to_str().unwrap()));
        std::fs::write(&path, "two\nlines").unwrap();
        let problem = key(&spec).unwrap_err();
        assert!(
            problem.contains("header") && !problem.contains("lines\n"),
            "{problem}"
        );
        std::fs::write(&path, "sk-1\n").unwrap();
        assert_eq!(key(&spec), Ok(()));
    }

    #[tokio::test]
    async fn who_listens_is_reached_and_a_free_port_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spec = service(&format!("http://{address}/v1"));
        assert_eq!(reachable(&spec).await, Ok(()));
        drop(listener);
        let why = reachable(&spec).await.unwrap_err();
        assert!(
            why.contains(&address.to_string()) && why.contains("base_url"),
            "{why}"
        );
    }
}
