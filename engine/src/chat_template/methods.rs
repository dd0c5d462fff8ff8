//! The methods of Python's strings and dictionaries that chat templates call.
//!
//! Invariant: a method that is not listed fails by name; none changes its receiver.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::bounds;

/// Calls `receiver.method(arguments)`.
pub(super) fn call(
    _state: &mut State<'_, '_>,
    receiver: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match receiver.kind() {
        ValueKind::String => string_method(receiver.as_str().unwrap_or_default(), method, arguments),
        ValueKind::Map => map_method(receiver, method, arguments),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            let is_stripped = |character: char| match characters {
                Some(characters) => characters.contains(character),
                None => character.is_whitespace(),
            };
            Value::from(match method {
                "strip" => text.trim_matches(is_stripped),
                "lstrip" => text.trim_start_matches(is_stripped),
                _ => text.trim_end_matches(is_stripped),
            })
        }
        "startswith" | "endswith" => {
            let (affixes,): (Value,) = from_args(arguments)?;
            let matches = |affix: &str| {
                if method == "startswith" {
                    text.starts_with(affix)
                } else {
                    text.ends_with(affix)
                }
            };
            match affixes.as_str() {
                Some(affix) => Value::from(matches(affix)),
                None => Value::from(
                    affixes
                        .try_iter()?
                        .any(|affix| affix.as_str().is_some_and(matches)),
                ),
            }
        }
        "split" | "rsplit" => {
            let (separator, count): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let pieces_max = match count.unwrap_or(-1) {
                count if count < 0 => usize::MAX,
                count => usize::try_from(count).unwrap_or(usize::MAX).saturating_add(1),
            };
            Value::from(split(text, separator, pieces_max, method == "rsplit")?)
        }
        "splitlines" => {
            let () = from_args(arguments)?;
            Value::from(text.lines().map(Value::from).collect::<Vec<_>>())
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(arguments)?;
            bounds::check_replaced(text.len(), to.len())?;
            Value::from(match usize::try_from(count.unwrap_or(-1)) {
                Ok(count) => text.replacen(from, to, count),
                Err(_) => text.replace(from, to),
            })
        }
        "find" => {
            let (part,): (&str,) = from_args(arguments)?;
            let position = text
                .split_once(part)
                .map(|(before, _)| before.chars().count() as i64);
            Value::from(position.unwrap_or(-1))
        }
        "count" => {
            let (part,): (&str,) = from_args(arguments)?;
            Value::from(text.matches(part).count())
        }
        "join" => {
            let (parts,): (Value,) = from_args(arguments)?;
            Value::from(bounds::joined(parts.try_iter()?, text)?)
        }
        _ => return cased(text, method, arguments),
    })
}

/// The methods that change case or ask for it; none takes an argument.
fn cased(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let capitalized = |word: &str| {
        let mut characters = word.chars();
        let first: String = characters
            .next()
            .map(|first| first.to_uppercase().collect())
            .unwrap_or_default();
        first + &characters.as_str().to_lowercase()
    };
    let value = match method {
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "capitalize" => Value::from(capitalized(text)),
        "title" => {
            let words: String = text
                .split_inclusive(|c: char| !c.is_alphabetic())
                .map(capitalized)
                .collect();
            Value::from(words)
        }
        "isdigit" => Value::from(!text.is_empty() && text.chars().all(char::is_numeric)),
        "isspace" => Value::from(!text.is_empty() && text.chars().all(char::is_whitespace)),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    let () = from_args(arguments)?;
    Ok(value)
}

/// Python's `split` and `rsplit`: without a separator, runs of whitespace separate and the ends are trimmed.
fn split(
    text: &str,
    separator: Option<&str>,
    pieces_max: usize,
    from_right: bool,
) -> Result<Vec<Value>, Error> {
    let mut pieces: Vec<&str> = match separator {
        Some("") => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "split by an empty separator",
            ));
        }
        Some(separator) if from_right => text.rsplitn(pieces_max, separator).collect(),
        Some(separator) => text.splitn(pieces_max, separator).collect(),
        None => {
            let mut pieces = Vec::new();
            let mut rest = text.trim();
            while !rest.is_empty() {
                let cut = if from_right {
                    rest.rfind(char::is_whitespace)
                } else {
                    rest.find(char::is_whitespace)
                };
                match cut.filter(|_| pieces.len() + 1 < pieces_max) {
                    Some(cut) if from_right => {
                        pieces.push(rest[cut..].trim_start());
                        rest = rest[..cut].trim_end();
                    }
                    Some(cut) => {
                        pieces.push(&rest[..cut]);
                        rest = rest[cut..].trim_start();
                    }
                    None => {
                        pieces.push(rest);
                        break;
                    }
                }
            }
            pieces
        }
    };
    if from_right {
        pieces.reverse();
    }
    Ok(pieces.into_iter().map(Value::from).collect())
}

fn map_method(map: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if method == "get" {
        let (key, default): (&Value, Option<Value>) = from_args(arguments)?;
        let found = map.get_item(key)?;
        return Ok(if found.is_undefined() {
            default.unwrap_or(Value::from(()))
        } else {
            found
        });
    }
    let keys = map.try_iter()?;
    let entries: Result<Vec<Value>, Error> = match method {
        "keys" => keys.map(Ok).collect(),
        "values" => keys.map(|key| map.get_item(&key)).collect(),
        "items" => keys
            .map(|key| Ok(Value::from(vec![key.clone(), map.get_item(&key)?])))
            .collect(),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    let () = from_args(arguments)?;
    entries.map(Value::from)
}
