//! Which keys exist, and which one was meant.
//!
//! Invariant: an unknown key is refused by its path with the nearest known one, and a secret is never repeated.

use serde_json::Value;

use super::{Config, Error};

/// Likeness from which a known key is suggested: below, a suggestion would be a guess.
const SUGGESTION_MIN: f64 = 0.55;

/// What a key in its own section gets ahead of one elsewhere.
const SAME_SECTION_LEAD: f64 = 0.08;

/// Refuses unknown keys and literal secrets anywhere in `table`.
pub(crate) fn check(origin: &str, table: &toml::Table) -> Result<(), Error> {
    let known = Known::new();
    check_table(origin, &known, "", table)
}

/// The dotted path of every section and key.
#[cfg(test)]
pub(crate) fn all() -> Vec<String> {
    Known::new().0.into_iter().map(|(path, _)| path).collect()
}

fn check_table(origin: &str, known: &Known, path: &str, table: &toml::Table) -> Result<(), Error> {
    for (key, value) in table {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        refuse_secret(origin, path, key, value)?;
        match known.kind(&full) {
            Some(Kind::Section) => {
                let toml::Value::Table(inner) = value else {
                    let hint = format!("`{full}` is a section; write its keys under [{full}]");
                    return Err(Error::UnknownKey {
                        origin: origin.to_owned(),
                        key: full,
                        hint,
                    });
                };
                check_table(origin, known, &full, inner)?;
            }
            Some(Kind::Key) => {}
            None => {
                let hint = known.hint(path, key, value.is_table());
                return Err(Error::UnknownKey {
                    origin: origin.to_owned(),
                    key: full,
                    hint,
                });
            }
        }
    }
    Ok(())
}

/// Refuses a key to a service LLM in the file: under a telling name, or in place of a variable's name.
fn refuse_secret(origin: &str, section: &str, key: &str, value: &toml::Value) -> Result<(), Error> {
    let named = matches!(
        key,
        "api_key" | "key" | "apikey" | "token" | "api_token" | "secret"
    );
    let variable = |name: &str| {
        !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let in_place_of_name = key == "api_key_env"
        && value
            .as_str()
            .is_some_and(|name| !variable(name) || name.starts_with("sk"));
    if !named && !in_place_of_name {
        return Ok(());
    }
    let section = if section.is_empty() { "service" } else { section };
    Err(Error::Secret {
        origin: origin.to_owned(),
        key: format!("{section}.{key}"),
        section: section.to_owned(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Section,
    Key,
}

/// Every dotted path of the config, read off its defaults.
struct Known(Vec<(String, Kind)>);

impl Known {
    fn new() -> Self {
        let mut paths = Vec::new();
        // A struct of plain fields always serializes; nothing known would refuse every key, never accept one.
        collect(
            &serde_json::to_value(Config::default()).unwrap_or_default(),
            "",
            &mut paths,
        );
        Self(paths)
    }

    fn kind(&self, path: &str) -> Option<Kind> {
        self.0
            .iter()
            .find(|(known, _)| known == path)
            .map(|(_, kind)| *kind)
    }

    /// What to do about the unknown `key` under `section`.
    fn hint(&self, section: &str, key: &str, is_section: bool) -> String {
        let candidates = self
            .0
            .iter()
            .filter(|(_, kind)| (*kind == Kind::Section) == is_section);
        let best = candidates
            .map(|(path, _)| {
                let (parent, leaf) = path.rsplit_once('.').unwrap_or(("", path));
                let lead = if parent == section { SAME_SECTION_LEAD } else { 0.0 };
                (likeness(key, leaf) + lead, path)
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match best {
            Some((score, path)) if score >= SUGGESTION_MIN => format!("did you mean `{path}`?"),
            _ => format!("known here: {}", self.children(section).join(", ")),
        }
    }

    fn children(&self, section: &str) -> Vec<&str> {
        let child = |path: &'_ str| match path.rsplit_once('.') {
            Some((parent, _)) => parent == section,
            None => section.is_empty(),
        };
        let leaf = |path| str::rsplit_once(path, '.').map_or(path, |(_, leaf)| leaf);
        self.0
            .iter()
            .filter(|(path, _)| child(path))
            .map(|(path, _)| leaf(path.as_str()))
            .collect()
    }
}

fn collect(value: &Value, path: &str, paths: &mut Vec<(String, Kind)>) {
    let Value::Object(fields) = value else { return };
    for (key, inner) in fields {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let kind = if inner.is_object() {
            Kind::Section
        } else {
            Kind::Key
        };
        paths.push((full.clone(), kind));
        collect(inner, &full, paths);
    }
}

/// How alike two names are, 0 to 1, whatever the order of their words: `max_cycles` is `cycles_max`.
fn likeness(a: &str, b: &str) -> f64 {
    let sorted = |name: &str| {
        let mut words: Vec<&str> = name.split(['_', '-']).collect();
        words.sort_unstable();
        words.join("_")
    };
    strsim::normalized_damerau_levenshtein(a, b)
        .max(strsim::normalized_damerau_levenshtein(&sorted(a), &sorted(b)))
}
