//! `[service]` and `[judge]` as the specifications that a worker gets.
//!
//! Invariant: a key is only ever named, and never goes to a host it was not named for.

use llamaduo_data::price::PriceBook;
use llamaduo_proto::run::{ApiKeySource, ServiceLlmSpec, Vendor};

use super::sections::{self, BudgetSection, JudgeSection, ServiceSection};
use super::settings::ensure;
use super::{Config, Error};

/// The teacher.
pub(crate) fn service_llm(config: &Config) -> Result<ServiceLlmSpec, Error> {
    spec(&config.service, &config.budget)
}

/// The judge: `[judge]` over `[service]`.
pub(crate) fn judge_llm(config: &Config) -> Result<ServiceLlmSpec, Error> {
    spec(&inherit(&config.judge, &config.service), &config.budget)
}

/// What `[judge]` leaves open is as in `[service]`, except that a price belongs to its model and a key to its host.
fn inherit(judge: &JudgeSection, service: &ServiceSection) -> ServiceSection {
    let same_model = judge.model.is_none() || judge.model == service.model;
    let same_host = judge.base_url.is_none() || judge.base_url == service.base_url;
    let own_key = judge.api_key_env.is_some() || judge.api_key_file.is_some();
    let inherit_key = same_host && !own_key;
    let key = |own: &Option<String>, theirs: &Option<String>| {
        if inherit_key { theirs.clone() } else { own.clone() }
    };
    let price = |own: Option<f64>, theirs: Option<f64>| own.or(if same_model { theirs } else { None });
    ServiceSection {
        vendor: judge.vendor.unwrap_or(service.vendor),
        model: judge.model.clone().or_else(|| service.model.clone()),
        base_url: judge.base_url.clone().or_else(|| service.base_url.clone()),
        api_key_env: key(&judge.api_key_env, &service.api_key_env),
        api_key_file: key(&judge.api_key_file, &service.api_key_file),
        temperature: judge.temperature.or(service.temperature),
        max_tokens: judge.max_tokens.unwrap_or(service.max_tokens),
        concurrency: judge.concurrency.unwrap_or(service.concurrency),
        requests_per_minute: judge.requests_per_minute.or(service.requests_per_minute),
        input_usd_per_mtok: price(judge.input_usd_per_mtok, service.input_usd_per_mtok),
        output_usd_per_mtok: price(judge.output_usd_per_mtok, service.output_usd_per_mtok),
        json_schema: judge.json_schema.unwrap_or(service.json_schema),
        timeout_seconds: judge.timeout_seconds.unwrap_or(service.timeout_seconds),
    }
}

fn spec(section: &ServiceSection, budget: &BudgetSection) -> Result<ServiceLlmSpec, Error> {
    let model = section
        .model
        .clone()
        .filter(|model| !model.is_empty())
        .ok_or(Error::Missing {
            key: "service.model",
            expected: "the service LLM's name as its vendor spells it, for example \"gpt-5.4-mini\"",
        })?;
    ensure(
        section.max_tokens >= 1,
        "service.max_tokens",
        section.max_tokens,
        "at least 1",
    )?;
    ensure(
        section.concurrency >= 1,
        "service.concurrency",
        section.concurrency,
        "at least 1",
    )?;
    // An hour: no call takes longer, and milliseconds of it fit the wire's 32 bits.
    let seconds = section.timeout_seconds;
    ensure(
        (1..=3600).contains(&seconds),
        "service.timeout_seconds",
        seconds,
        "1 to 3600",
    )?;
    if let Some(temperature) = section.temperature {
        ensure(
            (0.0..=2.0).contains(&temperature),
            "service.temperature",
            temperature,
            "0 to 2",
        )?;
    }
    if let Some(requests) = section.requests_per_minute {
        ensure(
            requests >= 1,
            "service.requests_per_minute",
            requests,
            "at least 1, or absent for no limit",
        )?;
    }
    let api_key = api_key(section)?;
    check_base_url(section.base_url.as_deref(), &api_key)?;
    let usd_per_mtok = usd_per_mtok(section)?;
    if budget.max_usd.is_some() && usd_per_mtok.is_none() && !listed(&model) {
        return Err(Error::Missing {
            key: "service.input_usd_per_mtok",
            expected: "the model's price with service.output_usd_per_mtok, which budget.max_usd needs: the price book \
                       does not list this model (or limit calls with budget.max_calls)",
        });
    }
    Ok(ServiceLlmSpec {
        vendor: match section.vendor {
            sections::Vendor::Openai => Vendor::Openai,
        },
        model,
        base_url: section.base_url.clone(),
        api_key,
        temperature: section.temperature,
        tokens_max: section.max_tokens,
        concurrency_max: section.concurrency,
        requests_per_minute_max: section.requests_per_minute,
        usd_per_mtok,
        json_schema: section.json_schema,
        timeout_ms: seconds * 1000,
    })
}

/// Whether the price book that ships with the program knows the model.
fn listed(model: &str) -> bool {
    PriceBook::builtin().is_ok_and(|book| book.price(model).is_some())
}

fn api_key(section: &ServiceSection) -> Result<ApiKeySource, Error> {
    match (&section.api_key_env, &section.api_key_file) {
        (None, None) => Ok(ApiKeySource::None),
        (Some(name), None) => Ok(ApiKeySource::Env(name.clone())),
        (None, Some(path)) => Ok(ApiKeySource::File(path.clone())),
        (Some(_), Some(_)) => Err(Error::Value {
            key: "service.api_key_file",
            found: "set together with service.api_key_env".to_owned(),
            expected: "only one of the two",
        }),
    }
}

/// A key travels in clear over http, so it may only do so on this machine.
fn check_base_url(base_url: Option<&str>, api_key: &ApiKeySource) -> Result<(), Error> {
    let Some(url) = base_url else { return Ok(()) };
    let value = |expected| Error::Value {
        key: "service.base_url",
        found: format!("`{url}`"),
        expected,
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(value("a URL such as \"https://api.example.com/v1\""));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.contains('@') {
        return Err(value("a URL with a host and without user name or password"));
    }
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if loopback || *api_key == ApiKeySource::None => Ok(()),
        "http" => Err(value(
            "https, since a key would travel in clear to another machine",
        )),
        _ => Err(value("a URL that begins with https:// or http://")),
    }
}

fn usd_per_mtok(section: &ServiceSection) -> Result<Option<(f64, f64)>, Error> {
    let input = section.input_usd_per_mtok;
    let output = section.output_usd_per_mtok;
    for (key, price) in [
        ("service.input_usd_per_mtok", input),
        ("service.output_usd_per_mtok", output),
    ] {
        if let Some(price) = price {
            ensure(
                (0.0..=100_000.0).contains(&price),
                key,
                price,
                "0 to 100000 dollars per million tokens",
            )?;
        }
    }
    match (input, output) {
        (None, None) => Ok(None),
        (Some(input), Some(output)) => Ok(Some((input, output))),
        _ => Err(Error::Missing {
            key: "service.input_usd_per_mtok and service.output_usd_per_mtok",
            expected: "both prices, or neither",
        }),
    }
}
