//! The coverage dataset as the user brings it: JSONL rows of `{"messages": [...]}`.
//!
//! Invariant: either every row is a sample, or the first bad line is named and nothing is returned, so that a slip
//! is found before anything is spent.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::jsonl::in_row;
use crate::sample::{Message, Provenance, Sample, SampleId};
use crate::{Error, text};

/// Bytes of one row: 4 MiB is some 800,000 words, far beyond any local model's context.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// Bytes of one file: a coverage dataset is hundreds to thousands of pairs, and it is held in memory.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

/// What a row looks like, for errors.
pub const ROW_FORM: &str =
    r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#;

/// An imported dataset.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The rows in file order, each pair once.
    pub samples: Vec<Sample>,
    /// Rows left out because an earlier row says the same.
    pub duplicates: Vec<DuplicateRow>,
}

/// A row that repeats an earlier one word for word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicateRow {
    /// Its line, from 1.
    pub line: u64,
    /// The line of the row kept.
    pub first_line: u64,
}

/// Imports the file at `path`.
pub fn import_file(path: &Path) -> Result<Imported, Error> {
    let read_error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let name = path.display().to_string();
    let bytes = std::fs::metadata(path).map_err(read_error)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge {
            name,
            bytes,
            bytes_max: FILE_BYTES_MAX,
        });
    }
    import(&name, &std::fs::read(path).map_err(read_error)?)
}

/// Imports `bytes`, which the user knows as `name`. A byte order mark, CRLF and blank lines are fine.
pub fn import(name: &str, bytes: &[u8]) -> Result<Imported, Error> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut samples = Vec::new();
    let mut duplicates = Vec::new();
    let mut first_lines: HashMap<SampleId, u64> = HashMap::new();
    for (line, row) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if row.trim_ascii().is_empty() {
            continue;
        }
        let sample = parse_row(row, line).map_err(|problem| Error::Line {
            name: name.to_owned(),
            line,
            problem,
            expected: ROW_FORM,
        })?;
        match first_lines.get(&sample.id()) {
            Some(&first_line) => duplicates.push(DuplicateRow { line, first_line }),
            None => {
                first_lines.insert(sample.id(), line);
                samples.push(sample);
            }
        }
    }
    if samples.is_empty() {
        return Err(Error::NoRows {
            name: name.to_owned(),
        });
    }
    Ok(Imported { samples, duplicates })
}

fn parse_row(row: &[u8], line: u64) -> Result<Sample, String> {
    if row.len() > LINE_BYTES_MAX {
        return Err(format!(
            "the row has {} bytes, more than the {LINE_BYTES_MAX} that a row may have",
            row.len()
        ));
    }
    let row = std::str::from_utf8(row).map_err(|error| format!("the row is not UTF-8 ({error})"))?;
    let value: Value = serde_json::from_str(row.trim()).map_err(|error| {
        let problem = in_row(&error);
        format!("the row is not JSON ({problem})")
    })?;
    let Value::Object(mut fields) = value else {
        return Err("the row is not a JSON object".to_owned());
    };
    let messages = parse_messages(fields.remove("messages"), &fields)?;
    let sample = Sample::new(messages, Provenance::Coverage { line }).map_err(|error| error.to_string())?;
    Ok(sample.with_fields(fields))
}

fn parse_messages(messages: Option<Value>, others: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let messages = messages.ok_or_else(|| {
        let keys: Vec<&str> = others.keys().take(8).map(|key| text::cut(key, 40)).collect();
        format!("the row has no \"messages\" (its keys: {})", keys.join(", "))
    })?;
    let Value::Array(messages) = messages else {
        return Err("\"messages\" is not a list".to_owned());
    };
    (1..)
        .zip(messages)
        .map(|(index, message)| {
            serde_json::from_value(message).map_err(|error| format!("message {index} is not valid ({error})"))
        })
        .collect()
}

#[cfg(test)]
mod tests;
