//! `--set a.b=c`: one key of the config from the command line, with the type that the key has.
//!
//! Invariant: an override can do nothing that the file could not.

use serde::Deserialize;

use super::{Config, Error, keys};

/// Where an override comes from, in errors.
const ORIGIN: &str = "--set";

/// Applies `sets` to `table` in order.
pub(crate) fn apply(mut table: toml::Table, sets: &[String]) -> Result<toml::Table, Error> {
    for text in sets {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| Error::Set { text: text.clone() })?;
        let (path, value) = (path.trim(), value.trim());
        if path.split('.').any(str::is_empty) {
            return Err(Error::Set { text: text.clone() });
        }
        keys::check(ORIGIN, &nested(path, toml::Value::String(value.to_owned())))?;
        let typed = typed(path, value)?;
        merge(&mut table, nested(path, typed));
    }
    Ok(table)
}

/// The value as the key's type wants it: as TOML where that fits, else as the bare text, so that
/// `--set service.model=4` and `--set local.base=./model` need no quotes.
fn typed(path: &str, value: &str) -> Result<toml::Value, Error> {
    let fits = |value: &toml::Value| {
        Config::deserialize(toml::Value::Table(nested(path, value.clone()))).map(|_| ())
    };
    let text = toml::Value::String(value.to_owned());
    let parsed = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("value"));
    let first = parsed.unwrap_or_else(|| text.clone());
    match fits(&first) {
        Ok(()) => Ok(first),
        Err(error) if fits(&text).is_err() => Err(Error::SetValue {
            key: path.to_owned(),
            value: value.to_owned(),
            problem: error.message().to_owned(),
        }),
        Err(_) => Ok(text),
    }
}

/// `value` under the dotted `path`.
fn nested(path: &str, value: toml::Value) -> toml::Table {
    let (head, rest) = match path.split_once('.') {
        Some((head, rest)) => (head, toml::Value::Table(nested(rest, value))),
        None => (path, value),
    };
    toml::Table::from_iter([(head.to_owned(), rest)])
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) => merge(inner, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
