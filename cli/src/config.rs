//! `llamaduo.toml`: read, overridden by `--set`, checked, and turned into what a coordinator is asked to do.
//!
//! Invariant: a [`Config`] holds known keys of the right type and no secret; a [`plan::Plan`] needs no further checking.

pub(crate) mod changes;
mod keys;
mod overrides;
pub(crate) mod plan;
pub(crate) mod sections;
pub(crate) mod service;
pub(crate) mod settings;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::Deserialize;

#[cfg(test)]
pub(crate) use keys::all as known_keys;
pub(crate) use sections::Config;

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such file, or not readable.
    #[error("cannot read the config {path}; write one with `llamaduo init`, or name it with -c")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("{origin} is not a valid config: {problem}")]
    Parse { origin: String, problem: String },
    /// A key that means nothing.
    #[error("{origin}: unknown key `{key}`; {hint}")]
    UnknownKey {
        origin: String,
        key: String,
        hint: String,
    },
    /// A key to a service LLM written down.
    #[error(
        "{origin}: `{key}` would hold a secret in plain text; put the key into an environment variable and name it \
         with `{section}.api_key_env`, or into a file and name that with `{section}.api_key_file`"
    )]
    Secret {
        origin: String,
        key: String,
        section: String,
    },
    /// `--set` without the form it needs.
    #[error("--set `{text}` has no value; expected a.b=c, for example --set train.epochs=2")]
    Set { text: String },
    /// `--set` with a value of the wrong type.
    #[error(
        "--set {key}={value} cannot be: {problem}; give a value such as `llamaduo init` writes for this key"
    )]
    SetValue {
        key: String,
        value: String,
        problem: String,
    },
    /// A value out of range.
    #[error("`{key}` is {found}; expected {expected}")]
    Value {
        key: Cow<'static, str>,
        found: String,
        expected: &'static str,
    },
    /// A key that has no default.
    #[error("`{key}` is missing; set it to {expected}")]
    Missing {
        key: Cow<'static, str>,
        expected: &'static str,
    },
    /// A prompt template that cannot be read.
    #[error(
        "cannot read the prompt {path} named by `{key}`; check the path, which is relative to the config"
    )]
    ReadPrompt {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A prompt template that is none.
    #[error("the prompt {path} named by `{key}` cannot be used")]
    Prompt {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: Box<llamaduo_prompts::Error>,
    },
    /// A coverage dataset that cannot be split as asked.
    #[error("`{key}` is {value}, which cannot be had of {file}; {remedy}")]
    Split {
        key: &'static str,
        value: String,
        file: String,
        remedy: String,
        #[source]
        source: Box<llamaduo_data::Error>,
    },
    /// A coverage dataset that cannot be used.
    #[error("the coverage dataset cannot be used")]
    Coverage(#[source] Box<llamaduo_data::Error>),
}

/// Reads the config at `path` and applies `--set` overrides in order.
pub(crate) fn load(path: &Path, sets: &[String]) -> Result<Config, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&path.display().to_string(), &text, sets)
}

/// Where the relative paths of the config at `path` start.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Parses the text of a config, which the user knows as `origin`.
pub(crate) fn parse(origin: &str, text: &str, sets: &[String]) -> Result<Config, Error> {
    let invalid = |error: toml::de::Error| Error::Parse {
        origin: origin.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    };
    let table: toml::Table = text.parse().map_err(invalid)?;
    keys::check(origin, &table)?;
    // Read from the text once, since only then does an error name its line.
    toml::from_str::<Config>(text).map_err(invalid)?;
    let table = overrides::apply(table, sets)?;
    Config::deserialize(toml::Value::Table(table)).map_err(invalid)
}

#[cfg(test)]
mod tests;
