//! JSON lines in and out: one value a line, every error names its line.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// `items`, one a line, each line closed by a newline.
pub fn write<'a, T: Serialize + 'a>(items: impl IntoIterator<Item = &'a T>) -> Result<String, Error> {
    let mut text = String::new();
    for item in items {
        let line = serde_json::to_string(item).map_err(|source| Error::Encode {
            what: "a row",
            source,
        })?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// The values of `text`, which `name` holds. Blank lines are passed over.
pub fn read<T: DeserializeOwned>(name: &str, text: &str) -> Result<Vec<T>, Error> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|problem| Error::Line {
                name: name.to_owned(),
                line: index as u64 + 1,
                problem: problem.to_string(),
                expected: "a row as this program writes it",
            })
        })
        .collect()
}
