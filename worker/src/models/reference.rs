//! What a model reference says.
//!
//! Invariant: parsing looks at names, and at the file system only to tell a path from an id of the same form.

use std::path::{Path, PathBuf};

use super::known::{self, KnownModel};

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name the product knows.
    Known(&'static KnownModel),
    /// A directory or file.
    Path(PathBuf),
    /// A model on the hub.
    Hub(HubModel),
}

/// A model on the hub: `org/name`, `org/name@revision`, `org/name/file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// One `.gguf` file of it; `None` is the whole model.
    pub file: Option<String>,
}

/// Longest part of an id that the hub allows.
const PART_LEN_MAX: usize = 96;

impl Reference {
    /// Reads a reference. What is neither a known name nor of the form of an id is a path.
    pub fn parse(text: &str) -> Self {
        if let Some(model) = known::find(text) {
            return Self::Known(model);
        }
        let path = expand_home(text);
        if path.exists() {
            return Self::Path(path);
        }
        HubModel::parse(text).map_or(Self::Path(path), Self::Hub)
    }
}

impl HubModel {
    fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        let (id, file) = match parts.as_slice() {
            [org, name] => (format!("{org}/{name}"), None),
            [org, name, file] if file.ends_with(".gguf") => {
                (format!("{org}/{name}"), Some((*file).to_owned()))
            }
            _ => return None,
        };
        let whole = parts.iter().all(|part| is_name(part)) && revision.split('/').all(is_name);
        whole.then(|| Self {
            id,
            revision: revision.to_owned(),
            file,
        })
    }

    /// `models--org--name`: what caches call it.
    pub(super) fn directory_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

/// Whether a text may be a part of an id, a revision or a file name on disk: never a step up.
pub(super) fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !part.is_empty() && part.len() <= PART_LEN_MAX && !part.starts_with('.') && part.chars().all(allowed)
}

fn expand_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => Path::new(text).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(text: &str) -> Option<(String, String, Option<String>)> {
        match Reference::parse(text) {
            Reference::Hub(HubModel { id, revision, file }) => Some((id, revision, file)),
            Reference::Known(_) | Reference::Path(_) => None,
        }
    }

    #[test]
    fn ids_revisions_and_files() {
        let all = |id: &str, revision: &str, file: Option<&str>| {
            Some((id.to_owned(), revision.to_owned(), file.map(str::to_owned)))
        };
        assert_eq!(hub("org/name"), all("org/name", "main", None));
        assert_eq!(hub("org/name@v1"), all("org/name", "v1", None));
        assert_eq!(hub("org/name@refs/pr/1"), all("org/name", "refs/pr/1", None));
        assert_eq!(
            hub("org/name/m.Q4_0.gguf"),
            all("org/name", "main", Some("m.Q4_0.gguf"))
        );
    }

    #[test]
    fn everything_else_is_a_path() {
        for path in [
            "model.gguf",
            "/abs/model",
            "./a/b",
            "../a",
            "a/b/c",
            "a/..",
            "a/b@../c",
            "",
            "org/",
        ] {
            assert!(matches!(Reference::parse(path), Reference::Path(_)), "{path}");
        }
    }

    #[test]
    fn a_known_name_is_known() {
        assert!(matches!(
            Reference::parse("smollm2-135m-instruct"),
            Reference::Known(_)
        ));
        assert!(matches!(
            Reference::parse("SmolLM2-135M-Instruct"),
            Reference::Known(_)
        ));
    }
}
