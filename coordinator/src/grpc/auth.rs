//! The bearer token that every request must carry, where the coordinator was given one.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::status;
use crate::error::Error;

/// Lets requests through that carry the token.
#[derive(Clone)]
pub(crate) struct Auth {
    /// `None` lets everything through.
    token: Option<Arc<str>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token itself never shows.
        f.debug_struct("Auth")
            .field("required", &self.token.is_some())
            .finish()
    }
}

impl Auth {
    /// Refuses a token that no client could send.
    pub(crate) fn new(token: Option<&str>) -> Result<Self, Error> {
        let is_sendable =
            |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        match token {
            Some(token) if !is_sendable(token) => Err(Error::Token),
            token => Ok(Self {
                token: token.map(Arc::from),
            }),
        }
    }

    fn admits(&self, metadata: &MetadataMap) -> bool {
        let Some(expected) = &self.token else { return true };
        let sent = metadata.get("authorization").map(|value| value.as_bytes());
        let token = sent.and_then(|value| value.strip_prefix(b"Bearer "));
        token.is_some_and(|token| same(token, expected.as_bytes()))
    }
}

impl Interceptor for Auth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.admits(request.metadata()) {
            return Ok(request);
        }
        let message = "this coordinator needs a bearer token; give the one it was started with";
        Err(status::named(Code::Unauthenticated, "BAD_TOKEN", message))
    }
}

/// Compares in a time that depends on the lengths only, so that a wrong token cannot be improved byte by byte.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}
