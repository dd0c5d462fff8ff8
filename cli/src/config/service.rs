//! `[service]` and `[judge]` as the specifications that a worker gets.
//!
//! Invariant: a key is only ever named, and never goes to a host it was not named for.

use std::borrow::Cow;
use std::path::Path;

use llamaduo_data::price::PriceBook;
use llamaduo_proto::run::{ApiKeySource, ServiceLlmSpec, Vendor};

use super::sections::{self, BudgetSection, JudgeSection, ServiceSection};
use super::settings::ensure;
use super::{Config, Error};

/// The teacher.
pub(crate) fn service_llm(config: &Config) -> Result<ServiceLlmSpec, Error> {
    spec(&config.service, &config.budget, Names(None))
}

/// The judge: `[judge]` over `[service]`.
pub(crate) fn judge_llm(config: &Config) -> Result<ServiceLlmSpec, Error> {
    let section = inherit(&config.judge, &config.service);
    spec(&section, &config.budget, Names(Some(config)))
}

/// Has a key's file looked for beside the config, as every other path is, where the worker is this process.
pub(crate) fn key_beside_config(spec: &mut ServiceLlmSpec, directory: &Path) {
    if let ApiKeySource::File(path) = &mut spec.api_key
        && let Ok(absolute) = std::path::absolute(directory.join(&*path))
    {
        *path = absolute.display().to_string();
    }
}

/// The names of keys in errors: as the user wrote them, be it in `[service]` or in the `[judge]` of this config.
#[derive(Clone, Copy)]
struct Names<'a>(Option<&'a Config>);

impl Names<'_> {
    /// `judge.LEAF` where the judge has its own, else `service.LEAF`.
    fn key(self, leaf: &str) -> Cow<'static, str> {
        let set = |judge: &JudgeSection| {
            // A struct of plain fields always serializes.
            let fields = serde_json::to_value(judge).unwrap_or_default();
            fields.get(leaf).is_some_and(|value| !value.is_null())
        };
        let section = match self.0 {
            Some(config) if set(&config.judge) => "judge",
            _ => "service",
        };
        format!("{section}.{leaf}").into()
    }

    /// Where the price of the model belongs: a judge of its own inherits none.
    fn price_section(self) -> &'static str {
        match self.0 {
            Some(config) if !same_model(&config.judge, &config.service) => "judge",
            _ => "service",
        }
    }
}

fn same_model(judge: &JudgeSection, service: &ServiceSection) -> bool {
    judge.model.is_none() || judge.model == service.model
}

/// What `[judge]` leaves open is as in `[service]`, except that a price belongs to its model and a key to its host.
fn inherit(judge: &JudgeSection, service: &ServiceSection) -> ServiceSection {
    let same_model = same_model(judge, service);
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

fn spec(section: &ServiceSection, budget: &BudgetSection, names: Names<'_>) -> Result<ServiceLlmSpec, Error> {
    let model = section
        .model
        .clone()
        .filter(|model| !model.is_empty())
        .ok_or(Error::Missing {
            key: names.key("model"),
            expected: "the service LLM's name as its vendor spells it, for example \"gpt-5.4-mini\"",
        })?;
    check_limits(section, names)?;
    let api_key = api_key(section, names)?;
    check_base_url(section.base_url.as_deref(), &api_key, names)?;
    let usd_per_mtok = usd_per_mtok(section, names)?;
    if budget.max_usd.is_some() && usd_per_mtok.is_none() && !listed(&model) {
        return Err(Error::Missing {
            key: format!("{}.input_usd_per_mtok", names.price_section()).into(),
            expected: "the model's price, with output_usd_per_mtok beside it, which budget.max_usd needs: the price book \
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
        timeout_ms: section.timeout_seconds * 1000,
    })
}

/// Holds each number to its range.
fn check_limits(section: &ServiceSection, names: Names<'_>) -> Result<(), Error> {
    ensure(
        section.max_tokens >= 1,
        names.key("max_tokens"),
        section.max_tokens,
        "at least 1",
    )?;
    ensure(
        section.concurrency >= 1,
        names.key("concurrency"),
        section.concurrency,
        "at least 1",
    )?;
    // An hour: no call takes longer, and milliseconds of it fit the wire's 32 bits.
    let seconds = section.timeout_seconds;
    ensure(
        (1..=3600).contains(&seconds),
        names.key("timeout_seconds"),
        seconds,
        "1 to 3600",
    )?;
    if let Some(temperature) = section.temperature {
        ensure(
            (0.0..=2.0).contains(&temperature),
            names.key("temperature"),
            temperature,
            "0 to 2",
        )?;
    }
    if let Some(requests) = section.requests_per_minute {
        ensure(
            requests >= 1,
            names.key("requests_per_minute"),
            requests,
            "at least 1, or absent for no limit",
        )?;
    }
    Ok(())
}

/// Whether the price book that ships with the program knows the model.
fn listed(model: &str) -> bool {
    PriceBook::builtin().is_ok_and(|book| book.price(model).is_some())
}

fn api_key(section: &ServiceSection, names: Names<'_>) -> Result<ApiKeySource, Error> {
    match (&section.api_key_env, &section.api_key_file) {
        (None, None) => Ok(ApiKeySource::None),
        (Some(name), None) => Ok(ApiKeySource::Env(name.clone())),
        (None, Some(path)) => Ok(ApiKeySource::File(path.clone())),
        (Some(_), Some(_)) => Err(Error::Value {
            key: names.key("api_key_file"),
            found: format!("set together with {}", names.key("api_key_env")),
            expected: "only one of the two",
        }),
    }
}

/// A key travels in clear over http, so it may only do so on this machine.
fn check_base_url(base_url: Option<&str>, api_key: &ApiKeySource, names: Names<'_>) -> Result<(), Error> {
    let Some(url) = base_url else { return Ok(()) };
    let value = |expected| Error::Value {
        key: names.key("base_url"),
        found: format!("`{}`", without_password(url)),
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

/// `url` as it may be repeated: what stands before an `@` is a user's name and password.
fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        None => url.to_owned(),
        Some((before, after)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://…@{after}"),
            None => format!("…@{after}"),
        },
    }
}

fn usd_per_mtok(section: &ServiceSection, names: Names<'_>) -> Result<Option<(f64, f64)>, Error> {
    let input = section.input_usd_per_mtok;
    let output = section.output_usd_per_mtok;
    for (leaf, price) in [("input_usd_per_mtok", input), ("output_usd_per_mtok", output)] {
        if let Some(price) = price {
            ensure(
                (0.0..=100_000.0).contains(&price),
                names.key(leaf),
                price,
                "0 to 100000 dollars per million tokens",
            )?;
        }
    }
    match (input, output) {
        (None, None) => Ok(None),
        (Some(input), Some(output)) => Ok(Some((input, output))),
        _ => Err(Error::Missing {
            key: format!(
                "{0}.input_usd_per_mtok and {0}.output_usd_per_mtok",
                names.price_section()
            )
            .into(),
            expected: "both prices, or neither",
        }),
    }
}
