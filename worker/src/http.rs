//! The HTTP clients of the worker, built in one place: TLS, certificates, proxies, which addresses may be plain.
//!
//! Invariant: nothing leaves this machine unencrypted; plain HTTP goes to loopback only, and never through a proxy.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Url, redirect};

/// A server that does not accept a connection in this time is taken for dead; the vendors' own clients wait as long.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An address that may not be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidUrl {
    /// Not a URL.
    #[error("`{url}` is not a URL; expected one like https://host/v1")]
    Syntax {
        /// As it was given.
        url: String,
    },
    /// Plain HTTP to another machine.
    #[error("`{url}` is not encrypted; expected https, or http to a loopback address")]
    Plain {
        /// As it was given.
        url: String,
    },
}

/// A client could not be built.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set up HTTPS; install the system's root certificates (package ca-certificates) or name a bundle in SSL_CERT_FILE"
)]
pub(crate) struct NoClient(#[source] pub(crate) reqwest::Error);

/// Whether redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirects {
    /// Never: a request with a key goes where the configuration says and nowhere else.
    Refused,
    /// A model hub hands large files to other hosts; the token is not sent along.
    Followed,
}

/// Longest chain of redirects: hubs use one or two.
const REDIRECTS_MAX: usize = 5;

/// Reads an address and checks that it may be called.
pub(crate) fn parse_url(text: &str) -> Result<Url, InvalidUrl> {
    let url = Url::parse(text).map_err(|_| InvalidUrl::Syntax { url: text.to_owned() })?;
    match url.scheme() {
        "https" if url.has_host() => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(InvalidUrl::Plain { url: text.to_owned() }),
        _ => Err(InvalidUrl::Syntax { url: text.to_owned() }),
    }
}

/// Whether the address is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// A client for `url`. One to a loopback address needs no certificates and uses no proxy.
pub(crate) fn client(url: &Url, redirects: Redirects) -> Result<Client, NoClient> {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        // Fails only when another part of the process chose a provider before; that one serves as well.
        let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    });
    let policy = match redirects {
        Redirects::Refused => redirect::Policy::none(),
        Redirects::Followed => redirect::Policy::custom(|attempt| {
            // Only a hub on this machine may send its client on to this machine.
            let strays = is_loopback(attempt.url()) && !attempt.previous().iter().all(is_loopback);
            let n_hops = attempt.previous().len();
            let allowed = parse_url(attempt.url().as_str()).is_ok() && !strays && n_hops <= REDIRECTS_MAX;
            if allowed { attempt.follow() } else { attempt.stop() }
        }),
    };
    let builder = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(policy)
        .retry(reqwest::retry::never())
        .user_agent(concat!("llamaduo/", env!("CARGO_PKG_VERSION")));
    let local = url.scheme() == "http";
    let builder = if local {
        builder.no_proxy().tls_certs_only([])
    } else {
        builder
    };
    builder.build().map_err(NoClient)
}

#[cfg(test)]
mod tests;
